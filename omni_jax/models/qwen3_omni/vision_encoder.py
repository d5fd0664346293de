"""The vision encoder of Qwen3-Omni: patches of images and video frames to features of the thinker's width.

Shapes are static. A call takes a fixed number of patches, filled with the frames of any number of images and videos one
after another (processing/vision_packing.py). Each patch comes with its place in its frame, the frame's size and where
the frame begins; positions, rope and attention need no more. A frame pair of a video attends only to itself, as an
image does.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from omni_jax.config import VisionEncoderConfig
from omni_jax.models.vision import EPS, ROPE_THETA, Block, embed_patches, in_rows
from omni_jax.nn.layers import Embedding, Init, LayerNorm, Linear, Mlp
from omni_jax.nn.rope import cos_sin_by_place
from omni_jax.nn.stack import scan, stack


class Merger(nnx.Module):
    """Merges merge x merge patches into one feature.

    The deepstack mergers normalise after joining the patches, the final merger before.
    """

    def __init__(self, init: Init, config: VisionEncoderConfig, *, joined_norm: bool):
        joined = config.width * config.merge**2
        self.norm = LayerNorm(init, joined if joined_norm else config.width, eps=EPS)
        self.mlp = Mlp(init, joined, joined, config.out_width)
        self.joined_norm, self.joined = joined_norm, joined

    def __call__(self, x: Float[Array, "P D"]) -> Float[Array, "M D2"]:
        if self.joined_norm:
            return self.mlp(self.norm(x.reshape(-1, self.joined)))
        return self.mlp(self.norm(x).reshape(-1, self.joined))


class VisionEncoder(nnx.Module):
    """Reference: Qwen3OmniMoeVisionEncoder (arXiv:2509.17765); deepstack: arXiv:2406.04334."""

    def __init__(self, init: Init, config: VisionEncoderConfig):
        mlp = partial(Mlp, ins=config.width, ffn_width=config.ffn_width, outs=config.width, tanh=True)
        patch = (config.channels, config.temporal_patch, config.patch, config.patch)
        self.patches = Linear(init, patch, (config.width,), axes=(None, None, None, None, "embed"), bias=True)
        self.positions = Embedding(init, config.positions, config.width, axes=(None, "embed"))
        self.layers = stack(init, config.layers, lambda init: Block(init, config, LayerNorm, mlp))
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
        cos_sin = cos_sin_by_place(place, config.width // config.heads, ROPE_THETA)
        last = first + size[:, 0] * size[:, 1]
        taps = jnp.asarray(config.taps, jnp.int32)

        def body(carry, block, layer):
            x, tapped = carry
            x = block(x, cos_sin, first, last)
            # Every layer writes to the slot of the next tap, so in the end the slot holds the tap's own output. This
            # needs neither a branch nor all layers' states. Layers after the last tap write to one more slot, which is
            # not read.
            return (x, jax.lax.dynamic_update_index_in_dim(tapped, x, jnp.sum(taps < layer), 0)), None

        (x, tapped), _ = scan(body, (x, jnp.zeros((len(config.taps) + 1, *x.shape), x.dtype)), self.layers)
        # Running one merger at a time bounds the memory.
        _, deep = scan(lambda _, merger, tap: (None, in_rows(merger, tapped[tap])), None, self.deepstack)
        return in_rows(self.merger, x), deep

    def _embed(self, patches, place, size):
        x = embed_patches(patches, self.patches)
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
