"""Signals over time whose rows begin and end inside an array, and an activation between resamplings against aliasing.

The values around a row, padding or the rest of the array, never affect it.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

# The low-pass filter of both resamplings by 2: its taps, its cutoff and half its transition width, in cycles a sample.
TAPS, CUTOFF, HALF_SLOPE = 12, 0.25, 0.3
# Steps beyond a row's end that a filter of half the taps reads.
SIDE = TAPS // 4

# The values at each row's two ends.
Ends = tuple[Float[Array, "B 1 C"], Float[Array, "B 1 C"]]


@struct.dataclass
class RowBounds:
    """The extent of each row in an array.

    Attributes:
        first: the row's first step; may be outside of the array.
        end: one past the row's last step; may be outside of the array.
    """

    first: Int[Array, "B"]
    end: Int[Array, "B"]

    def scaled(self, rate: int) -> "RowBounds":
        return RowBounds(self.first * rate, self.end * rate)

    def silence(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """x with zeros outside of the rows."""
        steps = jnp.arange(x.shape[1])[None, :, None]
        inside = (steps >= self.first[:, None, None]) & (steps < self.end[:, None, None])
        return jnp.where(inside, x, 0)

    def hold(self, x: Float[Array, "B T C"], ends: Ends, at: int) -> Float[Array, "B T C"]:
        """x with the values at each row's ends repeated SIDE steps beyond. Step 0 is x's ``at``-th."""
        beyond = jnp.arange(SIDE)[None]
        steps = at + jnp.concatenate([self.first[:, None] - SIDE + beyond, self.end[:, None] + beyond], axis=1)
        steps = jnp.where(steps < 0, x.shape[1], steps)  # a negative index would count from the end
        values = jnp.repeat(jnp.concatenate(ends, axis=1), SIDE, axis=1)
        # An update in place writes only a few steps; a jnp.where would read and write all of them again.
        return x.at[jnp.arange(len(x))[:, None], steps].set(values, mode="drop")

    def ends(self, before: Float[Array, "B T C"], after: Float[Array, "B T C"], at: int) -> Ends:
        """A row's first step in ``before``, and its last step in ``after``."""

        def take(x, steps):
            return jnp.take_along_axis(x, jnp.clip(steps + at, 0, x.shape[1] - 1)[:, None, None], axis=1)

        return take(before, self.first), take(after, self.end - 1)


def kaiser_filter() -> np.ndarray:
    """A sinc under a Kaiser window, of sum 1; window and attenuation as in BigVGAN (arXiv:2206.04658)."""
    attenuation = 2.285 * (TAPS // 2 - 1) * math.pi * 4 * HALF_SLOPE + 7.95
    beta = 0.1102 * (attenuation - 8.7)  # Kaiser's formula for more than 50 dB; here it is 51
    times = np.arange(TAPS) - (TAPS - 1) / 2
    values = np.kaiser(TAPS, beta) * np.sinc(2 * CUTOFF * times)
    return (values / values.sum()).astype(np.float32)


FILTER = kaiser_filter()
# Receptive field of ``smooth`` to each side of a step.
REACH = TAPS // 2 - 1


def smooth(
    x: Float[Array, "B T C"], bounds: RowBounds, activation: Callable[[Float[Array, "B T C"]], Float[Array, "B T C"]]
) -> Float[Array, "B T C"]:
    """Upsamples by 2, applies the activation and downsamples by 2, which filters out what would be aliases.

    Both filters see the values at a row's ends repeated. A resampled signal is kept as two signals, its even and its
    odd steps, so that it needs neither zero stuffing nor strides.
    """
    steps, early, late = x.shape[1], 2 * FILTER[1::2][::-1], 2 * FILTER[::2][::-1]
    ends = bounds.ends(x, x, 0)
    # Fused loops would recompute a signal for each tap that reads it: forty times as long on a CPU.
    x = jax.lax.optimization_barrier(jnp.pad(x, [(0, 0), (2 * SIDE, 2 * SIDE), (0, 0)]))
    x = bounds.hold(x, ends, 2 * SIDE)
    even = activation(_weighted(x, early, 0, steps + 2 * SIDE))
    odd = activation(_weighted(x, late, 1, steps + 2 * SIDE))
    even, odd = jax.lax.optimization_barrier((even, odd))
    ends = bounds.ends(even, odd, SIDE)
    even, odd = bounds.hold(even, ends, SIDE), bounds.hold(odd, ends, SIDE)
    return _weighted(even, FILTER[1::2], 1, steps) + _weighted(odd, FILTER[::2], 0, steps)


def _weighted(
    x: Float[Array, "B _ C"], weights: Float[np.ndarray, "taps"], start: int, steps: int
) -> Float[Array, "B {steps} C"]:
    """A sum of ``steps`` steps of x from ``start`` on and of those after them, each with a weight."""
    y = x[:, start : start + steps] * weights[0]
    for tap, weight in enumerate(weights[1:], start + 1):
        y = y + x[:, tap : tap + steps] * weight
    return y
