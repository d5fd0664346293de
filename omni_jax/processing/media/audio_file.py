"""Sound of audio and video files as blocks of mono samples; parts of it at 16 kHz; lost sound is reported."""

import contextlib
import itertools
import math
import os
import re
import struct
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
import soundfile
import soxr

from omni_jax.processing.media import container
from omni_jax.processing.media.container import HOLE, Packets, Steady
from omni_jax.processing.media.source import reason

SAMPLE_RATE = 16_000  # Hz, which every published checkpoint was trained on
RATES = (1_000, 1_000_000)  # Hz; a rate outside is a mistake (kHz for Hz, samples for rate), not a recording
MAX_CHANNELS = 64  # more is a spectrogram or a batch given as sound, or a file made to fill memory
T = TypeVar("T")


class Block(NamedTuple):
    """Consecutive samples of one channel.

    Attributes:
        samples: float32 [w].
        rate: Hz.
        time: Time of the first sample, in seconds of the file's clock; None if unknown.
        heard: Whether the samples are from the file; False for silence that was inserted.
    """

    samples: np.ndarray
    rate: float
    time: float | None = None
    heard: bool = True


Blocks = Iterable[Block | None]  # None: sound is lost here, and no block follows

BLOCK_FRAMES = 1 << 18  # frames decoded at a time, so that many channels are never all in memory
SILENCE_FRAMES = 1 << 40  # of silence at a time; it takes no memory, since a file's times may ask for years of it
_MISPLACED = 0.05  # seconds that sound may be off its time stamps: containers round them
_NOUN = "audio"
# Chunked files: their byte order, and the chunk that holds the samples.
_CHUNKED = {b"RIFF": ("<", b"data"), b"FORM": (">", b"SSND")}
_READ_AHEAD = 1 << 14  # bytes at a file's end that are tags, or that a decoder need not read
_UNKNOWN_SIZE = 0x7FFF_0000  # sizes from here on mean unknown: programs that write into a pipe state them


class ChannelsError(ValueError):
    """A file with more channels than any recording has."""


class NoTrackError(Exception):
    """A file that FFmpeg can read, but which holds only pictures."""


# The resampler's filter overshoots by a tenth, and so beyond float32's range.
_TOO_LARGE = "samples too large to be resampled: NaN or infinite ones come out; expected finite numbers"


def downmix(samples: np.ndarray, axis: int) -> np.ndarray:
    """Averages the channels on an axis into float32 [W]; integers become [-1, 1] by their type's range."""
    with np.errstate(over="ignore", invalid="ignore"):  # `audio` reports infinities in words
        mono = samples.mean(axis=axis, dtype=np.float32)
    if samples.dtype.kind in "iu":
        half_range = 2.0 ** (8 * samples.dtype.itemsize - 1)
        mono = (mono - half_range * (samples.dtype.kind == "u")) / half_range
    return mono


def all_finite(samples: np.ndarray) -> bool:
    """Whether no sample is NaN or infinite, without an array of booleans: NaN propagates to both extremes."""
    return bool(np.isfinite(samples.min(initial=0)) and np.isfinite(samples.max(initial=0)))


@dataclass(frozen=True)
class Part:
    """A part of a sound at 16 kHz.

    Attributes:
        samples: float32 [W].
        seen: Seconds that were decoded.
        fault: What is wrong with the sound; empty if nothing.
        heard: Whether any of the samples are from the file, not inserted silence.
    """

    samples: np.ndarray
    seen: float
    fault: str
    heard: bool


