"""Clips of any length in a few static shapes: chunks of mel frames, packed into calls of the encoder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from omni_jax.buckets import CHUNK_SLOTS
from omni_jax.config import MelEncoderConfig
from omni_jax.processing.arrays import Finite, is_numeric, to_numpy

USUAL_BINS = 128  # mel bins of the published models


@dataclass(frozen=True)
class Pack:
    """One call of an audio encoder.

    Attributes:
        mel: chunks, zero beyond their frames.
        extent: frames of each chunk that its convolutions see.
        order: index, within the whole request, of the token in each row of the result (clips one after another), -1 for
            none.
        window: attention window of each token, -1 for none; None for an encoder whose windows are its chunks.
    """

    mel: Float[np.ndarray, "N Z A"]
    extent: Int[np.ndarray, "N"]
    order: Int[np.ndarray, "N tokens"]
    window: Int[np.ndarray, "N tokens"] | None = None

    @property
    def inputs(self) -> tuple[np.ndarray, ...]:
        """The arguments of the encoder's ``encode``."""
        return (self.mel, self.extent) if self.window is None else (self.mel, self.extent, self.window)

    def rows(self, index: Int[np.ndarray, "B T"]) -> Int[np.ndarray, "B T"]:
        """Maps indices of audio tokens to rows of this call's result; -1 for tokens of another call."""
        return rows_of(self.order, index)


def rows_of(order: Int[np.ndarray, "..."], index: Int[np.ndarray, "B T"]) -> Int[np.ndarray, "B T"]:
    """Maps feature indices to rows of a call's result; -1 for indices that ``order`` does not hold, and for -1."""
    order = order.reshape(-1)
    rows = np.full(max(order.max(), index.max()) + 2, -1, np.int32)
    rows[order[order >= 0]] = np.flatnonzero(order >= 0)
    return rows[index]


