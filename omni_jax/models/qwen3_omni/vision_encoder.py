"""The vision encoder of Qwen3-Omni: patches of images and video frames to features of the thinker's width.

Shapes are static. A call takes a fixed number of patches, filled with the frames of any number of images and videos one
after another (processing/vision_packing.py). Each patch comes with its place in its frame, the frame's size and where
the frame begins; positions, rope and attention need no more. A frame pair of a video attends only to itself, as an
image does.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from omni_jax.config import VisionEncoderConfig
from omni_jax.nn.layers import Embedding, Init, LayerNorm, Linear, Mlp
from omni_jax.nn.packed_attention import attend_spans
from omni_jax.nn.rope import Turn, frequencies, rotate
from omni_jax.nn.stack import scan, stack
from omni_jax.parallel.sharding import mesh_of

ROPE_THETA = 10_000.0
ROWS = 1024


class Block(nnx.Module):
    """Pre-norm block: queries, keys and values from one kernel, tanh GELU, biases everywhere."""

    def __init__(self, init: Init, config: VisionEncoderConfig):
        d, n, h = config.width, config.heads, config.width // config.heads
        self.attention_norm = LayerNorm(init, d, eps=1e-6)
        self.qkv = Linear(init, (d,), (3, n, h), axes=("embed", None, "heads", "head"), bias=True)
        self.o = Linear(init, (n, h), (d,), axes=("heads", "head", "embed"), bias=True)
        self.ffn_norm = LayerNorm(init, d, eps=1e-6)
        self.ffn = Mlp(init, d, config.ffn_width, d, tanh=True)

    def __call__(
        self, x: Float[Array, "P D"], turn: Turn, first: Int[Array, "P"], last: Int[Array, "P"]
    ) -> Float[Array, "P D"]:
        q, k, v = in_rows(self._project, x, *turn)
        return in_rows(self._finish, x, attend_spans(q, k, v, first, last, mesh=mesh_of(self.qkv.kernel[...])))

    def _project(self, x, cos, sin):
        """Rotated queries and keys, and values. The rotation is in float32 for any dtype of the activations."""
        q, k, v = jnp.moveaxis(self.qkv(self.attention_norm(x)), 1, 0)
        q, k = (rotate(part[None].astype(jnp.float32), cos[None], sin[None])[0].astype(x.dtype) for part in (q, k))
        return q, k, v

    def _finish(self, x, attended):
        x = x + self.o(attended)
        return x + self.ffn(self.ffn_norm(x))


def in_rows(function, *arrays: Array):
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


class Merger(nnx.Module):
    """Merges merge x merge patches into one feature.

    The deepstack mergers normalise after joining the patches, the final merger before.
    """

    def __init__(self, init: Init, config: VisionEncoderConfig, *, joined_norm: bool):
        joined = config.width * config.merge**2
        self.norm = LayerNorm(init, joined if joined_norm else config.width, eps=1e-6)
        self.mlp = Mlp(init, joined, joined, config.out_width)
        self.joined_norm, self.joined = joined_norm, joined

    def __call__(self, x: Float[Array, "P D"]) -> Float[Array, "M D2"]:
        if self.joined_norm:
            return self.mlp(self.norm(x.reshape(-1, self.joined)))
        return self.mlp(self.norm(x).reshape(-1, self.joined))


class VisionEncoder(nnx.Module):
    """Reference: Qwen3OmniMoeVisionEncoder (arXiv:2509.17765); deepstack: arXiv:2406.04334."""

    def __init__(self, init: Init, config: VisionEncoderConfig):
        patch = (config.channels, config.temporal_patch, config.patch, config.patch)
        self.patches = Linear(init, patch, (config.width,), axes=(None, None, None, None, "embed"), bias=True)
        self.positions = Embedding(init, config.positions, config.width, axes=(None, "embed"))
        self.layers = stack(init, config.layers, lambda init: Block(init, config))
        self.merger = Merger(init, config, joined_norm=False)
        self.deepstack = stack(init, len(config.taps), lambda init: Merger(init, config, joined_norm=True))
        self.config = config

    @property
    def dtype(self) -> Any:
        """The dtype of the weights and of the arithmetic."""
        return self.patches.kernel.dtype

    def encode(
        self,
        patches: Float[Array, "P C"],
        place: Int[Array, "P 2"],
        size: Int[Array, "P 2"],
        first: Int[Array, "P"],
    ) -> tuple[Float[Array, "M D"], Float[Array, "taps M D"]]:
        """Features of each group of merge x merge patches (M = P / merge^2), and the deepstack features of the same.

        Args:
            patches: pixels, the groups of a frame one after another.
            place: each patch's row and column in its frame.
            size: rows and columns of its frame, 0 for padding.
            first: index of its frame's first patch.
        """
        config = self.config
        x = in_rows(self._embed, patches, place, size)
        width = config.width // config.heads
        inverse = jnp.asarray(frequencies(width // 2, ROPE_THETA))[None, None]
        angles = (place.astype(jnp.float32)[..., None] * inverse).reshape(-1, width // 2)
        turn = (jnp.cos(angles), jnp.sin(angles))
        last = first + size[:, 0] * size[:, 1]
        taps = jnp.asarray(config.taps, jnp.int32)

        def body(carry, block, layer):
            x, tapped = carry
            x = block(x, turn, first, last)
            # Every layer writes to the slot of the next tap, so in the end the slot holds the tap's own output. This
            # needs neither a branch nor all layers' states. Layers after the last tap write to one more slot, which is
            # not read.
            return (x, jax.lax.dynamic_update_index_in_dim(tapped, x, jnp.sum(taps < layer), 0)), None

        (x, tapped), _ = scan(body, (x, jnp.zeros((len(config.taps) + 1, *x.shape), x.dtype)), self.layers)
        # Running one merger at a time bounds the memory.
        _, deep = scan(lambda _, merger, tap: (None, in_rows(merger, tapped[tap])), None, self.deepstack)
        return in_rows(self.merger, x), deep

    def _embed(self, patches, place, size):
        x = self.patches(patches.astype(self.dtype).reshape(-1, *self.patches.kernel.shape[:-1]))
        return x + self._positions(place, size).astype(x.dtype)

    def _positions(self, place: Int[Array, "P 2"], size: Int[Array, "P 2"]) -> Float[Array, "P D"]:
        """The learned table, interpolated bilinearly to each frame's size (corners aligned), in float32."""
        side = round(self.config.positions**0.5)
        source = place.astype(jnp.float32) * (side - 1) / jnp.maximum(size - 1, 1).astype(jnp.float32)
        near = jnp.minimum(source.astype(jnp.int32), side - 1)
        far = jnp.minimum(near + 1, side - 1)
        weight = source - near
        out = jnp.zeros((place.shape[0], self.config.width), jnp.float32)
        for row, row_weight in ((near[:, 0], 1 - weight[:, 0]), (far[:, 0], weight[:, 0])):
            for column, column_weight in ((near[:, 1], 1 - weight[:, 1]), (far[:, 1], weight[:, 1])):
                taken = self.positions(row * side + column).astype(jnp.float32)
                out = out + taken * (row_weight * column_weight)[:, None]
        return out
