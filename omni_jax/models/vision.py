"""What the vision encoders of both families share: patches' embedding, rope by place, and blocks, some rows at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from omni_jax.config import Qwen25VisionEncoderConfig, VisionEncoderConfig
from omni_jax.nn.layers import Init, LayerNorm, Linear, RMSNorm
from omni_jax.nn.packed_attention import Heads, attend_spans
from omni_jax.nn.rope import CosSin, rotate
from omni_jax.parallel.sharding import mesh_of

EPS = 1e-6
ROPE_THETA = 10_000.0
ROWS = 1024


class Block(nnx.Module):
    """Pre-norm block: queries, keys and values from one kernel with biases."""

    def __init__(
        self,
        init: Init,
        config: VisionEncoderConfig | Qwen25VisionEncoderConfig,
        norm: type[LayerNorm] | type[RMSNorm],
        ffn: Callable[[Init], Any],
    ):
        d, n, h = config.width, config.heads, config.width // config.heads
        self.attention_norm = norm(init, d, eps=EPS)
        self.qkv = Linear(init, (d,), (3, n, h), axes=("embed", None, "heads", "head"), bias=True)
        self.o = Linear(init, (n, h), (d,), axes=("heads", "head", "embed"), bias=True)
        self.ffn_norm = norm(init, d, eps=EPS)
        self.ffn = ffn(init)

    def __call__(
        self, x: Float[Array, "P D"], cos_sin: CosSin, first: Int[Array, "P"], last: Int[Array, "P"]
    ) -> Float[Array, "P D"]:
        q, k, v = in_rows(self._project, x, *cos_sin)
        return in_rows(self._finish, x, attend_spans(q, k, v, first, last, mesh=mesh_of(self.qkv.kernel[...])))

    def _project(
        self, x: Float[Array, "T D"], cos: Float[Array, "T half"], sin: Float[Array, "T half"]
    ) -> tuple[Heads, Heads, Heads]:
        """Rotated queries and keys, and values. The rotation is in float32 for any dtype of the activations."""
        q, k, v = jnp.moveaxis(self.qkv(self.attention_norm(x)), 1, 0)
        q, k = (rotate(part[None].astype(jnp.float32), cos[None], sin[None])[0].astype(x.dtype) for part in (q, k))
        return q, k, v

    def _finish(self, x: Float[Array, "T D"], attended: Heads) -> Float[Array, "T D"]:
        x = x + self.o(attended)
        return x + self.ffn(self.ffn_norm(x))


def in_rows(function: Callable[..., Any], *arrays: Array) -> Any:
    """``function`` of the rows of arrays, at most ROWS at a time, so that its widest intermediates stay small."""
    length = arrays[0].shape[0]
    count = -(-length // ROWS)
    while length % count:
        count += 1
    if count == 1:
        return function(*arrays)
    blocks = [x.reshape(count, -1, *x.shape[1:]) for x in arrays]
    made = jax.lax.map(lambda block: function(*block), blocks)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), made)


def embed_patches(patches: Float[Array, "T C"], linear: Linear) -> Float[Array, "T D"]:
    """Pixels through the kernel [channels, frames, rows, columns, D], in its dtype."""
    kernel = linear.kernel
    return linear(patches.astype(kernel.dtype).reshape(-1, *kernel.shape[:-1]))
