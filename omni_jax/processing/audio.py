"""Sound to log-mel features: read anything, mix to mono at 16 kHz, take the spectrogram."""

import contextlib
import functools
import math
import numbers
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

import av
import numpy as np
import soundfile
import soxr
from av.error import FFmpegError

from omni_jax.processing.arrays import to_numpy
from omni_jax.processing.options import MediaOptions
from omni_jax.processing.source import DEFAULTS, MediaSource, describe, opened, reason

SAMPLE_RATE = 16_000  # Hz, what every published checkpoint was trained on
RATES = (1_000, 1_000_000)  # Hz; a rate outside is a mistake (kHz for Hz, samples for rate), not a recording
MAX_CHANNELS = 64  # more is a spectrogram or a batch handed over as sound

AudioSource = MediaSource | np.ndarray | tuple[np.ndarray, float]
Blocks = Iterable[tuple[np.ndarray, float]]  # consecutive mono samples, float32 [w], each with their rate

_READ_FRAMES = 1 << 18  # frames decoded at a time, so that many channels are never all in memory
_MEL_FRAMES = 1024  # mel frames at a time: under 5 MB an array, which stays in cache, however long the clip
_MEL_FLOOR = 1e-10
_DECODE_ERRORS = (soundfile.SoundFileError, FFmpegError, ValueError, TypeError)


