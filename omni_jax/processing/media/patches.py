"""Pictures to patches: choosing a picture's size, resizing, normalising, and the layout of its patches."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from omni_jax.errors import about, listed, shown
from omni_jax.processing.media.image import ImageSource, load, require_area, require_ratio
from omni_jax.processing.media.source import DEFAULTS, describe
from omni_jax.processing.options import MediaOptions


@dataclass(frozen=True)
class PatchConfig:
    """How pictures are cut into patches, with Qwen3-Omni's published values as defaults.

    Attributes:
        patch: Side of a patch, in pixels.
        temporal_patch: Frames in a patch.
        merge: Side, in patches, of the block that becomes one token.
        mean: Of red, green and blue, in 0 to 1.
        std: Of red, green and blue, in 0 to 1.
        min_pixels: Lower bound of a resized picture's area.
        max_pixels: Upper bound of a resized picture's area.

    Raises:
        ValueError: with every fault in one line, by the published names.
    """

    patch: int = 16
    temporal_patch: int = 2
    merge: int = 2
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    min_pixels: int = 3136
    max_pixels: int = 12_845_056

    def __post_init__(self):
        _raise_faults("PatchConfig", {key: getattr(self, field) for key, field in _PUBLISHED.items()})

    @property
    def factor(self) -> int:
        """The side of a token's block in pixels: both sides of a picture are multiples of it."""
        return self.patch * self.merge

    @classmethod
    def from_hf(cls, preprocessor_config: Mapping[str, Any], *, file: str = "preprocessor_config.json") -> Self:
        """Reads the image part of a published, parsed preprocessor_config.json; errors name it by ``file``.

        Newer Transformers save the bounds of the area as size.shortest_edge and size.longest_edge, older ones as
        min_pixels and max_pixels.

        Raises:
            ValueError: with every missing or impossible value in one line.
        """
        published = dict(preprocessor_config)
        size = published.get("size")
        for key, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            if published.get(key) is None:
                published.pop(key, None)
                if isinstance(size, Mapping) and edge in size:
                    published[key] = size[edge]
        _raise_faults(file, published)
        values: dict[str, Any] = {field: published[key] for key, field in _PUBLISHED.items()}
        values.update(mean=tuple(values["mean"]), std=tuple(values["std"]))
        return cls(**values)


_PUBLISHED = {
    "patch_size": "patch",
    "temporal_patch_size": "temporal_patch",
    "merge_size": "merge",
    "image_mean": "mean",
    "image_std": "std",
    "min_pixels": "min_pixels",
    "max_pixels": "max_pixels",
}
# Steps that a published file may switch off or change, but that every model of the family needs as they are.
_FIXED = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3, "rescale_factor": 1 / 255}


def _raise_faults(where: str, published: Mapping[str, Any]):
    """Checks values under their published names, and raises one ValueError for all faults."""
    most = published.get("max_pixels")
    side = ("a whole number from 1 to 1024", lambda value: _is_whole(value, 1, 1024))
    rules = {
        "patch_size": side,
        "temporal_patch_size": side,
        "merge_size": side,
        "image_mean": ("three numbers from 0 to 1", lambda value: _is_colour(value, 0)),
        "image_std": ("three numbers above 0, up to 1", lambda value: _is_colour(value, 1e-6)),
        "min_pixels": ("a whole number up to max_pixels", lambda value: _is_whole(value, 0, most)),
        "max_pixels": ("a whole number above 0", lambda value: _is_whole(value, 1, math.inf)),
    }
    faults = [
        f"{key} is {shown(published[key])} (expected {expected})" if key in published else f"{key} is missing"
        for key, (expected, is_right) in rules.items()
        if key not in published or not is_right(published[key])
    ]
    for key, expected in _FIXED.items():
        if published.get(key) not in (None, expected):
            faults.append(f"{key} is {shown(published[key])} (expected {expected!r})")
    if faults:
        raise ValueError(f"{where}: {listed(faults)}")


def _is_whole(value: Any, least: int, most: Any) -> bool:
    return type(value) is int and least <= value <= (most if isinstance(most, (int, float)) else math.inf)


