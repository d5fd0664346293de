"""Rotary position embedding (arXiv:2104.09864) and its multimodal form M-RoPE (arXiv:2409.12191), half-split layout."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

# Cosines and sines by which the halves of a head turn.
CosSin = tuple[Float[Array, "*rows half"], Float[Array, "*rows half"]]


def frequencies(head_width: int, theta: float) -> Float[np.ndarray, "{head_width}//2"]:
    """theta ** (-2k / head_width), k = 0 .. head_width / 2 - 1, float32."""
    # Rounded where the reference rounds: an error in the last digit here is 2e-3 of a radian at position 30,000.
    exponents = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
    return np.float32(1) / (np.float64(theta) ** exponents).astype(np.float32)


def angles(positions: Num[Array, "*rows"], width: int, theta: float) -> Float[Array, "*rows {width}//2"]:
    """What a head of a width turns by at positions, in float32."""
    x32 = positions.astype(jnp.float32)[..., None]
    return x32 * jnp.expand_dims(jnp.asarray(frequencies(width, theta)), range(positions.ndim))


def cos_sin(angles: Float[Array, "*rows half"], dtype: Any = jnp.float32) -> CosSin:
    """Cosines and sines of angles, cast to ``dtype``."""
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def cos_sin_by_place(place: Int[Array, "P 2"], head_width: int, theta: float) -> CosSin:
    """Rope in two dimensions: the row turns the first half of the frequencies, the column the second."""
    return cos_sin(angles(place, head_width // 2, theta).reshape(-1, head_width // 2))


def interleaved_axes(section: tuple[int, int, int], half: int) -> Int[np.ndarray, "{half}"]:
    """The coordinate of each frequency in Qwen3's M-RoPE: 012 012 ... then 0 (section[0] takes the rest).

    interleaved_axes((24, 20, 20), 64) -> [0 1 2] * 20 + [0] * 4
    """
    axes = np.zeros(half, dtype=np.int32)
    axes[1 : 3 * section[1] : 3] = 1
    axes[2 : 3 * section[2] : 3] = 2
    return axes


def run_axes(section: tuple[int, int, int]) -> Int[np.ndarray, "half"]:
    """The coordinate of each frequency in Qwen2.5's M-RoPE: a contiguous run of each.

    run_axes((16, 24, 24)) -> [0] * 16 + [1] * 24 + [2] * 24
    """
    return np.repeat(np.arange(3, dtype=np.int32), section)


def rotation(
    positions: Num[Array, "3 B T"],
    *,
    head_width: int,
    theta: float,
    section: tuple[int, int, int] | None,
    interleaved: bool = True,
    dtype,
) -> tuple[Float[Array, "B T {head_width}//2"], Float[Array, "B T {head_width}//2"]]:
    """Cosines and sines of positions (time, height, width; they may be fractional), computed in float32.

    Without ``section`` only the first coordinate counts; with it, ``interleaved`` says how coordinates share the
    frequencies. The results are cast to ``dtype`` before use because the reference rotates in the activations' dtype.
    """
    if section is None:
        return cos_sin(angles(positions[0], head_width, theta), dtype)
    axes = interleaved_axes(section, head_width // 2) if interleaved else run_axes(section)
    inverse = jnp.asarray(frequencies(head_width, theta))[None, None]
    return cos_sin(jnp.moveaxis(positions.astype(jnp.float32)[axes], 0, -1) * inverse, dtype)


def rotate(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T H//2"], sin: Float[Array, "B T H//2"]
) -> Float[Array, "B T N H"]:
    """Rotates the pairs (k, k + H/2) of each head."""
    cos, sin = cos[:, :, None], sin[:, :, None]
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
