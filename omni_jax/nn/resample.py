"""Signals over time whose rows have two ends, and an activation between resamplings, so that it makes no aliases.

A row lies somewhere in its array: what stands around it, padding or the rest of the array, is never heard in it.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

# Taps of the low-pass filter of both resamplings by 2, its cutoff and half the width of its slope, in cycles a sample.
TAPS, CUTOFF, HALF_SLOPE = 12, 0.25, 0.3
# Steps beyond a row's end that a filter of half the taps reads there.
SIDE = TAPS // 4


@struct.dataclass
class Span:
    """Where each row lies: steps ``first`` up to ``end``, which may be outside of the array."""

    first: Int[Array, "B"]
    end: Int[Array, "B"]

    def scaled(self, rate: int) -> "Span":
        return Span(self.first * rate, self.end * rate)

    def silence(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """Zeros around the rows."""
        steps = jnp.arange(x.shape[1])[:, None]
        inside = (steps >= self.first[:, None, None]) & (steps < self.end[:, None, None])
        return jnp.where(inside, x, 0)

    def hold(self, x: Float[Array, "B T C"], ends: tuple[Array, Array], at: int) -> Float[Array, "B T C"]:
        """What stands at a row's ends, each [B, 1, C], repeated for SIDE steps beyond them; step 0 is x's ``at``-th."""
        beyond = jnp.arange(SIDE)
        steps = at + jnp.concatenate([self.first[:, None] - SIDE + beyond, self.end[:, None] + beyond], axis=1)
        steps = jnp.where(steps < 0, x.shape[1], steps)  # a negative one would count from behind
        values = jnp.repeat(jnp.concatenate(ends, axis=1), SIDE, axis=1)
        # In place: a few steps are written, where a choice at every step would read and write all of them again.
        return x.at[jnp.arange(len(x))[:, None], steps].set(values, mode="drop")

    def ends(
        self, before: Float[Array, "B T C"], after: Float[Array, "B T C"], at: int
    ) -> tuple[Float[Array, "B 1 C"], Float[Array, "B 1 C"]]:
        """A row's first step of ``before``, and its last of ``after``."""

        def take(x, steps):
            return jnp.take_along_axis(x, jnp.clip(steps + at, 0, x.shape[1] - 1)[:, None, None], axis=1)

        return take(before, self.first), take(after, self.end - 1)


def kaiser_filter() -> np.ndarray:
    """A sinc cut off by Kaiser's window, of sum 1: window and attenuation as in BigVGAN (arXiv:2206.04658)."""
    attenuation = 2.285 * (TAPS // 2 - 1) * math.pi * 4 * HALF_SLOPE + 7.95
    beta = 0.1102 * (attenuation - 8.7)  # Kaiser's formula for more than 50 dB; here are 51
    times = np.arange(TAPS) - (TAPS - 1) / 2
    values = np.kaiser(TAPS, beta) * np.sinc(2 * CUTOFF * times)
    return (values / values.sum()).astype(np.float32)


FILTER = kaiser_filter()
# Steps to each side of a step that have a say in what ``smooth`` makes of it.
REACH = TAPS // 2 - 1


def smooth(
    x: Float[Array, "B T C"], span: Span, activation: Callable[[Float[Array, "B T C"]], Float[Array, "B T C"]]
) -> Float[Array, "B T C"]:
    """Twice the steps, the activation, half the steps: what it adds above the highest frequency is filtered out.

    Both filters see a row's ends repeated. A resampled signal is kept as two, its even and its odd steps, so that no zeros
    are stuffed in and no strides are needed.
    """
    steps, early, late = x.shape[1], 2 * FILTER[1::2][::-1], 2 * FILTER[::2][::-1]
    ends = span.ends(x, x, 0)
    # Fused loops would compute a signal anew for each of the taps that read it: forty times as long on a CPU.
    x = jax.lax.optimization_barrier(jnp.pad(x, [(0, 0), (2 * SIDE, 2 * SIDE), (0, 0)]))
    x = span.hold(x, ends, 2 * SIDE)
    even = activation(_weighted(x, early, 0, steps + 2 * SIDE))
    odd = activation(_weighted(x, late, 1, steps + 2 * SIDE))
    even, odd = jax.lax.optimization_barrier((even, odd))
    ends = span.ends(even, odd, SIDE)
    even, odd = span.hold(even, ends, SIDE), span.hold(odd, ends, SIDE)
    return _weighted(even, FILTER[1::2], 1, steps) + _weighted(odd, FILTER[::2], 0, steps)


def _weighted(x, weights, start, steps) -> Float[Array, "B T C"]:
    first, *others = (x[:, start + tap : start + tap + steps] * weight for tap, weight in enumerate(weights))
    return sum(others, first)