@dataclass(frozen=True)
class FeatureConfig:
    """Numbers of the log-mel spectrogram, with the published models' values as defaults.

    Attributes:
        sample_rate: Samples a second; always 16000, the rate that `load` returns.
        n_fft: Samples in a frame and its Fourier transform; even.
        hop: Samples from one frame to the next.
        mel_bins: Mel bins, Z.

    Raises:
        ValueError: with every fault in one line, by the published names.
    """

    sample_rate: int = SAMPLE_RATE
    n_fft: int = 400
    hop: int = 160
    mel_bins: int = 128

    def __post_init__(self):
        _raise_faults("FeatureConfig", {key: getattr(self, field) for key, field in _PUBLISHED.items()})

    @property
    def min_samples(self) -> int:
        """The shortest clip: long enough to reflect half a frame at its ends, and to give one frame."""
        return max(self.n_fft // 2 + 1, self.hop)

    @classmethod
    def from_hf(cls, preprocessor_config: Mapping[str, Any]) -> Self:
        """Reads the audio part of a published, parsed preprocessor_config.json.

        Raises:
            ValueError: with every missing or impossible value in one line.
        """
        _raise_faults("preprocessor_config.json", preprocessor_config)
        return cls(**{field: preprocessor_config[key] for key, field in _PUBLISHED.items()})


_PUBLISHED = {
    "sampling_rate": "sample_rate",
    "n_fft": "n_fft",
    "hop_length": "hop",
    "feature_size": "mel_bins",
}


def _raise_faults(where: str, published: Mapping[str, Any]):
    """Checks values under their published names, and raises all that is wrong at once."""
    n_fft = published.get("n_fft")
    limit = n_fft if type(n_fft) is int else 1 << 16
    rules = {
        "sampling_rate": (str(SAMPLE_RATE), range(SAMPLE_RATE, SAMPLE_RATE + 1)),
        "n_fft": ("an even number from 2 to 65536", range(2, (1 << 16) + 1, 2)),
        "hop_length": ("1 to n_fft", range(1, limit + 1)),
        "feature_size": ("1 to n_fft / 2", range(1, limit // 2 + 1)),
    }
    faults = [
        f"{key} is {published[key]!r} (expected {expected})" if key in published else f"{key} is missing"
        for key, (expected, allowed) in rules.items()
        if type(published.get(key)) is not int or published[key] not in allowed
    ]
    # Dither adds noise before the transform: the features of a clip would change from call to call.
    if (dither := published.get("dither", 0)) != 0:
        faults.append(f"dither is {dither!r} (expected 0)")
    if faults:
        raise ValueError(f"{where}: {'; '.join(faults)}")


def load(source: AudioSource, *, name: str | None = None, options: MediaOptions = DEFAULTS) -> np.ndarray:
    """Reads sound from nearly anything, as mono at 16 kHz.

    Channels are averaged, then resampled by soxr (HQ); a clip of W samples at another rate becomes
    ceil(W * 16000 / rate) samples, as `librosa.load` has it, which Qwen's own examples call.

    Args:
        source: A path, a `file://`, `http(s)://` or base64 `data:` URL, a file's bytes, or a binary file object
            (read from where it stands), of whatever soundfile or PyAV decodes; of a video, the first audio track.
            Or samples at 16 kHz, [W], [W, channels] or [channels, W] (the smaller axis is channels), or
            `(samples, rate)`. Integers are scaled to [-1, 1] by their type's range; unsigned ones are offset
            binary (uint8 silence is 128).
        name: What messages call the source; by default its path, or its kind.
        options: audio_start and audio_end, the part to take, in seconds (what lies beyond the end is not missed);
            and the bounds of a download, max_bytes, timeout and allow_private.

    Returns:
        Float32 samples [W], a new array.

    Raises:
        ValueError: in one line, when the source cannot be found, fetched or is not sound, or its samples are none,
            too few for one frame, NaN or infinite, or at a rate outside 1 kHz to 1 MHz, or end before audio_start.
    """
    name = name or describe(source, "audio")
    if isinstance(source, tuple) or hasattr(source, "__array__"):
        samples, rate = _split_pair(source, name) if isinstance(source, tuple) else (source, SAMPLE_RATE)
        _require_rate(rate, name)
        mono, rate, seen = _cut([(_mix_array(samples, name), rate)], options)
    else:
        with opened(source, name, "audio", options) as file:
            mono, rate, seen = _decode(file, name, options)
    if not seen:
        raise ValueError(f"{name}: holds no samples; expected at least one frame of sound")
    _require_rate(rate, name)
    start = options.audio_start or 0
    if seen <= start * rate:
        raise ValueError(f"{name}: audio_start is {start:g} s, but the sound ends at {seen / rate:.3f} s")
    if not _all_finite(mono):
        first = start + np.argmin(np.isfinite(mono)) / rate
        raise ValueError(f"{name}: NaN or infinite samples, the first at {first:.3f} s; expected finite numbers")
    mono = _resample(mono, rate)
    _require_frame(mono, FeatureConfig(), name)
    return mono


def log_mel(samples: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """Log-mel features of one unpadded clip, those of Transformers' WhisperFeatureExtractor.

    Frames are centred (half a frame is reflected at each end), Hann-windowed (periodic) and transformed;
    powers are summed into Slaney mel bins; their log10 x, clamped to 8 decades below the clip's peak, becomes
    (x + 4) / 4. Computed in float64, as that extractor does where torch is absent; with torch it transforms
    in float32, whose rounding shows in bins 80 dB below a loud neighbour: up to 4e-5 in clean speech.

    Args:
        samples: Float samples [W] at `config.sample_rate`, as `load` returns.
        config: The spectrogram's numbers.

    Returns:
        Float32 features [Z, A], A = W // hop. Silence is -1.5.

    Raises:
        ValueError: in one line, when samples are not [W] floats, too few for a frame, NaN or infinite.
    """
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(f"log_mel: expected float samples [W], got {samples.dtype} {list(samples.shape)}; use load()")
    with np.errstate(over="ignore"):
        samples = samples.astype(np.float32, copy=False)
    _require_frame(samples, config, "log_mel")
    if not _all_finite(samples):
        raise ValueError("log_mel: NaN or infinite samples; expected finite numbers")
    n_fft, hop = config.n_fft, config.hop
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    filters = _mel_filters(config)
    frames, last = samples.size // hop, samples.size - 1
    features = np.empty((config.mel_bins, frames), np.float32)
    for start in range(0, frames, _MEL_FRAMES):
        stop = min(start + _MEL_FRAMES, frames)
        # Reflection by index rather than by padding: no second copy of a long clip.
        index = np.abs(np.arange(start * hop, (stop - 1) * hop + n_fft) - n_fft // 2)
        block = samples[last - np.abs(last - index)].astype(np.float64)
        spectrum = np.fft.rfft(np.lib.stride_tricks.sliding_window_view(block, n_fft)[::hop] * window)
        power = spectrum.real**2 + spectrum.imag**2
        features[:, start:stop] = np.log10(np.maximum(filters @ power.T, _MEL_FLOOR))
    np.maximum(features, features.max() - 8, out=features)
    features += 4
    features /= 4
    return features


@functools.lru_cache(maxsize=4)
def _mel_filters(config: FeatureConfig) -> np.ndarray:
    """Slaney's mel filters, from 0 Hz to half the sample rate, of equal area: float64 [Z, n_fft // 2 + 1]."""
    import librosa  # here, because it takes a second to import and only this needs it

    filters = librosa.filters.mel(sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.mel_bins, dtype=np.float64)
    filters.flags.writeable = False  # the cache shares it
    return filters


def _require_rate(rate: float, name: str):
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"{name}: a sample rate of {rate:.10g} Hz; expected {RATES[0]} to {RATES[1]} Hz")


def _require_frame(samples: np.ndarray, config: FeatureConfig, name: str):
    """Raises where a clip at the config's rate is too short for its first frame."""
    least, ms = config.min_samples, 1000 / config.sample_rate
    if samples.size < least:
        raise ValueError(
            f"{name}: {samples.size} samples at {config.sample_rate} Hz ({samples.size * ms:.1f} ms) "
            f"are too few; expected at least {least} ({least * ms:.1f} ms)"
        )


def _all_finite(samples: np.ndarray) -> bool:
    """Whether no sample is NaN or infinite, without an array of answers: both extremes carry NaN along."""
    return bool(np.isfinite(samples.min(initial=0)) and np.isfinite(samples.max(initial=0)))


def _resample(mono: np.ndarray, rate: float) -> np.ndarray:
    if rate == SAMPLE_RATE:
        return mono
    length = math.ceil(mono.size * SAMPLE_RATE / rate)
    resampled = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")[:length]  # soxr rounds: at most one off
    return np.pad(resampled, (0, length - resampled.size))


def _downmix(samples: np.ndarray, axis: int) -> np.ndarray:
    """Averages the channels on an axis into float32 [W]; integers become [-1, 1] by their type's range."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are reported by load, in words
        mono = samples.mean(axis=axis, dtype=np.float32)
    if samples.dtype.kind in "iu":
        half_range = 2.0 ** (8 * samples.dtype.itemsize - 1)
        mono = (mono - half_range * (samples.dtype.kind == "u")) / half_range
    return mono


def _mix_array(source: Any, name: str) -> np.ndarray:
    """Samples in an array of one or two axes, as mono float32 [W] at the same rate."""
    samples = to_numpy(source)
    if samples.dtype.kind not in "fiu":
        raise ValueError(f"{name}: samples of dtype {samples.dtype}; expected floats or integers")
    if samples.dtype.kind in "iu" and samples.dtype.itemsize > 4:
        # Nothing records 64-bit integers: they are narrower samples in NumPy's default type, and that type's
        # range would scale them to silence.
        raise ValueError(f"{name}: samples of dtype {samples.dtype} have no known range; convert to int16 or floats")
    if samples.ndim not in (1, 2):
        raise ValueError(
            f"{name}: samples of shape {list(samples.shape)}; expected [W], [W, channels] or [channels, W]"
        )
    samples = np.atleast_2d(samples)
    axis = 0 if samples.shape[0] < samples.shape[1] else 1
    if samples.size and samples.shape[axis] > MAX_CHANNELS:
        raise ValueError(
            f"{name}: samples of shape {list(samples.shape)} would have {samples.shape[axis]} channels; "
            f"expected at most {MAX_CHANNELS} (one clip's waveform, not a spectrogram or a batch)"
        )
    return _downmix(samples, axis) if samples.size else np.empty(0, np.float32)


def _split_pair(source: tuple, name: str) -> tuple[Any, float]:
    if len(source) != 2 or not hasattr(source[0], "__array__"):
        kinds = ", ".join(type(item).__name__ for item in source[:4])
        raise ValueError(f"{name}: expected (samples, rate) with samples a NumPy array, got a tuple of ({kinds})")
    samples, rate = source
    if not isinstance(rate, numbers.Real) or isinstance(rate, bool):
        raise ValueError(f"{name}: expected (samples, rate) with the rate a number in Hz, got {type(rate).__name__}")
    return samples, float(rate)


def _cut(blocks: Blocks, options: MediaOptions) -> tuple[np.ndarray, float, int]:
    """Joins the asked-for part of a sound, decoding no further: float32 [W], its rate, and how many samples were seen."""
    kept, rate, seen = [np.empty(0, np.float32)], 0.0, 0
    for block, rate in blocks:
        start = round((options.audio_start or 0) * rate)
        end = math.inf if options.audio_end is None else round(options.audio_end * rate)
        first, last = (int(min(max(edge - seen, 0), block.size)) for edge in (start, end))
        if first < last:  # an empty view would keep its block in memory
            kept.append(block[first:last])
        seen += block.size
        if seen >= end:
            break
    return np.concatenate(kept), rate, seen


def _decode(file: BinaryIO, name: str, options: MediaOptions) -> tuple[np.ndarray, float, int]:
    """Decodes a file by the first library that can; what `_cut` returns."""
    reasons = []
    for library, decode in (("soundfile", _decode_soundfile), ("PyAV", _decode_av)):
        file.seek(0)
        try:
            with contextlib.closing(decode(file)) as blocks:
                return _cut(blocks, options)
        except _NoTrackError:
            raise ValueError(f"{name}: has no audio track; expected a sound file, or a video with sound") from None
        except _DECODE_ERRORS as error:  # TypeError: soundfile on a file named .raw, which has no header
            reasons.append(f"{library}: {reason(error)}")
    raise ValueError(f"{name}: not audio, or damaged ({'; '.join(reasons)})")


class _NoTrackError(Exception):
    """A file that PyAV can read, but which holds pictures only."""


def _decode_soundfile(file: BinaryIO) -> Generator[tuple[np.ndarray, float]]:
    with soundfile.SoundFile(file) as sound:
        while len(block := sound.read(_READ_FRAMES, dtype="float32", always_2d=True)):
            yield _downmix(block, axis=1), sound.samplerate


def _decode_av(file: BinaryIO) -> Generator[tuple[np.ndarray, float]]:
    rate = 0
    # No protocol is allowed: a playlist's bytes must not open other files or addresses of this machine.
    with av.open(file, "r", metadata_errors="ignore", options={"protocol_whitelist": "none"}) as container:
        if not container.streams.audio:
            raise _NoTrackError
        for frame in container.decode(container.streams.audio[0]):
            if rate not in (0, frame.sample_rate):
                raise ValueError(f"the sample rate changes from {rate} to {frame.sample_rate} Hz")
            rate = frame.sample_rate
            samples = frame.to_ndarray()  # [channels, w]; where interleaved, [1, w * channels]
            if not frame.format.is_planar:
                samples = samples.reshape(frame.samples, -1).T
            yield _downmix(samples, axis=0), rate
