"""Rows of tokens with their media as arrays: the input of models and speech."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from omni_jax.buckets import bucket
from omni_jax.config import ThinkerConfig
from omni_jax.errors import cut
from omni_jax.processing.arrays import Finite, is_numeric, to_numpy
from omni_jax.processing.audio_packing import split_clips
from omni_jax.processing.media.reader import Visual
from omni_jax.processing.positions import batch_positions, text_positions
from omni_jax.processing.vision_packing import split_patches


@dataclass(frozen=True)
class Batch:
    """Rows of tokens with their media, as NumPy arrays.

    Attributes:
        tokens: text ids, a media placeholder repeated once for each feature.
        mask: True on real tokens. Rows from ``prepare`` have them first; a Transformers processor's may have them last.
        positions: rotary coordinates (time, height, width); with images or videos, None until ``located``.
        mel: log-mel clips [Z, A], in the order of their placeholders, row by row.
        images: in the order of their placeholders, row by row.
        videos: in the order of their placeholders, row by row.

    Media are checked where they enter a batch, and kept as ``Finite``: copies of a batch do not look at them again.
    """

    tokens: Int[np.ndarray, "B T"]
    mask: Bool[np.ndarray, "B T"]
    positions: Float[np.ndarray, "3 B T"] | None
    mel: Sequence[Float[np.ndarray, "Z _A"]] = ()
    images: Sequence[Visual] = ()
    videos: Sequence[Visual] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.mel, Finite):
            object.__setattr__(self, "mel", split_clips(list(self.mel), mel_bins=None))
        for kind, items in (("image", self.images), ("video", self.videos)):
            if not isinstance(items, Finite):
                object.__setattr__(self, f"{kind}s", _finite(kind, items))

    @property
    def lengths(self) -> Int[np.ndarray, "B"]:
        """Real tokens of each row."""
        return self.mask.sum(axis=1).astype(np.int32)

    @classmethod
    def from_tokens(
        cls,
        tokens: Any,
        mask: Any = None,
        mel: Sequence[Float[np.ndarray, "Z _A"]] = (),
        images: Sequence[Visual] = (),
        videos: Sequence[Visual] = (),
    ) -> "Batch":
        """A batch of ids [B, T] (or [T]) with placeholders of media, and a mask of the same shape, None for all real."""
        try:
            ids = np.atleast_2d(to_numpy(tokens))
        except ValueError:
            raise ValueError("tokens: expected rows of one length; pad the shorter ones and give mask=") from None
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise ValueError(
                f"tokens: expected whole numbers of shape [B, T], got {ids.dtype} of shape {list(ids.shape)}"
            )
        real = np.ones(ids.shape, bool) if mask is None else np.atleast_2d(to_numpy(mask)).astype(bool)
        if real.shape != ids.shape:
            raise ValueError(f"mask: expected the shape of the tokens, {list(ids.shape)}, got {list(real.shape)}")
        if not ids.size or not real.any(axis=1).all():
            raise ValueError(f"tokens: expected at least one real token in each of the {ids.shape[0]} rows")
        positions = None if images or videos else text_positions(real)
        return cls(ids.astype(np.int32), real, positions, mel, images, videos)

    @classmethod
    def from_hf(cls, inputs: Mapping[str, Any]) -> "Batch":
        """A batch of a Transformers processor's output: input_ids, attention_mask, input_features, pixel_values, ...

        The tokens show which videos have sound; ``use_audio_in_video`` may be given and is not needed.
        """
        if not isinstance(inputs, Mapping):
            raise ValueError(f"expected a processor's output (a mapping with input_ids), got {type(inputs).__name__}")
        given = {name: value for name, value in inputs.items() if value is not None}
        if "input_ids" not in given or not given.keys() <= PROCESSED:
            raise ValueError(
                f"expected a processor's output with input_ids and at most {', '.join(sorted(PROCESSED))}, got "
                f"[{cut(', '.join(sorted(map(str, given))))}]"
            )
        mel = Finite()
        if "input_features" in given:
            features = to_numpy(given["input_features"])
            mel = split_clips(features, mask=given.get("feature_attention_mask"), mel_bins=None)
        images = _visuals(given, "pixel_values", "image_grid_thw", None)
        videos = _visuals(given, "pixel_values_videos", "video_grid_thw", "video_second_per_grid")
        return cls.from_tokens(given["input_ids"], given.get("attention_mask"), mel, images, videos)

    def located(self, config: ThinkerConfig, start: float | Sequence[float] = 0.0) -> "Batch":
        """The same batch with its positions counted.

        Args:
            config: token ids, and how positions count time.
            start: position of the first token of each row; for rows that continue from a cache,
                ``positions.next_position`` of the earlier tokens. The state of a conversation's positions is this one
                number a row.

        Raises:
            ValueError: placeholders and media do not match.
        """
        if self.positions is not None and not np.any(start):
            return self
        videos = [(item.grid, item.seconds) for item in self.videos]
        images = [item.grid for item in self.images]
        return replace(self, positions=batch_positions(self.tokens, self.mask, images, videos, config, start))

    def justified(self) -> "Batch":
        """The same rows with their real tokens first."""
        order = np.argsort(~self.mask, axis=1, kind="stable")
        positions = self.positions
        return replace(
            self,
            tokens=np.take_along_axis(self.tokens, order, axis=1),
            mask=np.take_along_axis(self.mask, order, axis=1),
            positions=None if positions is None else np.take_along_axis(positions, order[None], axis=2),
        )

    def padded(self) -> "Batch":
        """The same rows, real tokens first, padded to the next bucket of length and the next power of two of rows."""
        rows, columns = 1 << (len(self.tokens) - 1).bit_length(), bucket(self.tokens.shape[1])
        grow = [(0, rows - self.tokens.shape[0]), (0, columns - self.tokens.shape[1])]
        own = self.justified()
        return replace(
            own,
            tokens=np.pad(own.tokens, grow),
            mask=np.pad(own.mask, grow),
            positions=None if own.positions is None else np.pad(own.positions, [(0, 0), *grow]),
        )

    def audio_index(self, config: ThinkerConfig) -> Int[np.ndarray, "B T"]:
        """The index of the audio feature (clips one after another) of each token, -1 for none.

        Raises:
            ValueError: placeholders and features differ in number.
        """
        count = sum(config.audio_encoder.tokens(clip.shape[1]) for clip in self.mel)
        return self._index(config.audio_token, count, f"audio: {len(self.mel)} clips")

    def visual_index(self, config: ThinkerConfig) -> Int[np.ndarray, "B T"]:
        """The index of the visual feature (images one after another, then videos) of each token, -1 for none.

        Raises:
            ValueError: placeholders and features differ in number, or patches have another model's width.
        """
        width = config.vision_encoder.patch_width
        for kind, items in (("image", self.images), ("video", self.videos)):
            for number, item in enumerate(items):
                expected, found = [int(np.prod(item.grid)), width], list(np.shape(item.patches))
                if found != expected:
                    raise _unlike(kind, number, expected, f"shape {found}")
        group = config.vision_encoder.merge**2
        images, videos = (sum(len(item.patches) for item in kind) // group for kind in (self.images, self.videos))
        of_images = self._index(config.image_token, images, f"image: {len(self.images)} images")
        of_videos = self._index(config.video_token, videos, f"video: {len(self.videos)} videos")
        return np.where(of_videos >= 0, of_videos + images, of_images)

    def _index(self, placeholder: int, features: int, what: str) -> Int[np.ndarray, "B T"]:
        at = (self.tokens == placeholder) & self.mask
        if features != at.sum():
            raise ValueError(
                f"{what} have {features} features, but the tokens have {int(at.sum())} placeholders ({placeholder}); "
                "repeat a placeholder once for each of its medium's features"
            )
        return np.where(at, np.cumsum(at.reshape(-1)).reshape(at.shape) - 1, -1).astype(np.int32)


PROCESSED = {
    "mm_token_type_ids",  # the tokens show it
    "input_ids", "attention_mask", "input_features", "feature_attention_mask", "pixel_values", "image_grid_thw",
    "pixel_values_videos", "video_grid_thw", "video_second_per_grid", "use_audio_in_video",
}  # fmt: skip


def _finite(kind: str, items: Sequence[Visual]) -> Finite:
    """Images or videos whose patches were scanned; shapes are checked with a model (``Batch.visual_index``)."""
    for number, item in enumerate(items):
        patches = to_numpy(item.patches)
        if not is_numeric(patches):
            raise _unlike(kind, number, list(patches.shape), str(patches.dtype))
        if not np.isfinite(patches).all():
            raise _unlike(kind, number, list(patches.shape), "NaN or infinite values")
    return Finite(items)


def _unlike(kind: str, number: int, expected: list[int], got: str) -> ValueError:
    return ValueError(f"{kind} {number}: expected patches of shape {expected}, as its grid says, got {got}")


def _visuals(given: Mapping[str, Any], pixels: str, grid: str, seconds: str | None) -> Finite:
    """The images or the videos of a processor's output."""
    held = [name for name in (pixels, grid, seconds) if name and name in given]
    if not held:
        return Finite()
    missing = {pixels, grid, seconds} - {None, *held}
    if missing:
        raise ValueError(f"expected {', '.join(sorted(missing))} beside {', '.join(held)}, got none")
    media, grids = split_patches(given[pixels], given[grid])
    array = to_numpy(given[seconds]).reshape(-1) if seconds else np.zeros(len(grids))
    if len(array) != len(grids) or not is_numeric(array):
        got = f"{len(array)} of {array.dtype}"
        raise ValueError(f"{seconds}: expected one number for each of the {len(grids)} videos, got {got}")
    steps = array.astype(np.float64).tolist()
    return Finite(Visual(*item) for item in zip(media, grids, steps, strict=True))


def joined(batches: list[Batch]) -> Batch:
    """Batches of one real row each, joined into one; padding rows are left out."""
    rows = [(batch, row) for batch in batches for row in np.flatnonzero(batch.lengths).tolist()]
    width = max(int(batch.lengths[row]) for batch, row in rows)
    tokens, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    positions = np.zeros((3, len(rows), width), np.float64)
    for number, (batch, row) in enumerate(rows):
        real, length = batch.mask[row], int(batch.lengths[row])
        tokens[number, :length], mask[number, :length] = batch.tokens[row][real], True
        assert batch.positions is not None
        positions[:, number, :length] = batch.positions[:, row, real]
    return replace(
        batches[0], tokens=tokens, mask=mask, positions=positions.astype(batches[0].positions.dtype),  # pyright: ignore
        mel=Finite(clip for batch in batches for clip in batch.mel),
        images=Finite(image for batch in batches for image in batch.images),
        videos=Finite(video for batch in batches for video in batch.videos),
    )  # fmt: skip
