"""Causal convolutions over time, which carry their past from call to call, and the activation between them.

All arrays are [B, T, C], channels last: the layout that a TPU and XLA's CPU kernels want.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from omni_jax.nn.layers import Init, expand_to

# sin(r)^2 = r^2 * sum of c_i r^(2i), |r| <= pi / 2: the minimax polynomial, with an error of 9e-9 before rounding.
SIN_SQUARED = (1.0, -0.33333287, 0.044442486, -0.0031716572, 0.00013902587, -3.5812666e-06)
# pi in two parts; the first has so few bits that its multiples are exact.
PI_HIGH, PI_LOW = 3.140625, math.pi - 3.140625


def sin_squared(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """sin(x)^2 to 1e-6 for |x| up to 10,000, by a polynomial within its period of pi, in float32.

    A sine that is exact for arguments of any size would take a quarter of the vocoder's time on a CPU; this takes none.
    """
    x32 = x.astype(jnp.float32)
    periods = jnp.round(x32 * jnp.float32(1 / math.pi))
    rest = x32 - periods * jnp.float32(PI_HIGH) - periods * jnp.float32(PI_LOW)
    square = jnp.square(rest)
    y = jnp.full_like(square, SIN_SQUARED[-1])
    for coefficient in SIN_SQUARED[-2::-1]:
        y = y * square + coefficient
    return (y * square).astype(x.dtype)


class SnakeBeta(nnx.Module):
    """x + sin(exp(alpha) x)^2 / exp(beta), with alpha and beta for each channel (arXiv:2206.04658)."""

    def __init__(self, init: Init, channels: int):
        self.alpha = init.full((channels,), (None,), 0.0)
        self.beta = init.full((channels,), (None,), 0.0)

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        alpha, beta = (expand_to(each[...], x) for each in (self.alpha, self.beta))
        return x + sin_squared(x * jnp.exp(alpha)) * (1 / (jnp.exp(beta) + 1e-9))


class CausalState:
    """The steps before the T new steps of each convolution: taken from the last call, kept for the next.

    A network over time makes one of these a call and passes it to its layers, which use it in the same order each time.

    Attributes:
        tails: the last steps of each convolution's input, which the next call needs; one array [B, history, C] each.
        lag: how many steps the signal is behind its newest input, at the present rate. A transposed convolution that
            looks one step ahead increases it; a row's first steps then lie before its beginning.
    """

    def __init__(self, tails: Sequence[Array] | None, seen: Int[Array, "B"], new: Int[Array, "B"], frames: int):
        """Starts a call on the tails of the last one.

        Args:
            tails: the last call's tails; None at the beginning.
            seen: frames of each row in earlier calls.
            new: real frames of each row in this call; they come first.
            frames: frames of this call, padding included.
        """
        self.tails: list[Array] = []
        self.lag = 0
        self._old = None if tails is None else iter(tails)
        self._seen, self._new, self._frames = seen, new, frames

    def positions(self, steps: int) -> Int[Array, "B {steps}"]:
        """The index of each step in its row; negative before the row's beginning."""
        return self._seen[:, None] * (steps // self._frames) - self.lag + jnp.arange(steps)[None]

    def join(self, x: Float[Array, "B T C"], history: int) -> Float[Array, "B {history}+T C"]:
        """The ``history`` steps before x, then x; zeros before the row's beginning."""
        batch, steps, channels = x.shape
        if self.lag:
            x = jnp.where(self.positions(steps)[..., None] >= 0, x, 0)
        old = jnp.zeros((batch, history, channels), x.dtype) if self._old is None else next(self._old)
        x = jnp.concatenate([old, x], axis=1)
        real = self._new * (steps // self._frames)
        self.tails.append(jax.vmap(lambda row, end: jax.lax.dynamic_slice_in_dim(row, end, history))(x, real))
        return x


class Conv1d(nnx.Module):
    """Causal convolution with a kernel [width, ins, outs]; depthwise where ins is 1 and x has outs channels."""

    def __init__(self, init: Init, ins: int, outs: int, width: int):
        self.kernel = init.normal((width, ins, outs), (None, None, None), fan_in=width * ins)
        self.bias = init.full((outs,), (None,), 0.0)

    def __call__(self, x: Float[Array, "B T C"], past: CausalState, *, dilation: int = 1) -> Float[Array, "B T C2"]:
        kernel = self.kernel[...]
        steps, history = x.shape[1], (len(kernel) - 1) * dilation
        if not history:
            return x @ kernel[0] + expand_to(self.bias[...], x)
        x = past.join(x, history)
        if kernel.shape[1] == 1 and x.shape[2] > 1:
            # Each tap's product and sum fuse; a grouped convolution would use one lane of a matrix unit a channel.
            y = sum(x[:, tap * dilation :][:, :steps] * kernel[tap][None] for tap in range(len(kernel)))
        else:
            y = jax.lax.conv_general_dilated(
                x, kernel, (1,), "VALID", rhs_dilation=(dilation,), dimension_numbers=("NWC", "WIO", "NWC")
            )
        return y + expand_to(self.bias[...], x)


class ConvTranspose1d(Conv1d):
    """Transposed convolution of stride ``rate``, kernel [rate or 2 rate, ins, outs].

    With a kernel of two strides, a step's samples depend on the next step too. The ends that have only one of the two
    are cut off, as in the reference: the signal then is one step shorter, and in a stream one step behind.
    """

    def __call__(self, x: Float[Array, "B T C"], past: CausalState, *, rate: int) -> Float[Array, "B T*{rate} C2"]:
        batch, steps, _ = x.shape
        wide = len(self.kernel) > rate
        if wide:
            x = past.join(x, 1)
        y = jnp.einsum("BTC,WCD->BTWD", x, self.kernel[...])
        if wide:
            y = y[:, :-1, rate:] + y[:, 1:, :rate]
        past.lag = (past.lag + wide) * rate
        return y.reshape(batch, steps * rate, -1) + expand_to(self.bias[...], x)
