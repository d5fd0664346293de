"""What readers of pictures and of sound share: opening a media file, its packets, and whether its end is missing."""

import contextlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import av
from av.error import FFmpegError

from omni_jax.errors import kind_of
from omni_jax.processing.media.source import reason

# Containers whose headers state the length; for others, FFmpeg estimates it.
_STATE_LENGTH = ("mov", "matroska", "flv", "flac", "aiff", "au")
# Titles that are not UTF-8 must not stop the reading: since PyAV 19 they do not, and the option is gone.
_ANY_TITLE: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
HOLE = 1.0  # seconds without pictures or sound that count as damage; less is a dropped frame, or a rounded length


class Steady:
    """A file for libraries in C: a seek outside of it, as damaged bytes cause, leaves it where it is.

    Such libraries cannot raise what a seek raises, and print its traceback instead.
    """

    def __init__(self, file: BinaryIO):
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1


@contextlib.contextmanager
def opened(file: BinaryIO, noun: str, **options: str) -> Iterator[Any]:
    """Opens a file with FFmpeg.

    Args:
        file: A seekable binary file.
        noun: What messages say that it is not: "a video", "audio".
        options: FFmpeg's own.

    Raises:
        ValueError: in one line without the file's name, when FFmpeg cannot read it.
        RetryableError: likewise, when the file itself cannot be read now.
    """
    file.seek(0)
    # No protocol is allowed: a playlist's bytes must not open other files or addresses from this machine.
    options = {"protocol_whitelist": "none", **options}
    try:
        container = av.open(Steady(file), "r", options=options, **_ANY_TITLE)
    except FFmpegError as error:
        raise ValueError(f"not {noun}, or damaged ({reason(error)})") from None
    except OSError as error:  # from the file itself
        raise _unread(error) from None
    with container:
        yield container


def _unread(error: OSError) -> Exception:
    return kind_of(error)(f"cannot be read ({reason(error)})")


class Packets:
    """The packets of all tracks of a container: any track can show that a file ends too early.

    Attributes:
        states_length: Whether the container's header states its length, so that a missing end can be noticed.
    """

    def __init__(self, container: Any, noun: str):
        self._container, self._noun = container, noun
        self._ends: dict[int, int] = {}  # end of each track, in its own ticks
        self._broken = False
        self.states_length = bool(container.duration) and container.format.name.startswith(_STATE_LENGTH)

    def __iter__(self) -> Iterator[av.Packet]:
        try:
            for packet in self._container.demux():
                if packet.dts is None and not packet.size:
                    continue  # it tells a decoder that its track has ended
                self._broken = packet.is_corrupt
                if packet.pts is not None:
                    end = packet.pts + (packet.duration or 0)
                    self._ends[packet.stream_index] = max(end, self._ends.get(packet.stream_index, end))
                yield packet
        except IndexError:  # raised by PyAV at the end of a file where a track has appeared midway
            pass
        except FFmpegError:
            self._broken = True
        except OSError as error:
            raise _unread(error) from None

    @property
    def cut(self) -> bool:
        """Whether packets are missing at the end; known once all packets were read."""
        if self._broken or not self.states_length:
            return self._broken
        streams = self._container.streams
        end = max((float(end * streams[number].time_base) for number, end in self._ends.items()), default=0.0)
        stated = (self._container.duration + min(self._container.start_time or 0, 0)) / av.time_base
        return stated - end > HOLE


def decoded(decoder: Any, packet: av.Packet | None) -> list[Any] | None:
    """The frames that a packet completes, or with None those the decoder still holds; None if the packet is damaged."""
    try:
        return decoder.decode(packet)
    except FFmpegError:
        return None
