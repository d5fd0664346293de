"""The vision encoder of Qwen3-Omni. Today its weights: converted, counted, saved and exported; nothing runs it yet."""

from flax import nnx

from omni_jax.config import VisionEncoderConfig
from omni_jax.nn.layers import Embedding, Init, LayerNorm, Linear, Mlp
from omni_jax.nn.stack import stack


class Block(nnx.Module):
    """Pre-norm block: queries, keys and values from one kernel, tanh GELU, biases everywhere."""

    def __init__(self, init: Init, config: VisionEncoderConfig):
        d, n, h = config.width, config.heads, config.width // config.heads
        self.attention_norm = LayerNorm(init, d, eps=1e-6)
        self.qkv = Linear(init, (d,), (3, n, h), axes=("embed", None, "heads", "head"), bias=True)
        self.o = Linear(init, (n, h), (d,), axes=("heads", "head", "embed"), bias=True)
        self.ffn_norm = LayerNorm(init, d, eps=1e-6)
        self.ffn = Mlp(init, d, config.ffn_width, d, tanh=True)


class Merger(nnx.Module):
    """merge x merge patches to one feature. The deepstack mergers normalise after joining the patches, the last one before."""

    def __init__(self, init: Init, config: VisionEncoderConfig, *, joined_norm: bool):
        joined = config.width * config.merge**2
        self.norm = LayerNorm(init, joined if joined_norm else config.width, eps=1e-6)
        self.mlp = Mlp(init, joined, joined, config.out_width)


class VisionEncoder(nnx.Module):
    """Reference: Qwen3OmniMoeVisionEncoder (arXiv:2509.17765)."""

    def __init__(self, init: Init, config: VisionEncoderConfig):
        patch = (config.channels, config.temporal_patch, config.patch, config.patch)
        self.patches = Linear(init, patch, (config.width,), axes=(None, None, None, None, "embed"), bias=True)
        self.positions = Embedding(init, config.positions, config.width, axes=(None, "embed"))
        self.layers = stack(init, config.layers, lambda init: Block(init, config))
        self.merger = Merger(init, config, joined_norm=False)
        self.deepstack = stack(init, len(config.taps), lambda init: Merger(init, config, joined_norm=True))
        self.config = config
