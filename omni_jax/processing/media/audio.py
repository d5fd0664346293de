"""Sound to log-mel features: read nearly any source, mix to mono at 16 kHz, compute the spectrogram."""

import contextlib
import functools
import math
import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

import numpy as np
from jaxtyping import Float

from omni_jax.errors import about, listed, shown
from omni_jax.processing.arrays import to_numpy
from omni_jax.processing.media import audio_file
from omni_jax.processing.media.audio_file import (
    BLOCK_FRAMES,
    MAX_CHANNELS,
    SAMPLE_RATE,
    Block,
    Part,
    all_finite,
    downmix,
    take,
)
from omni_jax.processing.media.source import DEFAULTS, MediaSource, describe, opened
from omni_jax.processing.options import MediaOptions

AudioSource = MediaSource | np.ndarray | tuple[np.ndarray, float]
_MEL_FRAMES = 1024  # mel frames at a time: under 5 MB an array, which stays in cache, however long the clip
_MEL_FLOOR = 1e-10
_SILENT = (
    "leave load_audio_from_video (use_audio_in_video) out for it, or set it to False beside this video, to have the "
    "pictures alone"
)


@dataclass(frozen=True)
class FeatureConfig:
    """Parameters of the log-mel spectrogram, with the published models' values as defaults.

    Attributes:
        sample_rate: Samples a second; always 16000, the rate that `load` returns.
        n_fft: Samples in a frame and its Fourier transform; even.
        hop: Samples from one frame to the next.
        mel_bins: Mel bins, Z.
        pad_seconds: A shorter clip is padded with silence to so many seconds before the transform: its last frames
            reach into the silence beyond its end, and a frame that has only begun counts. 0 means no padding: the last
            frames reach into the clip's reflected end.

    Raises:
        ValueError: with every fault in one line, by the published names.
    """

    sample_rate: int = SAMPLE_RATE
    n_fft: int = 400
    hop: int = 160
    mel_bins: int = 128
    pad_seconds: int = 0

    def __post_init__(self):
        _raise_faults("FeatureConfig", {key: getattr(self, field) for key, field in _PUBLISHED.items()})

    @property
    def min_samples(self) -> int:
        """Samples of the shortest clip: enough for one frame and, unpadded, to reflect half a frame at its ends."""
        return 1 if self.pad_seconds else max(self.n_fft // 2 + 1, self.hop)

    @classmethod
    def from_hf(
        cls, preprocessor_config: Mapping[str, Any], *, padded: bool = False, file: str = "preprocessor_config.json"
    ) -> Self:
        """Reads the audio part of a published, parsed preprocessor_config.json.

        Args:
            preprocessor_config: The parsed file.
            padded: Whether the model's processor pads clips to `chunk_length`. The file does not say: Qwen3-Omni's may
                state a `chunk_length` too, which nothing uses.
            file: The file's name in errors.

        Raises:
            ValueError: with every missing or impossible value in one line.
        """
        published = dict(preprocessor_config) if padded else {**preprocessor_config, "chunk_length": 0}
        _raise_faults(file, published)
        return cls(**{field: published[key] for key, field in _PUBLISHED.items()})


_PUBLISHED = {
    "sampling_rate": "sample_rate",
    "n_fft": "n_fft",
    "hop_length": "hop",
    "feature_size": "mel_bins",
    "chunk_length": "pad_seconds",
}


def _raise_faults(where: str, published: Mapping[str, Any]):
    """Checks values under their published names, and raises one ValueError for all faults."""
    n_fft = published.get("n_fft")
    limit = n_fft if type(n_fft) is int else 1 << 16
    rules = {
        "sampling_rate": (str(SAMPLE_RATE), range(SAMPLE_RATE, SAMPLE_RATE + 1)),
        "n_fft": ("an even number from 2 to 65536", range(2, (1 << 16) + 1, 2)),
        "hop_length": ("1 to n_fft", range(1, limit + 1)),
        "feature_size": ("1 to n_fft / 2", range(1, limit // 2 + 1)),
        "chunk_length": ("a whole number of seconds up to 3600", range(3601)),
    }
    faults = [
        f"{key} is {shown(published[key])} (expected {expected})" if key in published else f"{key} is missing"
        for key, (expected, allowed) in rules.items()
        if type(published.get(key)) is not int or published[key] not in allowed
    ]
    # Dither adds noise before the transform: a clip's features would change from call to call.
    if (dither := published.get("dither", 0)) != 0:
        faults.append(f"dither is {shown(dither)} (expected 0)")
    if faults:
        raise ValueError(f"{where}: {listed(faults)}")


def load(
    source: AudioSource, *, name: str | None = None, options: MediaOptions = DEFAULTS, limit: float = math.inf
) -> np.ndarray:
    """Reads sound from nearly any source, as mono at 16 kHz.

    Channels are averaged, then resampled by soxr (HQ). A clip of W samples at another rate becomes
    ceil(W * 16000 / rate) samples, as in `librosa.load`, which Qwen's own examples call.

    Args:
        source: A path, a `file://`, `http(s)://` or base64 `data:` URL, a file's bytes, or a binary file object (read
            from its current position), in any format that soundfile or PyAV decodes; of a video, the first audio track.
            Or samples at 16 kHz, [W], [W, channels] or [channels, W] (the smaller axis is channels), or `(samples,
            rate)`, or a decoder of torchcodec. Integers are scaled to [-1, 1] by their type's range; unsigned ones are
            offset binary (uint8 silence is 128).
        name: What messages call the source; by default its path, or its kind.
        options: audio_start and audio_end, the part to take, in seconds (an audio_end beyond the sound is no error);
            and the bounds of a download, max_bytes, timeout and allow_private.
        limit: Seconds for which the model's context has room; no more is decoded.

    Returns:
        Float32 samples [W], a new array.

    Raises:
        ValueError: in one line, when the source cannot be found, fetched or is not sound; when it has no samples, too
            few for one frame, or NaN or infinite ones; when its rate is outside 1 kHz to 1 MHz; when it ends before
            audio_start; when a part of it is lost; or when it is longer than the limit.
    """
    name = name or describe(source, "audio")
    decoder: Any = source
    if hasattr(decoder, "get_all_samples"):  # a decoder of torchcodec, as rows of `datasets` hold
        decoded = decoder.get_all_samples()
        source = (to_numpy(decoded.data), decoded.sample_rate)
    if isinstance(source, tuple) or hasattr(source, "__array__"):
        samples, rate = _split_pair(source, name) if isinstance(source, tuple) else (source, SAMPLE_RATE)
        part = take(_mixed(samples, rate, name), options.audio_start, options.audio_end, limit, "audio")
    else:
        with opened(source, name, "audio", options) as file:
            part = _decode(file, name, options, limit)
    if part.fault:
        raise ValueError(f"{name}: {part.fault}")
    if not part.seen:
        raise ValueError(f"{name}: holds no samples; expected at least one frame of sound")
    start = options.audio_start or 0
    if part.seen <= start:
        raise ValueError(f"{name}: audio_start is {start:g} s, but the sound ends at {part.seen:.3f} s")
    _require_frame(part.samples, FeatureConfig(), name)
    return part.samples


def load_track(
    file: BinaryIO, name: str, options: MediaOptions = DEFAULTS, *, origin: float, limit: float = math.inf
) -> np.ndarray:
    """Reads the sound of a video, placed by its time stamps, as mono at 16 kHz.

    Where sound begins after the pictures, or has a hole of more than 50 ms, there is silence. Where it begins before
    them, it is cut. It ends where the file's sound does.

    Args:
        file: A seekable binary file; of several sound tracks, the first is read.
        name: What messages call it.
        options: video_start and video_end, the part to take, in seconds from the first picture.
        origin: When the first picture is shown (`video.Clip.origin`).
        limit: Seconds for which the model's context has room; no more is decoded.

    Returns:
        Float32 samples [W], the first at video_start.

    Raises:
        ValueError: in one line, when there is no sound at all, or none in the part, and as in `load`.
    """
    try:
        with about(name), contextlib.closing(audio_file.track(file, holes=True)) as blocks:
            part = take(audio_file.placed(blocks, origin), options.video_start, options.video_end, limit, "video")
    except audio_file.NoTrackError:
        raise ValueError(f"{name}: has no audio track; {_SILENT}") from None
    if part.fault:
        raise ValueError(f"{name}: {part.fault}")
    if not part.heard or part.samples.size < FeatureConfig().min_samples:
        end = "on" if options.video_end is None else f"to {options.video_end:g} s"
        raise ValueError(
            f"{name}: has no sound from {options.video_start or 0:g} s {end}; check video_start and video_end, or {_SILENT}"
        )
    return part.samples


def log_mel(samples: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """Log-mel features of one clip, those of Transformers' WhisperFeatureExtractor.

    Frames are centred (half a frame is reflected at each end), Hann-windowed (periodic) and transformed.
    Powers are summed into Slaney mel bins; their log10 x, clamped to 8 decades below the clip's peak, becomes
    (x + 4) / 4. A clip longer than `config.pad_seconds` is used whole, as if there were no padding: Qwen2.5-Omni's
    processor cuts it there, but its model takes any length. Computed in float64, as that extractor does without torch.
    With torch it transforms in float32, whose rounding shows in bins 80 dB below a loud neighbour: up to 4e-5 in clean
    speech.

    Args:
        samples: Float samples [W] at `config.sample_rate`, as `load` returns.
        config: The spectrogram's parameters.

    Returns:
        Float32 features [Z, A]; A = W // hop, or ceil(W / hop) of a clip that is padded. Silence is -1.5.

    Raises:
        ValueError: in one line, when samples are not [W] floats, too few for a frame, NaN or infinite.
    """
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(f"log_mel: expected float samples [W], got {samples.dtype} {list(samples.shape)}; use load()")
    with np.errstate(over="ignore"):
        samples = samples.astype(np.float32, copy=False)
    if samples.size >= config.min_samples and not all_finite(samples):
        raise ValueError("log_mel: NaN or infinite samples; expected finite numbers")
    return log_mel_of_finite(samples, config)


def log_mel_of_finite(samples: Float[np.ndarray, "W"], config: FeatureConfig) -> Float[np.ndarray, "Z A"]:
    """``log_mel`` of float32 samples that are known to be finite: ``load`` and ``load_track`` have scanned theirs."""
    _require_frame(samples, config, "log_mel")
    n_fft, hop = config.n_fft, config.hop
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    filters = _mel_filters(config)
    samples, frames, reached = _followed(samples, config)
    last = samples.size - 1
    features = np.empty((config.mel_bins, reached), np.float32)
    for start in range(0, reached, _MEL_FRAMES):
        stop = min(start + _MEL_FRAMES, reached)
        # Reflection by index instead of padding: no second copy of a long clip.
        index = np.abs(np.arange(start * hop, (stop - 1) * hop + n_fft) - n_fft // 2)
        block = samples[last - np.abs(last - index)].astype(np.float64)
        spectrum = np.fft.rfft(np.lib.stride_tricks.sliding_window_view(block, n_fft)[::hop] * window)
        power = spectrum.real**2 + spectrum.imag**2
        features[:, start:stop] = np.log10(np.maximum(filters @ power.T, _MEL_FLOOR))
    peak = features.max()
    features = np.ascontiguousarray(features[:, :frames])  # no copy if these are all
    np.maximum(features, peak - 8, out=features)
    features += 4
    features /= 4
    return features


def _followed(samples: np.ndarray, config: FeatureConfig) -> tuple[np.ndarray, int, int]:
    """The samples of a clip with as much of its padding silence as its frames reach; the number of its frames; and the
    number of frames that overlap the clip, in any of which its peak may lie."""
    size, hop, half = samples.size, config.hop, config.n_fft // 2
    room = config.pad_seconds * config.sample_rate - size
    if room > 0:
        samples = np.pad(samples, (0, min(room, 2 * half + hop)))
    whole = samples.size // hop
    return samples, min(-(-size // hop), whole), min(-(-(size + half) // hop), whole)


@functools.lru_cache(maxsize=4)
def _mel_filters(config: FeatureConfig) -> np.ndarray:
    """Slaney's mel filters, from 0 Hz to half the sample rate, of equal area: float64 [Z, n_fft // 2 + 1]."""
    import librosa  # imported here, because the import takes a second and only this function needs it

    filters = librosa.filters.mel(sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.mel_bins, dtype=np.float64)
    filters.flags.writeable = False  # callers share the cached array
    return filters


def _require_frame(samples: np.ndarray, config: FeatureConfig, name: str):
    """Raises ValueError where a clip at the config's rate is too short for its first frame."""
    least, ms = config.min_samples, 1000 / config.sample_rate
    if samples.size < least:
        raise ValueError(
            f"{name}: {samples.size} samples at {config.sample_rate} Hz ({samples.size * ms:.1f} ms) "
            f"are too few; expected at least {least} ({least * ms:.1f} ms)"
        )


def _mixed(source: Any, rate: float, name: str) -> Iterator[Block]:
    """Samples in an array of one or two axes, as mono blocks, so that no more is copied than a context has room for."""
    samples = to_numpy(source)
    if samples.dtype.kind not in "fiu":
        raise ValueError(f"{name}: samples of dtype {samples.dtype}; expected floats or integers")
    if samples.dtype.kind in "iu" and samples.dtype.itemsize > 4:
        # Nothing records 64-bit integers: they are narrower samples in NumPy's default type, whose range would scale
        # them to silence.
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
    for start in range(0, samples.shape[1 - axis] if samples.size else 0, BLOCK_FRAMES):
        piece = slice(start, start + BLOCK_FRAMES)
        yield Block(downmix(samples[piece] if axis else samples[:, piece], axis), rate)


def _split_pair(source: tuple, name: str) -> tuple[Any, float]:
    if len(source) != 2 or not hasattr(source[0], "__array__"):
        kinds = ", ".join(type(item).__name__ for item in source[:4])
        raise ValueError(f"{name}: expected (samples, rate) with samples a NumPy array, got a tuple of ({kinds})")
    samples, rate = source
    if not isinstance(rate, numbers.Real) or isinstance(rate, bool):
        raise ValueError(f"{name}: expected (samples, rate) with the rate a number in Hz, got {type(rate).__name__}")
    return samples, float(rate)


def _decode(file: BinaryIO, name: str, options: MediaOptions, limit: float) -> Part:
    try:
        with about(name):
            return audio_file.decode(
                file, lambda blocks: take(blocks, options.audio_start, options.audio_end, limit, "audio")
            )
    except audio_file.NoTrackError:
        raise ValueError(f"{name}: has no audio track; expected a sound file, or a video with sound") from None
