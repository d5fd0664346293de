"""Frames of any size in a few static shapes: patches of whole frames, packed into calls of the encoder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from omni_jax.buckets import CALL_PATCHES, patch_slots
from omni_jax.processing.arrays import is_numeric, to_numpy
from omni_jax.processing.audio_packing import rows_of

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class PatchPack:
    """One call of the vision encoder (see VisionEncoder.encode).

    Attributes:
        patches: zero at padding.
        place: row and column of each patch in its frame.
        size: rows and columns of the patch's frame, 0 for padding.
        first: index of the first patch of the patch's frame.
        order: index, within the whole request, of the feature in each row of the result (media one after another), -1
            for none.
    """

    patches: Float[np.ndarray, "P C"]
    place: Int[np.ndarray, "P 2"]
    size: Int[np.ndarray, "P 2"]
    first: Int[np.ndarray, "P"]
    order: Int[np.ndarray, "M"]

    def rows(self, index: Int[np.ndarray, "B T"]) -> Int[np.ndarray, "B T"]:
        """Maps indices of visual tokens to rows of this call's result; -1 for tokens of another call."""
        return rows_of(self.order, index)


def pack(
    media: Sequence[Float[np.ndarray, "_P C"]], grids: Sequence[Grid], merge: int, dtype: Any = np.float32
) -> Iterator[PatchPack]:
    """Fills calls with whole frames, in order; a frame larger than a call gets a call of its own.

    Args:
        media: patches of each image or video, frame after frame.
        grids: frames, rows and columns of each, in patches.
        merge: side, in patches, of the group that becomes one feature.
        dtype: the encoder's, so that no unused bytes are sent to the device.
    """
    waiting: list[tuple[np.ndarray, int, int]] = []
    filled = token = 0
    for patches, (frames, rows, columns) in zip(media, grids, strict=True):
        size = rows * columns
        for frame in range(frames):
            if waiting and filled + size > CALL_PATCHES:
                yield _fill(waiting, token, merge, dtype)
                token += filled // merge**2
                waiting, filled = [], 0
            waiting.append((patches[frame * size : (frame + 1) * size], rows, columns))
            filled += size
    if waiting:
        yield _fill(waiting, token, merge, dtype)


def _fill(frames: Sequence[tuple[np.ndarray, int, int]], token: int, merge: int, dtype: Any) -> PatchPack:
    used = sum(len(patches) for patches, _, _ in frames)
    slots = patch_slots(used)
    # Copying frames here is the only pass over the pixels; pages of zeros cost nothing until the padding is read.
    packed = np.zeros((slots, frames[0][0].shape[1]), dtype)
    place, size = np.zeros((slots, 2), np.int32), np.zeros((slots, 2), np.int32)
    first, order = np.zeros(slots, np.int32), np.full(slots // merge**2, -1, np.int32)
    order[: used // merge**2] = token + np.arange(used // merge**2)
    at = 0
    for patches, rows, columns in frames:
        here = slice(at, at + len(patches))
        packed[here] = patches
        place[here], size[here], first[here] = places(rows, columns, merge), (rows, columns), at
        at += len(patches)
    return PatchPack(patches=packed, place=place, size=size, first=first, order=order)


def places(rows: int, columns: int, merge: int) -> Int[np.ndarray, "P 2"]:
    """Row and column of each patch of a frame: groups of merge x merge in reading order, as in each group."""
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    groups = grid.reshape(rows // merge, merge, columns // merge, merge, 2).swapaxes(1, 2)
    return groups.reshape(-1, 2).astype(np.int32)


def split_patches(
    patches: Any, grid: Any, *, width: int | None = None, merge: int = 1
) -> tuple[list[np.ndarray], list[Grid]]:
    """Splits patches [P, C] of several media into those of each; also gives their grids as whole numbers.

    Args:
        patches: of all media, one after another.
        grid: frames, rows and columns of each medium, [n, 3].
        width: expected values of a patch, C; None for any.
        merge: rows and columns must divide by it.

    Raises:
        ValueError: the patches do not fill the grid, the grid does not divide into groups, or patches have another
            width.
    """
    try:
        array, sizes = to_numpy(patches), to_numpy(grid)
    except ValueError:
        raise ValueError("patches and grid: expected arrays, got rows of unequal length") from None
    sizes = np.atleast_2d(sizes) if sizes.size else np.empty((0, 3), int)
    if sizes.ndim != 2 or sizes.shape[1] != 3 or sizes.dtype.kind not in "iu":
        raise ValueError(
            f"grid: expected whole numbers (frames, rows, columns) of each medium, [n, 3], got {sizes.dtype} of shape "
            f"{list(sizes.shape)}"
        )
    if (sizes < 1).any() or (sizes[:, 1:] % merge).any():
        raise ValueError(
            f"grid: expected at least 1 frame, and rows and columns that divide by {merge}, got {sizes.tolist()}"
        )
    if array.ndim != 2 or (width and array.shape[1] != width) or not is_numeric(array):
        expected = f"[P, {width or 'C'}]"
        raise ValueError(
            f"patches: expected numbers of shape {expected}, got {array.dtype} of shape {list(array.shape)}"
        )
    counts = sizes.astype(np.int64).prod(axis=1)
    if counts.sum() != len(array):
        raise ValueError(f"patches: expected {counts.sum()} for the grid {sizes.tolist()}, got {len(array)}")
    array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise ValueError("patches: expected numbers, got NaN or infinite values")
    media = np.split(array, np.cumsum(counts)[:-1]) if len(counts) else []
    return media, [(int(t), int(h), int(w)) for t, h, w in sizes]
