"""The audio encoder of Qwen3-Omni: log-mel frames to features of the thinker's width.

Shapes are static. Every clip is cut into chunks of 100 frames, and a call takes a fixed number of chunk slots, filled
with the chunks of any number of clips one after another. In place of the reference's lists of lengths there are three
small arrays (valid frames, frames that exist for the convolutions, attention window of each chunk); see
processing/audio_packing.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from omni_jax.config import AudioEncoderConfig, halve
from omni_jax.nn.layers import Init, LayerNorm, Linear, Mlp, expand_to
from omni_jax.nn.packed_attention import attend_segments
from omni_jax.nn.stack import scan, stack
from omni_jax.parallel.sharding import mesh_of


class Conv2d(nnx.Module):
    """3 x 3 convolution of stride 2 and padding 1 over (mel, frame), then the exact GELU."""

    def __init__(self, init: Init, ins: int, outs: int):
        self.kernel = init.normal((3, 3, ins, outs), (None, None, None, None), fan_in=9 * ins)
        self.bias = init.full((outs,), (None,), 0.0)

    def __call__(self, x: Float[Array, "N Z A C"]) -> Float[Array, "N Z2 A2 C2"]:
        x = jax.lax.conv_general_dilated(
            x, self.kernel[...], (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.gelu(x + expand_to(self.bias[...], x), approximate=False)


class Block(nnx.Module):
    """Pre-norm encoder block; every projection has a bias."""

    def __init__(self, init: Init, config: AudioEncoderConfig):
        heads = (config.heads, config.width // config.heads)
        inward = ("embed", "heads", "head")
        self.attention_norm = LayerNorm(init, config.width, eps=1e-5)
        self.q = Linear(init, (config.width,), heads, axes=inward, bias=True)
        self.k = Linear(init, (config.width,), heads, axes=inward, bias=True)
        self.v = Linear(init, (config.width,), heads, axes=inward, bias=True)
        self.o = Linear(init, heads, (config.width,), axes=("heads", "head", "embed"), bias=True)
        self.ffn_norm = LayerNorm(init, config.width, eps=1e-5)
        self.ffn = Mlp(init, config.width, config.ffn_width, config.width)

    def __call__(self, x: Float[Array, "T D"], windows: Int[Array, "T"], max_segment: int) -> Float[Array, "T D"]:
        y = self.attention_norm(x)
        mesh = mesh_of(self.q.kernel[...])
        x = x + self.o(attend_segments(self.q(y), self.k(y), self.v(y), windows, max_segment=max_segment, mesh=mesh))
        return x + self.ffn(self.ffn_norm(x))


class AudioEncoder(nnx.Module):
    """Reference: Qwen3OmniMoeAudioEncoder (arXiv:2509.17765)."""

    def __init__(self, init: Init, config: AudioEncoderConfig):
        self.conv1 = Conv2d(init, 1, config.channels)
        self.conv2 = Conv2d(init, config.channels, config.channels)
        self.conv3 = Conv2d(init, config.channels, config.channels)
        mels = halve(halve(halve(config.mel_bins)))
        self.stem = Linear(init, (mels, config.channels), (config.width,), axes=(None, None, "embed"))
        self.layers = stack(init, config.layers, lambda init: Block(init, config))
        self.norm = LayerNorm(init, config.width, eps=1e-5)
        self.projection = Mlp(init, config.width, config.width, config.out_width)
        self.config = config

    def encode(
        self,
        mel: Float[Array, "chunks Z A"],
        extent: Int[Array, "chunks"],
        window: Int[Array, "chunks tokens"],
    ) -> Float[Array, "chunks tokens D"]:
        """Features of each chunk's tokens.

        Args:
            mel: chunks of log-mel frames, zero beyond a chunk's own frames.
            extent: frames that exist for the convolutions: all of a chunk, or fewer for a clip that is shorter than
                one. Columns past it stay zero between the convolutions, as if the array ended there. So a clip's result
                does not depend on the batch (the reference pads short clips to the longest chunk of the call, which
                changes their result).
            window: id of each token's attention window, contiguous and of at most ``config.window_tokens`` tokens. A
                negative id marks padding.
        """
        # One chunk at a time: its feature maps stay in the CPU's cache, which halves the time there, and memory does
        # not grow with the call.
        x = jax.lax.map(lambda chunk: self._convolve(*chunk), (mel, extent))
        x = x + jnp.asarray(sinusoids(x.shape[1], x.shape[2]), x.dtype)[None]
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        windows, max_segment = window.reshape(-1), self.config.window_tokens
        x, _ = scan(lambda x, block, _: (block(x, windows, max_segment), None), x, self.layers)
        return self.projection(self.norm(x)).reshape(*shape[:2], -1)

    def _convolve(self, mel: Float[Array, "Z A"], extent: Int[Array, ""]) -> Float[Array, "tokens D"]:
        x = mel.astype(self.conv1.kernel.dtype)[None, :, :, None]
        for conv in (self.conv1, self.conv2, self.conv3):
            x = conv(x)
            extent = halve(extent)
            x = x * (jnp.arange(x.shape[2]) < extent)[None, None, :, None].astype(x.dtype)
        return self.stem(jnp.moveaxis(x[0], 0, 1))


def sinusoids(length: int, width: int) -> np.ndarray:
    """Position table [length, width]: sines, then cosines, of geometrically falling frequencies (Whisper's)."""
    scale = np.log(10000.0) / (width // 2 - 1)
    angles = np.arange(length)[:, None] * np.exp(-scale * np.arange(width // 2, dtype=np.float32)).astype(np.float32)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