def take(blocks: Blocks, start: float | None, end: float | None, limit: float, noun: str) -> Part:
    """Takes a part of a sound and resamples it, block by block, no further than needed; `noun` names its options."""
    kept, count, seen, rate = bytearray(), 0, 0, 0.0
    heard, fault, resampler = False, "", None
    for block in _cut(blocks, start):
        if block is None:
            fault = _loss(seen / rate if rate else 0.0, noun)
            break
        rate = block.rate
        if not RATES[0] <= rate <= RATES[1]:
            fault = f"a sample rate of {rate:.10g} Hz; expected {RATES[0]} to {RATES[1]} Hz"
            break
        stop = math.inf if end is None else round(end * rate)
        first, last = (int(min(max(edge - seen, 0), block.samples.size)) for edge in (round((start or 0) * rate), stop))
        samples = block.samples[first:last]
        if not all_finite(samples):
            at = (seen + first + np.argmin(np.isfinite(samples))) / rate
            fault = f"NaN or infinite samples, the first at {at:.3f} s; expected finite numbers"
            break
        seen, count, heard = seen + block.samples.size, count + samples.size, heard or (block.heard and last > first)
        if count > limit * rate:
            fault = (
                f"at least {count / rate:.1f} s of sound, but the model's context has room for {limit:.1f} s; take a part, "
                f"by {noun}_start and {noun}_end"
            )
            break
        if rate != SAMPLE_RATE:
            resampler = resampler or soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
            samples = resampler.resample_chunk(samples)
            if not all_finite(samples):
                fault = _TOO_LARGE
                break
        kept += np.ascontiguousarray(samples).data.cast("B")  # grows in place; joining a list would copy everything
        if seen >= stop:
            break
    if resampler and not fault:
        samples = resampler.resample_chunk(np.empty(0, np.float32), last=True)
        fault = fault if all_finite(samples) else _TOO_LARGE
        kept += samples.tobytes()
        length = math.ceil(count * SAMPLE_RATE / rate)
        del kept[length * 4 :]  # soxr's length is rounded: at most one off
        kept += bytes(length * 4 - len(kept))
    return Part(np.frombuffer(kept, np.float32), seen / rate if rate else 0.0, fault, heard)


def _cut(blocks: Blocks, start: float | None) -> Iterator[Block | None]:
    """Splits blocks into pieces of ordinary length; the part before `start` stays one piece."""
    seen = 0
    for block in blocks:
        if block is None or block.samples.size <= BLOCK_FRAMES:
            yield block
        else:
            size = block.samples.size
            at = min(max(round((start or 0) * block.rate) - seen, 0), size)
            for first, last in itertools.pairwise(itertools.chain((0,), range(at, size, BLOCK_FRAMES), (size,))):
                if last > first:
                    yield block._replace(samples=block.samples[first:last])
        seen += block.samples.size if block else 0


def _loss(seconds: float, noun: str) -> str:
    whole = math.floor(seconds * 100) / 100
    part = f", or {noun}_end={whole:g} for what there is" if whole else ""
    return f"its sound is cut off or damaged after {seconds:.2f} s; give the whole file{part}"


def decode(file: BinaryIO, consume: Callable[[Blocks], T]) -> T:
    """The result of `consume` on a sound file's blocks, with the first library that decodes as much as it reads.

    Raises:
        NoTrackError: the file holds only pictures.
        ValueError: in one line without the file's name, when it is not sound.
    """
    reasons = []
    for library, read in (("soundfile", _by_soundfile), ("PyAV", track)):
        file.seek(0)
        try:
            with contextlib.closing(read(file)) as blocks:
                return consume(blocks)
        except ChannelsError:
            raise
        except (soundfile.SoundFileError, ValueError) as error:
            reasons.append(f"{library}: {reason(error)}")
    raise ValueError(f"not audio, or damaged ({'; '.join(reasons)})")


