"""The picture track of a video file: when its frames are shown, and the decoding of chosen ones alone."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition

from omni_jax.processing.image import MAX_PIXELS
from omni_jax.processing.source import reason

Progress = Callable[[int, int, str], None]  # (done, total, name)

# Codecs whose keyframes need nothing before them. In others, GIF among them, a frame may be drawn on any earlier one.
_RANDOM_ACCESS = (
    *("h264", "hevc", "vvc", "vp8", "libvpx", "vp9", "libvpx-vp9", "av1", "libdav1d"),
    *("mpeg1video", "mpeg2video", "mpeg4", "mjpeg", "prores", "dnxhd", "ffv1"),
)
_TEXT_ART = ("ansi", "bintext", "xbin", "idf")  # as which FFmpeg would show a text file, by its name
_STATE_LENGTH = ("mov", "matroska", "flv")  # containers whose headers do; of others, the length is an estimate
_HOLE = 1.0  # seconds without pictures that are damage: less is a dropped frame, or a length rounded


@dataclass(frozen=True)
class Index:
    """A track's frames in the order they are shown, known before their pictures are decoded.

    Attributes:
        times: When each is shown, in ticks, ascending: int64 [frames].
        tick: Seconds.
        rate: Frames a second that the file states; 0 for unknown.
        height, width: Of the first frame, upright.
        cut: Whether more should follow, but is lost.
        packets: Each packet's time, in the file's order: of the frame that it completes. None where packets do not tell
            that, and frames are known by their number instead.
        keyframes: At which packets decoding can start: bool [packets]. It can at the first, whatever is stated.
    """

    times: np.ndarray
    tick: float
    rate: float
    height: int
    width: int
    cut: bool
    packets: np.ndarray | None
    keyframes: np.ndarray


def read_index(file: BinaryIO, name: str) -> Index:
    """Reads the times of all frames from their packets; only the first frame is decoded.

    Raises:
        ValueError: in one line, when the file is no video, has no frame that decodes, or too large ones.
    """
    pts, keyframes, whole = [], [], []
    first: Any = None
    ends, cut = {}, False  # ends: of each track, in its own ticks
    with _opened(file, name) as (container, track):
        decoder, form = track.codec_context, container.format.name
        try:
            for packet in _packets(container):  # of all tracks: any of them shows that a file ends too early
                if packet.stream_index == track.index and first is None:
                    first = next(iter(_decode(decoder, packet)), None)
                if packet.dts is None and not packet.size:
                    continue  # tells a decoder that its track has ended
                cut = packet.is_corrupt
                if packet.pts is not None:
                    end = packet.pts + (packet.duration or 0)
                    ends[packet.stream_index] = max(end, ends.get(packet.stream_index, end))
                if packet.stream_index == track.index:
                    pts.append(packet.pts)
                    keyframes.append(packet.is_keyframe)
                    whole.append(not (packet.is_discard or packet.is_corrupt))
        except FFmpegError:
            cut = True
        if first is None:
            raise ValueError(f"{name}: no frame decodes; expected a video file, of at most {MAX_PIXELS} pixels a frame")
        if len(pts) == 1 and (form == "image2" or form.endswith("_pipe")):
            raise ValueError(f"{name}: is a picture; expected a video file; give it as an image")
        if container.duration and form.startswith(_STATE_LENGTH):
            end = max((float(end * container.streams[number].time_base) for number, end in ends.items()), default=0.0)
            stated = (container.duration + min(container.start_time or 0, 0)) / av.time_base
            cut |= stated - end > _HOLE
        told = _are_of_frames(pts, first.pts, reordered=decoder.has_b_frames)
        packets = np.array(pts, np.int64) if told else None
        height, width, _ = _upright(first).shape
        return Index(
            # What is shown before the first frame that decodes needs a keyframe that is not in the file.
            times=np.arange(0) if packets is None else np.sort(packets[np.array(whole) & (packets >= first.pts)]),
            tick=float(track.time_base),
            rate=float(track.average_rate or 0),
            height=height,
            width=width,
            cut=cut,
            packets=packets,
            keyframes=np.array(keyframes) & (decoder.name in _RANDOM_ACCESS),
        )


def _are_of_frames(pts: list[int | None], first: int | None, *, reordered: bool) -> bool:
    """Whether packets' times can be those of the frames: of each another, and not in storage order where frames are not."""
    known = [time for time in pts if time is not None]
    if first not in known or len(set(known)) < len(pts):
        return False
    if (max(known) - min(known)) * len(known) >= 1 << 62:  # beyond the whole numbers in which frames are chosen
        return False
    return not reordered or any(a > b for a, b in itertools.pairwise(known))


def decode_index(file: BinaryIO, name: str, index: Index, progress: Progress | None) -> Index:
    """The index of a file whose packets do not tell the times of frames, or not of all: by decoding every frame.

    Raises:
        ValueError: in one line, when neither frames nor the file tell times.
    """
    whole = [(0, len(index.keyframes) - 1)]
    frames = _frames(file, name, whole, _Meter(whole, name, progress))
    pts: list[Any] = [frame.pts for frame in frames]
    if None in pts or any(a >= b for a, b in itertools.pairwise(pts)):
        if not index.rate:
            raise ValueError(f"{name}: its frames have no times and it states no rate; convert it to MP4")
        return replace(index, times=np.arange(len(pts)), tick=1 / index.rate, packets=None)
    times, cut = np.array(pts, np.int64), index.cut
    if index.packets is not None and times.size:
        after = np.searchsorted(times, index.times)
        near = np.stack([times[np.minimum(after, len(times) - 1)], times[np.maximum(after - 1, 0)]])
        lost = index.times[np.abs(near - index.times).min(axis=0) * index.tick > _HOLE]
        if lost.size:
            times, cut = times[times < lost[0]], True
    return replace(index, times=times, cut=cut, packets=None)