def pack(clips: Sequence[Float[np.ndarray, "Z _A"]], config: MelEncoderConfig) -> Iterator[Pack]:
    """Cuts clips into attention windows and fills calls with whole windows, in order.

    A call has a bounded number of chunks, however long a clip is. A clip's features never depend on the other clips.
    Where chunks do not attend to each other (Qwen2.5-Omni), a chunk's convolutions end with its frames. Where several
    attend to each other (Qwen3-Omni), a clip shorter than a chunk is convolved as if its array ended with it, and a
    longer clip's last chunk is padded with zero frames, as in the reference.
    """
    waiting: list[tuple[int, int, int, int]] = []
    done = 0
    for window in _windows(clips, config):
        size = -(-(window[2] - window[1]) // config.chunk_frames)
        if done + size > CHUNK_SLOTS[-1]:
            yield _fill(clips, waiting, config)
            waiting, done = [], 0
        waiting.append(window)
        done += size
    if waiting:
        yield _fill(clips, waiting, config)


def _windows(clips: Sequence[np.ndarray], config: MelEncoderConfig) -> Iterator[tuple[int, int, int, int]]:
    """(clip, first frame, last frame, index of its first token) of each attention window."""
    span, token = config.chunk_frames * config.span_chunks, 0
    for clip, mel in enumerate(clips):
        for first in range(0, mel.shape[1], span):
            last = min(first + span, mel.shape[1])
            yield clip, first, last, token
            token += config.tokens(last - first)


def _fill(clips: Sequence[np.ndarray], windows: Sequence[tuple[int, int, int, int]], config: MelEncoderConfig) -> Pack:
    frames, tokens = config.chunk_frames, config.chunk_tokens
    used = sum(-(-(last - first) // frames) for _, first, last, _ in windows)
    slots, windowed = next(size for size in CHUNK_SLOTS if size >= used), config.windowed
    mel = np.zeros((slots, config.mel_bins, frames), np.float32)
    extent = np.full(slots, frames if windowed else 0, np.int32)
    window = np.full((slots, tokens), -1, np.int32)
    order = np.full((slots, tokens), -1, np.int32)
    slot = 0
    for number, (clip, first, last, token) in enumerate(windows):
        for start in range(first, last, frames):
            chunk = clips[clip][:, start : min(start + frames, last)]
            count = config.tokens(chunk.shape[1])
            mel[slot, :, : chunk.shape[1]] = chunk
            extent[slot] = min(clips[clip].shape[1], frames) if windowed else chunk.shape[1]
            window[slot, :count] = number
            order[slot, :count] = token + np.arange(count)
            token += count
            slot += 1
    return Pack(mel=mel, extent=extent, order=order, window=window if windowed else None)


def split_clips(mel: Any, *, mask: Any = None, lengths: Any = None, mel_bins: int | None = USUAL_BINS) -> Finite:
    """Splits log-mel input into clips [Z, A]: a list of clips; a padded array [B, Z, A] with a frame mask [B, A] or
    lengths [B]; or clips packed one after another [Z, sum of lengths] with their lengths.

    Clips are checked where they enter, and never again: the type of the result says that they were.

    Args:
        mel: as above, NumPy or what becomes NumPy.
        mask: of a padded array, True at a clip's first frames.
        lengths: of a padded or packed array, in frames.
        mel_bins: expected Z; None for any, which is left to ``require_bins``.

    Raises:
        ValueError: the layout is none of these, a mask or lengths do not fit the array, a clip has no frames, or a
            value is NaN or infinite.
    """
    bins = mel_bins or USUAL_BINS
    if isinstance(mel, list | tuple):
        if mask is not None or lengths is not None:
            raise ValueError(
                "mel: a list of clips carries its own lengths; give mask= or lengths= with a [B, Z, A] array only"
            )
        clips = [_floats(clip) for clip in mel]
    else:
        array = _floats(mel)
        if array.ndim == 2 and mask is None and lengths is not None and np.ndim(lengths) == 1 and np.size(lengths) > 1:
            return _checked(_unpacked(array, to_numpy(lengths)), mel_bins)
        if array.ndim == 2:
            array = array[None]
        if array.ndim != 3:
            raise ValueError(
                f"mel: expected a list of [{bins}, A] or one [B, {bins}, A] array, got shape {array.shape}"
            )
        batch, _, frames = array.shape
        if mask is not None and lengths is not None:
            raise ValueError("mel: expected mask= or lengths=, got both; give one")
        if mask is not None:
            mask = to_numpy(mask)
            if mask.shape != (batch, frames):
                raise ValueError(
                    f"mask: expected shape {(batch, frames)} for mel of shape {array.shape}, got {mask.shape}"
                )
            lengths = mask.astype(bool).sum(axis=1)
            if not np.array_equal(mask.astype(bool), np.arange(frames) < lengths[:, None]):
                raise ValueError("mask: expected ones on the first frames of each clip and zeros after them")
        counts = np.full(batch, frames) if lengths is None else to_numpy(lengths)
        if counts.shape != (batch,) or counts.dtype.kind not in "iu":
            raise ValueError(
                f"lengths: expected {batch} whole numbers, one a clip, got {counts.dtype} of shape {list(counts.shape)}"
            )
        if counts.max(initial=0) > frames or counts.min(initial=0) < 0:
            raise ValueError(
                f"lengths: expected 1 to {frames} frames a clip, as mel holds, got {counts.min()} to {counts.max()}"
            )
        clips = [clip[:, :count] for clip, count in zip(array, counts, strict=True)]
    return _checked(clips, mel_bins)


def _unpacked(array: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Clips that are packed one after another, the input layout of the reference's encoder."""
    if lengths.dtype.kind not in "iu" or lengths.min() < 0 or lengths.sum() != array.shape[1]:
        raise ValueError(
            f"lengths: expected whole numbers that add up to the {array.shape[1]} packed frames of mel, got {lengths.tolist()}"
        )
    return np.split(array, np.cumsum(lengths)[:-1], axis=1)


def require_bins(clips: Sequence[np.ndarray], mel_bins: int | None) -> None:
    """Raises ValueError for a clip that has not the model's number of mel bins; None for any number."""
    for number, clip in enumerate(clips):
        if clip.ndim != 2 or (mel_bins and clip.shape[0] != mel_bins):
            shape = f"[{mel_bins or USUAL_BINS}, A]"
            raise ValueError(f"mel: clip {number}: expected shape {shape} (mel bins, frames), got {list(clip.shape)}")


def _checked(clips: list[np.ndarray], mel_bins: int | None) -> Finite:
    require_bins(clips, mel_bins)
    for number, clip in enumerate(clips):
        if not clip.shape[1]:
            raise ValueError(f"mel: clip {number}: expected at least one frame, got none")
        if not np.isfinite(clip).all():
            raise ValueError(f"mel: clip {number}: expected numbers, got NaN or infinite values")
    return Finite(clips)


def _floats(mel: Any) -> np.ndarray:
    array = to_numpy(mel)
    if not is_numeric(array):
        raise ValueError(f"mel: expected arrays of numbers, got {array.dtype}; encode_audio takes log-mel, not files")
    return array.astype(np.float32)