def track(file: BinaryIO, *, holes: bool = False) -> Generator[Block | None]:
    """Decodes the first sound track of a file with FFmpeg; with `holes`, gaps without sound do not count as lost.

    Raises:
        NoTrackError: there is no sound track.
        ValueError: in one line without the file's name, when FFmpeg cannot read it or its sample rate changes.
    """
    with container.opened(file, _NOUN) as opened:
        if not opened.streams.audio:
            raise NoTrackError
        stream = opened.streams.audio[0]
        decoder, packets = stream.codec_context, Packets(opened, _NOUN)
        if decoder is None:
            raise ValueError("its sound's codec cannot be decoded here; convert it to AAC or WAV")
        rate, end, lost = 0, None, False
        for packet in _and_none(packet for packet in packets if packet.stream_index == stream.index):
            frames = container.decoded(decoder, packet)
            lost |= frames is None
            for frame in frames or []:
                if rate not in (0, frame.sample_rate):
                    raise ValueError(f"the sample rate changes from {rate} to {frame.sample_rate} Hz")
                _require_channels(frame.layout.nb_channels)
                begun, rate, time = rate > 0, frame.sample_rate, frame.time
                late = time is not None and end is not None and time - end > HOLE
                # Sound lost before the first frame is where a broadcast was joined.
                if (lost and begun) or (late and packets.states_length and not holes):
                    yield None
                    return
                lost, end = False, None if time is None else time + frame.samples / rate
                samples = frame.to_ndarray()  # [channels, w]; where interleaved, [1, w * channels]
                if not frame.format.is_planar:
                    samples = samples.reshape(frame.samples, -1).T
                yield Block(downmix(samples, axis=0), rate, time)
        if lost and not rate:
            raise ValueError("nothing of its sound decodes")
        if packets.cut or (lost and packets.states_length):  # at the end, because a plain stream may be cut anywhere
            yield None


def placed(blocks: Blocks, origin: float) -> Iterator[Block | None]:
    """Sound from `origin` on, in seconds of the file's clock, each block at its own time; gaps are filled with silence,
    and earlier sound is dropped.

    If the clock jumps back, as where broadcasts were joined, sound continues without a gap.
    """
    at = 0  # samples since the origin
    begun = False
    for block in blocks:
        if block is None:
            yield None
            return
        samples, rate, time, _ = block
        gap = 0 if time is None else round((time - origin) * rate) - at
        if begun and gap < -rate:
            origin, gap = origin + gap / rate, 0
        if begun and abs(gap) <= _MISPLACED * rate:
            gap = 0
        samples = samples[max(-gap, 0) :]
        if not samples.size:
            continue
        at, begun = at + max(gap, 0) + samples.size, True
        while gap > 0:
            yield Block(np.broadcast_to(np.float32(0), (min(gap, SILENCE_FRAMES),)), rate, heard=False)
            gap -= SILENCE_FRAMES
        yield Block(samples, rate)


def _and_none(items: Iterable[T]) -> Iterator[T | None]:
    yield from items
    yield None


def _by_soundfile(file: BinaryIO) -> Generator[Block | None]:
    stated, length = _stated_share(file), file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        sound = soundfile.SoundFile(Steady(file))  # pyright: ignore[reportArgumentType]  # any file object will do
    except TypeError as error:  # raised for a file named .raw, which has no header
        raise ValueError(reason(error)) from None
    with sound:
        _require_channels(sound.channels)
        seen = 0
        while len(block := sound.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
            yield Block(downmix(block, axis=1), sound.samplerate)
            seen += len(block)
        if sound.format == "MP3":
            unread = length - file.tell()
            if _states_frames(file):
                stated = sound.frames / max(seen, 1)
            elif unread > _READ_AHEAD:
                raise ValueError("an MP3 that does not state its length, which libsndfile guesses too short")
        if (stated - 1) * seen > HOLE * sound.samplerate:
            yield None


def _require_channels(count: int):
    if count > MAX_CHANNELS:
        raise ChannelsError(f"has {count} channels; expected at most {MAX_CHANNELS}")


def _stated_share(file: BinaryIO) -> float:
    """The number of samples that a chunked file states, divided by those it holds: above 1 if its end is missing."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    order, wanted = _CHUNKED.get(file.read(12)[:4], ("", b""))
    at = 12
    while order and at + 8 < length:
        file.seek(at)
        kind, size = struct.unpack(f"{order}4sI", file.read(8))
        if kind == wanted:
            return size / (length - at - 8) if size < _UNKNOWN_SIZE else 1.0
        at += 8 + size + size % 2
    return 1.0


def _states_frames(file: BinaryIO) -> bool:
    """Whether an MP3 states its length, as encoders do in its first frame; otherwise libsndfile guesses it."""
    file.seek(0)
    head = file.read(10)
    tag = 0
    if head[:3] == b"ID3":
        for byte in head[6:]:
            tag = tag << 7 | byte
    file.seek(tag and tag + 10)
    return re.search(rb"Xing|Info|VBRI", file.read(1024)) is not None