def decode(
    file: BinaryIO, name: str, index: Index, chosen: np.ndarray, progress: Progress | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Decodes chosen frames, as few others as can be, and holds one at a time.

    Args:
        file, name, index: A file and its index.
        chosen: Numbers of frames, ascending, each once.
        progress: Called now and then with the packets decoded, those to decode, and the name.

    Yields:
        Number and pixels, uint8 [h, w, 3], upright, of those frames that come: in a file that is odd, not all may.
    """
    if index.packets is None:
        parts = [(0, len(index.keyframes) - 1)]
        wanted: dict[int | None, int] = {int(number): int(number) for number in chosen}
    else:
        parts = _parts(index.packets, index.keyframes, index.times[chosen])
        wanted = {int(index.times[number]): int(number) for number in chosen}
    meter = _Meter(parts, name, progress)
    for order, frame in enumerate(_frames(file, name, parts, meter)):
        number = wanted.pop(order if index.packets is None else frame.pts, None)
        if number is not None:
            yield number, _upright(frame)
        if not wanted:
            break
    meter.advance(meter.total)


def _parts(packets: np.ndarray, keyframes: np.ndarray, times: np.ndarray) -> list[tuple[int, int]]:
    """First and last packet of each stretch to decode, for the frames of some times to come out."""
    starts, order = np.flatnonzero(keyframes), np.argsort(packets)
    parts: list[tuple[int, int]] = []
    for time, stop in zip(times, order[np.searchsorted(packets, times, sorter=order)], strict=True):
        # Frames shown before a keyframe but stored behind it (an open GOP) need the keyframe before that.
        start = max(starts[(starts <= stop) & (packets[starts] <= time)], default=0)
        if parts and start <= parts[-1][1] + 1:
            start, previous = parts.pop()
            stop = max(stop, previous)
        parts.append((int(start), int(stop)))
    return parts


class _Meter:
    """Tells a callback how many of some packets are done, a hundred times at most."""

    def __init__(self, parts: list[tuple[int, int]], name: str, progress: Progress | None):
        self.done, self.total = 0, sum(stop - start + 1 for start, stop in parts)
        self.name, self.progress = name, progress

    def advance(self, to: int):
        """Tells it where a hundredth more is done."""
        before, self.done = self.done, to
        if self.progress and to * 100 // self.total > before * 100 // self.total:
            self.progress(to, self.total, self.name)


def _frames(file: BinaryIO, name: str, parts: list[tuple[int, int]], meter: _Meter) -> Iterator[av.VideoFrame]:
    """Decodes stretches of packets, each from a keyframe on.

    All packets are read, which costs little, rather than sought: containers seek by times that are not exact.
    """
    with _opened(file, name) as (container, track):
        track.thread_type = "AUTO"
        decoder, left = track.codec_context, iter(parts)
        start, stop = next(left)
        for position, packet in enumerate(_packets(container, track)):
            if position < start:
                continue
            frames = _decode(decoder, packet)
            if position == stop:
                frames += _decode(decoder, None)
                decoder.flush_buffers()
                start, stop = next(left, (math.inf, math.inf))
            meter.advance(meter.done + 1)
            yield from frames
            if start == math.inf:
                return


def _packets(container: Any, *tracks: Any) -> Iterator[av.Packet]:
    """The packets of some tracks, or of all, and an empty one at the end of each."""
    with contextlib.suppress(IndexError):  # PyAV's, at the end of a file where a track has turned up midway
        yield from container.demux(*tracks)


def _decode(decoder: Any, packet: av.Packet | None) -> list[av.VideoFrame]:
    """The frames that a packet completes, or without one those still held; none where it is damaged."""
    try:
        return decoder.decode(packet)
    except FFmpegError:
        return []


@contextlib.contextmanager
def _opened(file: BinaryIO, name: str) -> Iterator[tuple[Any, Any]]:
    """Opens a file as a container, with its first picture track."""
    file.seek(0)
    # No protocol is allowed: a playlist's bytes must not open other files or addresses of this machine.
    options = {"protocol_whitelist": "none", "max_pixels": str(MAX_PIXELS)}
    try:
        with av.open(file, "r", metadata_errors="ignore", options=options) as container:
            track = _picture_track(container)
            track.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            yield container, track
    except (FFmpegError, OSError) as error:  # OSError: of the file itself
        raise ValueError(f"{name}: not a video, or damaged ({reason(error)})") from None
    except _NoVideoError as error:
        raise ValueError(f"{name}: {error}") from None


class _NoVideoError(Exception):
    """Why a file is no video, in words for the user."""


def _picture_track(container: Any) -> Any:
    tracks = container.streams.video
    moving = [track for track in tracks if not track.disposition & Disposition.attached_pic]
    if not moving:
        holds = ["sound"] * bool(container.streams.audio) + ["a cover picture"] * bool(tracks)
        raise _NoVideoError(f"holds {' and '.join(holds) or 'no pictures'}; expected a video file")
    decoder = moving[0].codec_context
    if decoder is None:
        raise _NoVideoError("its codec cannot be decoded here; convert it to H.264 in MP4")
    if decoder.name in _TEXT_ART:
        raise _NoVideoError("is text; expected a video file")
    return moving[0]


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """A frame's pixels, uint8 [h, w, 3], turned and mirrored as its file states."""
    pixels = frame.to_ndarray(format="rgb24")
    if (matrix := frame.side_data.get("DISPLAYMATRIX")) is None:
        return pixels
    # A point (x, y) is shown at (a x + c y, b x + d y); of any angle, the nearest multiple of a right one is taken.
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
