"""Dense layers, and the one place that declares parameters: shape, logical axes, dtype and initialiser together."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

Axes = tuple[str | None, ...]


def expand_to(array: Array, like: Array) -> Array:
    """The array with as many axes as ``like``; the new ones come first and have size 1. Ranks are never mixed."""
    return jnp.expand_dims(array, range(like.ndim - array.ndim))


class Init:
    """Makes the parameters of a module tree, all of one dtype, each with a fresh random key.

    A parameter carries the logical names of its axes as metadata. Names count from the right, so the leading axis of
    stacked layers needs none. Under ``jax.eval_shape`` the same declarations give the abstract model.
    """

    def __init__(self, key: jax.Array, dtype: jnp.dtype | type):
        self.rngs, self.dtype = nnx.Rngs(key), dtype

    def key(self) -> jax.Array:
        return self.rngs()

    def normal(self, shape: Sequence[int], axes: Axes, *, fan_in: int) -> nnx.Param:
        value = jax.random.normal(self.key(), tuple(shape), self.dtype)
        return nnx.Param(value * jnp.asarray(1 / math.sqrt(fan_in), self.dtype), axes=axes)

    def full(self, shape: Sequence[int], axes: Axes, value: float) -> nnx.Param:
        return nnx.Param(jnp.full(tuple(shape), value, self.dtype), axes=axes)


class Linear(nnx.Module):
    """y = x @ kernel (+ bias), over any number of input and output axes.

    Args:
        init: makes the parameters.
        ins: sizes of the contracted axes.
        outs: sizes of the new axes.
        axes: the logical name of each axis of the kernel, ins then outs.
        bias: whether to add a bias.
    """

    def __init__(self, init: Init, ins: Sequence[int], outs: Sequence[int], *, axes: Axes, bias: bool = False):
        self.kernel = init.normal((*ins, *outs), axes, fan_in=math.prod(ins))
        self.bias = init.full(outs, axes[len(ins) :], 0.0) if bias else None
        self.contracted = len(ins)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        multiply = partial(jnp.tensordot, axes=self.contracted)
        rows = x.shape[: x.ndim - self.contracted]
        if rows and math.prod(rows) == 1 and self.kernel.ndim == 3:
            y = jax.lax.platform_dependent(x, self.kernel[...], tpu=partial(_doubled, multiply), default=multiply)
        else:
            y = multiply(x, self.kernel[...])
        return y if self.bias is None else y + expand_to(self.bias[...], y)


def _doubled(multiply, x: Float[Array, "1 ..."], kernel: Array) -> Float[Array, "1 ..."]:
    """Computes a single row as two rows.

    For one row, a TPU's compiler wants another layout of the kernel than for several (``models/memory_layout.py``) and
    would transpose kernels at every call: 7.6 GB of a dense model of 7 billion parameters.
    """
    return multiply(jax.lax.optimization_barrier(jnp.concatenate([x, x])), kernel)[:1]


class RMSNorm(nnx.Module):
    """Root-mean-square norm (arXiv:1910.07467) in float32, cast back *before* the scale, as the reference does."""

    def __init__(self, init: Init, width: int, *, eps: float):
        self.scale = init.full((width,), (None,), 1.0)
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return x32.astype(x.dtype) * expand_to(self.scale[...], x)


class LayerNorm(nnx.Module):
    """Layer norm with scale and bias, in float32."""

    def __init__(self, init: Init, width: int, *, eps: float):
        self.scale = init.full((width,), (None,), 1.0)
        self.bias = init.full((width,), (None,), 0.0)
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        scale, bias = (expand_to(each[...].astype(jnp.float32), x) for each in (self.scale, self.bias))
        return (x32 * scale + bias).astype(x.dtype)


class Embedding(nnx.Module):
    """Looks up rows of a table."""

    def __init__(self, init: Init, rows: int, width: int, *, axes: Axes = ("vocab", "embed")):
        self.table = init.normal((rows, width), axes, fan_in=width)

    def __call__(self, ids: Int[Array, "*rows"]) -> Float[Array, "*rows D"]:
        return jnp.take(self.table[...], ids, axis=0, mode="clip")


class GatedMlp(nnx.Module):
    """SwiGLU (arXiv:2002.05202): down(silu(gate x) * up x). Gate and up are one kernel, so that one pass reads both."""

    def __init__(self, init: Init, width: int, ffn_width: int):
        self.gate_up = Linear(init, (width,), (2, ffn_width), axes=("embed", None, "ffn"))
        self.down = Linear(init, (ffn_width,), (width,), axes=("ffn", "embed"))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        gate_up = self.gate_up(x)
        return self.down(jax.nn.silu(gate_up[..., 0, :]) * gate_up[..., 1, :])


class Mlp(nnx.Module):
    """down(gelu(up x)) with biases; the exact (erf) GELU unless ``tanh``."""

    def __init__(self, init: Init, ins: int, ffn_width: int, outs: int, *, tanh: bool = False):
        self.up = Linear(init, (ins,), (ffn_width,), axes=("embed", "ffn"), bias=True)
        self.down = Linear(init, (ffn_width,), (outs,), axes=("ffn", "embed"), bias=True)
        self.tanh = tanh

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D2"]:
        return self.down(jax.nn.gelu(self.up(x), approximate=self.tanh))