def _is_colour(value: Any, least: float) -> bool:
    """Whether a value is three numbers from `least` to 1."""
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        return False
    return all(type(part) in (int, float) and least <= part <= 1 for part in value)


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The size nearest a picture's own whose sides are multiples of `factor` and whose area is within bounds.

    The rule is that of Transformers' Qwen2-VL processors. One block is the minimum, whatever the bounds.

    Args:
        height: The picture's, in pixels.
        width: The picture's, in pixels.
        factor: Side of a token's block, in pixels.
        min_pixels: Lower bound of the area.
        max_pixels: Upper bound of the area.

    Returns:
        (height, width).

    Raises:
        ValueError: in one line, when a side is more than 200 times the other.
    """
    require_ratio(height, width)
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor**2 > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, columns = math.floor(height / shrink / factor), math.floor(width / shrink / factor)
    elif rows * columns * factor**2 < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    return max(rows, 1) * factor, max(columns, 1) * factor


def image_size(height: int, width: int, config: PatchConfig, options: MediaOptions) -> tuple[int, int]:
    """The size (height, width) that a picture of a given size is resized to.

    The area's bounds are those of the options, else the checkpoint's. With resized_height and resized_width the picture
    is treated as if it had that size, and the bounds are the checkpoint's.

    Raises:
        ValueError: in one line, when a side is more than 200 times the other, or min_pixels is too large.
    """
    low, high = config.min_pixels, config.max_pixels
    if options.resized_height is not None and options.resized_width is not None:
        height, width = options.resized_height, options.resized_width
    else:
        low = low if options.min_pixels is None else options.min_pixels
        high = high if options.max_pixels is None else options.max_pixels
    rows, columns = smart_resize(height, width, factor=config.factor, min_pixels=low, max_pixels=high)
    require_area(rows, columns)
    return rows, columns


def resize(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Resizes an RGB image to (height, width), bicubic: uint8 [h, w, 3], read-only."""
    height, width = size
    if (image.height, image.width) != (height, width):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def to_patches(frames: np.ndarray, config: PatchConfig) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Normalises frames and lays them out as patches, as Transformers' Qwen2-VL processors do.

    Patches are in the order of their merged blocks, row by row, and step by step in time; a patch's values in the
    order channel, frame, row, column. If frames do not fill the last step, the last frame is repeated.

    Args:
        frames: uint8 [n, h, w, 3], h and w multiples of `config.factor`.
        config: Sizes, mean and deviation.

    Returns:
        Float32 patches [P, C], C = 3 * temporal_patch * patch**2, and the grid (t, h, w) in patches, P = t * h * w.

    Raises:
        ValueError: in one line, when frames are not as above.
    """
    if frames.ndim != 4 or not frames.size or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"patches: expected uint8 frames [n, h, w, 3], got {frames.dtype} {list(frames.shape)}")
    count, height, width, _ = frames.shape
    if height % config.factor or width % config.factor:
        raise ValueError(f"patches: frames of {height} x {width}; expected multiples of {config.factor}; use resize()")
    patch, merge, pair = config.patch, config.merge, config.temporal_patch
    steps, bands, blocks = -(-count // pair), height // config.factor, width // config.factor
    pixels = frames.reshape(count, bands, merge, patch, blocks, merge, patch, 3)
    pixels = pixels.transpose(1, 7, 4, 2, 5, 0, 3, 6)
    # 256 values a channel, rounded at each step as the processors do; with a lookup, pixels are written just once.
    values = (np.arange(256) * (1 / 255)).astype(np.float32)
    tables = [(values - np.float32(mean)) / np.float32(std) for mean, std in zip(config.mean, config.std, strict=True)]
    out = np.empty((steps, bands, blocks, merge, merge, 3, pair, patch, patch), np.float32)
    for step, band, channel in np.ndindex(steps, bands, 3):
        chosen = pixels[band, channel, :, :, :, step * pair : (step + 1) * pair]
        found, into = tables[channel].take(chosen), out[step, band, :, :, :, channel]
        filled = found.shape[3]
        into[:, :, :, :filled] = found
        into[:, :, :, filled:] = found[:, :, :, -1:]
    grid = steps, bands * merge, blocks * merge
    return out.reshape(math.prod(grid), -1), grid


def prepare(
    source: ImageSource, config: PatchConfig, options: MediaOptions = DEFAULTS, *, name: str | None = None
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Reads a picture, resizes it as the options ask, and lays out its patches.

    Args:
        source: As for `load`.
        config: As for `patches`.
        options: As for `load`.
        name: As for `load`.

    Returns:
        Float32 patches [P, C] and the grid (1, h, w), as from `patches`.

    Raises:
        ValueError: in one line, as in `load` and `image_size`.
    """
    name = name or describe(source, "image")
    image = load(source, name=name, options=options)
    with about(name):
        size = image_size(image.height, image.width, config, options)
    return to_patches(resize(image, size)[None], config)
