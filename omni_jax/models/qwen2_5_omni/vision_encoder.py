"""The vision encoder of Qwen2.5-Omni: most blocks attend inside square windows of a frame, some to the whole frame.

It takes the same arrays of static shapes as the encoder of Qwen3-Omni (models/qwen3_omni/vision_encoder.py). The
patches are first sorted by window, so that a window is a contiguous span of the call, as a frame is. A patch never
leaves its frame's span, so the frames' spans stay as they were. At the end the features are put back in the order of
the call.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from omni_jax.config import Qwen25VisionEncoderConfig
from omni_jax.models.vision import EPS, ROPE_THETA, Block, embed_patches, in_rows
from omni_jax.nn.layers import GatedMlp, Init, Linear, Mlp, RMSNorm
from omni_jax.nn.rope import cos_sin_by_place
from omni_jax.nn.stack import scan, stack


class BiasedGatedMlp(GatedMlp):
    """SwiGLU with biases."""

    def __init__(self, init: Init, width: int, ffn_width: int):
        self.gate_up = Linear(init, (width,), (2, ffn_width), axes=("embed", None, "ffn"), bias=True)
        self.down = Linear(init, (ffn_width,), (width,), axes=("ffn", "embed"), bias=True)


class Merger(nnx.Module):
    """Merges merge x merge patches into one feature; they are normalised before they are joined."""

    def __init__(self, init: Init, config: Qwen25VisionEncoderConfig):
        self.joined = config.width * config.merge**2
        self.norm = RMSNorm(init, config.width, eps=EPS)
        self.mlp = Mlp(init, self.joined, self.joined, config.out_width)

    def __call__(self, x: Float[Array, "P D"]) -> Float[Array, "M D2"]:
        return self.mlp(self.norm(x).reshape(-1, self.joined))


class VisionEncoder(nnx.Module):
    """Reference: Qwen2_5OmniVisionEncoder (arXiv:2503.20215); the windows: arXiv:2502.13923."""

    def __init__(self, init: Init, config: Qwen25VisionEncoderConfig):
        mlp = partial(BiasedGatedMlp, width=config.width, ffn_width=config.ffn_width)
        patch = (config.channels, config.temporal_patch, config.patch, config.patch)
        self.patches = Linear(init, patch, (config.width,), axes=(None, None, None, None, "embed"))
        self.layers = stack(init, config.layers, lambda init: Block(init, config, RMSNorm, mlp))
        self.merger = Merger(init, config)
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
    ) -> tuple[Float[Array, "M D"], Float[Array, "0 M D"]]:
        """Features of each group of merge x merge patches (M = P / merge^2), and no deepstack features.

        Args:
            patches: pixels, the groups of a frame one after another.
            place: each patch's row and column in its frame.
            size: rows and columns of its frame, 0 for padding.
            first: index of its frame's first patch.
        """
        config = self.config
        patches, place, size, first = (jnp.asarray(each) for each in (patches, place, size, first))
        start, area = windows(place, size, first, config.window)
        # The sort is stable, so the patches of a group and the groups of a window stay in order. Padding does not move.
        order = jnp.argsort(jnp.where(area > 0, start, jnp.arange(len(start))), stable=True)
        start, area = start[order], area[order]
        x = in_rows(partial(embed_patches, linear=self.patches), patches[order])
        cos_sin = cos_sin_by_place(place[order], config.width // config.heads, ROPE_THETA)
        frame, window = (first, first + size[:, 0] * size[:, 1]), (start, start + area)
        whole = jnp.isin(jnp.arange(config.layers), jnp.asarray(config.whole, jnp.int32))

        def body(x, block, _, whole):
            spans = (jnp.where(whole, *ends) for ends in zip(frame, window, strict=True))
            return block(x, cos_sin, *spans), None

        x, _ = scan(body, x, self.layers, whole)
        features = in_rows(self.merger, x)[jnp.argsort(order[:: config.merge**2])]
        return features, jnp.zeros((0, *features.shape), features.dtype)


def windows(
    place: Int[Array, "P 2"], size: Int[Array, "P 2"], first: Int[Array, "P"], side: int
) -> tuple[Int[Array, "P"], Int[Array, "P"]]:
    """Where each patch's window begins once a frame's windows follow one another in reading order, and its size.

    Windows are laid out from the frame's upper left corner; those at its right and lower edges are cut off. The size
    is in patches, 0 for padding.
    """
    corner = place // side * side
    rows, columns = jnp.moveaxis(jnp.minimum(side, size - corner), -1, 0)
    # Patches before the window: the frame's whole rows above it, then the windows to its left, which have its height.
    return first + corner[:, 0] * size[:, 1] + corner[:, 1] * rows, rows * columns
