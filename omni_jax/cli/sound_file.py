"""Writes sound as it is generated: wav and flac files, and a wav stream for a player. 16 bits a sample, one channel."""

import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float

FORMATS = {".wav": "WAV", ".flac": "FLAC"}
ENDLESS = 0xFFFFFFFF  # players accept it as a length that is not known yet


class Sound:
    """Writes samples as they are generated. ``seconds`` is the duration so far."""

    def __init__(self, put: Callable[[np.ndarray], Any], sample_rate: int):
        self.put, self.sample_rate, self.count = put, sample_rate, 0

    def write(self, samples: Float[np.ndarray, "W"]) -> None:
        """Writes samples between -1 and 1; values outside are clipped."""
        self.put(np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2"))
        self.count += len(samples)

    @property
    def seconds(self) -> float:
        return self.count / self.sample_rate


def sound_out(target: str, *, sample_rate: int = 24_000) -> AbstractContextManager[Sound]:
    """Opens a file or a stream for sound.

    A file has a temporary name (``a.wav.part``) until it is complete: if something fails, an existing file stays. Work
    that is stopped (KeyboardInterrupt, or a closed pipe) leaves what was written so far under the final name.

    Args:
        target: a name that ends in .wav or .flac, or ``-`` for a wav stream on standard output.
        sample_rate: in Hz.

    Raises:
        ValueError: the target cannot be written; raised on entering, before any sound is generated.
        OSError: the disk is full.
    """
    return _stream(sample_rate) if target == "-" else _file(target, sample_rate)


@contextmanager
def _stream(sample_rate: int) -> Iterator[Sound]:
    if sys.stdout.isatty():
        raise ValueError("-: standard output is a terminal; send it to a player, such as: | ffplay -nodisp -autoexit -")
    output = sys.stdout.buffer
    # The header waits for the first samples, so that standard output stays empty after an earlier error.
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", ENDLESS, b"WAVE", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16, b"data", ENDLESS,
    )  # fmt: skip

    def put(samples: np.ndarray) -> None:
        nonlocal header
        output.write(header + samples.tobytes())
        output.flush()
        header = b""

    yield Sound(put, sample_rate)
    if header:
        put(np.zeros(0, "<i2"))


@contextmanager
def _file(target: str, sample_rate: int) -> Iterator[Sound]:
    path = Path(os.path.realpath(os.path.expanduser(target)))  # a link stays a link: its target is replaced
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{target}: expected a name that ends in .wav or .flac, or - for standard output")
    if not path.parent.is_dir():
        raise ValueError(f"{target}: there is no folder {path.parent}; make it first")
    if path.exists() and not path.is_file():
        raise ValueError(f"{target}: expected the name of a file to write, got a folder or a device")
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(b"")  # because libsndfile does not say why it cannot open a file
    except OSError as error:
        raise ValueError(f"{target}: cannot be written there ({error.strerror}); choose another folder") from None
    file = soundfile.SoundFile(part, "w", sample_rate, 1, "PCM_16", format=FORMATS[path.suffix.lower()])
    sound, keep = Sound(file.write, sample_rate), False
    try:
        with file:
            yield sound
            if file.format == "FLAC" and not sound.count:
                file.write(np.zeros(1, np.int16))  # without a sample libsndfile writes no header: it is no flac
        keep = True
    except (KeyboardInterrupt, BrokenPipeError):
        keep = sound.count > 0
        raise
    except soundfile.LibsndfileError as error:
        raise OSError(f"{target}: could not be written to its end ({error.error_string}) Is the disk full?") from None
    finally:
        if keep:
            part.replace(path)
        else:
            part.unlink(missing_ok=True)
