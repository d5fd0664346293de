"""The audio encoder of Qwen2.5-Omni: log-mel frames to features of the thinker's width, a token for every 40 ms.

Shapes are static. A call takes any number of chunks of equal size, each with its number of real frames. Convolutions,
positions and attention end with the chunk. So a chunk's clip need not be known, and a clip's features never depend on
the other clips of a call.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from omni_jax.config import Qwen25AudioEncoderConfig, halve
from omni_jax.models.qwen3_omni.audio_encoder import sinusoids
from omni_jax.nn.layers import Embedding, Init, LayerNorm, Linear, Mlp, expand_to
from omni_jax.nn.packed_attention import attend_segments
from omni_jax.nn.stack import scan, stack


class Conv1d(nnx.Module):
    """Convolution of width 3 and padding 1 over frames, then the exact GELU."""

    def __init__(self, init: Init, ins: int, outs: int):
        self.kernel = init.normal((3, ins, outs), (None, None, None), fan_in=3 * ins)
        self.bias = init.full((outs,), (None,), 0.0)

    def __call__(self, x: Float[Array, "N A C"], *, stride: int) -> Float[Array, "N A2 C2"]:
        x = jax.lax.conv_general_dilated(
            x, self.kernel[...], (stride,), ((1, 1),), dimension_numbers=("NWC", "WIO", "NWC")
        )
        return jax.nn.gelu(x + expand_to(self.bias[...], x), approximate=False)


class Block(nnx.Module):
    """Pre-norm encoder block with attention inside a chunk; every projection but the keys' has a bias."""

    def __init__(self, init: Init, config: Qwen25AudioEncoderConfig):
        heads = (config.heads, config.width // config.heads)
        inward = ("embed", "heads", "head")
        self.attention_norm = LayerNorm(init, config.width, eps=1e-5)
        self.q = Linear(init, (config.width,), heads, axes=inward, bias=True)
        self.k = Linear(init, (config.width,), heads, axes=inward)
        self.v = Linear(init, (config.width,), heads, axes=inward, bias=True)
        self.o = Linear(init, heads, (config.width,), axes=("heads", "head", "embed"), bias=True)
        self.ffn_norm = LayerNorm(init, config.width, eps=1e-5)
        self.ffn = Mlp(init, config.width, config.ffn_width, config.width)

    def __call__(self, x: Float[Array, "N P D"], real: Int[Array, "N P"]) -> Float[Array, "N P D"]:
        attend = jax.vmap(partial(attend_segments, max_segment=x.shape[1]))
        y = self.attention_norm(x)
        x = x + self.o(attend(self.q(y), self.k(y), self.v(y), real))
        return x + self.ffn(self.ffn_norm(x))


class AudioEncoder(nnx.Module):
    """Reference: Qwen2_5OmniAudioEncoder (arXiv:2503.20215)."""

    def __init__(self, init: Init, config: Qwen25AudioEncoderConfig):
        self.conv1 = Conv1d(init, config.mel_bins, config.width)
        self.conv2 = Conv1d(init, config.width, config.width)
        self.layers = stack(init, config.layers, lambda init: Block(init, config))
        self.norm = LayerNorm(init, config.width, eps=1e-5)
        self.out = Linear(init, (config.width,), (config.out_width,), axes=("embed", None), bias=True)
        # A published parameter that computes no feature: the prompt has tokens for begin and end instead.
        self.bos_eos = Embedding(init, 2, config.out_width, axes=(None, "embed"))

    def encode(self, mel: Float[Array, "N Z A"], extent: Int[Array, "N"]) -> Float[Array, "N tokens D"]:
        """Features of each chunk's tokens.

        Args:
            mel: chunks of ``config.chunk_frames`` log-mel frames. A clip is cut into full chunks and a rest.
            extent: real frames of each chunk, 0 for an empty slot. Frames beyond them are not read.

        Returns:
            A token for each pair of places (``config.chunk_places`` of 20 ms). The first ``halve(extent) // 2`` tokens
            of a chunk are the clip's, the others have no meaning. The reference pairs the places of a whole clip. The
            result is the same because a full chunk has an even number of places (the configuration is refused
            otherwise). An odd last place is dropped after the others have attended to it, so a clip of one or two
            frames has no token.
        """
        real = (jnp.arange(mel.shape[2])[None] < extent[:, None])[..., None]
        # Zeros beyond the end act as the padding of a convolution over only the real frames, before both convolutions.
        x = jnp.where(real, jnp.moveaxis(mel, 1, 2), 0).astype(self.conv1.kernel.dtype)
        x = jnp.where(real, self.conv1(x, stride=1), 0)
        x = self.conv2(x, stride=2)
        chunks, places, width = x.shape
        x = x + jnp.asarray(sinusoids(places, width), x.dtype)[None]
        segments = jnp.where(jnp.arange(places)[None] < halve(extent)[:, None], 0, -1)
        x, _ = scan(lambda x, block, _: (block(x, segments), None), x, self.layers)
        pairs = x.reshape(chunks, places // 2, 2, width)
        return self.out(self.norm((pairs[:, :, 0] + pairs[:, :, 1]) / 2))
