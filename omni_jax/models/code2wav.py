"""The vocoder code2wav. Today its weights: converted, counted, saved and exported; nothing runs it yet."""

from flax import nnx

from omni_jax.config import Code2WavConfig
from omni_jax.models.decoder import Decoder
from omni_jax.nn.layers import Embedding, Init, LayerNorm, Mlp
from omni_jax.nn.stack import stack


class Conv1d(nnx.Module):
    """One-dimensional convolution, kernel [width, ins, outs]; a transposed one has the same layout."""

    def __init__(self, init: Init, ins: int, outs: int, width: int):
        self.kernel = init.normal((width, ins, outs), (None, None, None), fan_in=width * ins)
        self.bias = init.full((outs,), (None,), 0.0)


class SnakeBeta(nnx.Module):
    """x + sin(exp(alpha) x)^2 / exp(beta), a pair a channel (arXiv:2206.04658)."""

    def __init__(self, init: Init, channels: int):
        self.alpha = init.full((channels,), (None,), 0.0)
        self.beta = init.full((channels,), (None,), 0.0)


class Upsample(nnx.Module):
    """A transposed convolution and a ConvNeXt block (arXiv:2201.03545) with a depthwise kernel [7, 1, channels]."""

    def __init__(self, init: Init, width: int, ratio: int):
        self.conv = Conv1d(init, width, width, ratio)
        self.depthwise = Conv1d(init, 1, width, 7)
        self.norm = LayerNorm(init, width, eps=1e-6)
        self.mlp = Mlp(init, width, 4 * width, width)
        self.gamma = init.full((width,), (None,), 1e-6)


class Residual(nnx.Module):
    """x + conv(snake(dilated conv(snake x)))."""

    def __init__(self, init: Init, channels: int):
        self.snake1 = SnakeBeta(init, channels)
        self.conv1 = Conv1d(init, channels, channels, 7)
        self.snake2 = SnakeBeta(init, channels)
        self.conv2 = Conv1d(init, channels, channels, 1)


class Stage(nnx.Module):
    """Snake, a transposed convolution that halves the channels, three residual units."""

    def __init__(self, init: Init, channels: int, rate: int):
        self.snake = SnakeBeta(init, channels)
        self.conv = Conv1d(init, channels, channels // 2, 2 * rate)
        self.units = stack(init, 3, lambda init: Residual(init, channels // 2))


class Code2Wav(nnx.Module):
    """Reference: Qwen3OmniMoeCode2Wav (arXiv:2509.17765)."""

    def __init__(self, init: Init, config: Code2WavConfig):
        last = config.channels // 2 ** len(config.rates)
        self.embedding = Embedding(init, config.codebooks * config.codebook, config.width)
        self.decoder = Decoder(init, config.decoder)
        self.upsamples = nnx.List([Upsample(init, config.width, ratio) for ratio in config.ratios])
        self.conv_in = Conv1d(init, config.width, config.channels, 7)
        self.stages = nnx.List([Stage(init, config.channels // 2**i, rate) for i, rate in enumerate(config.rates)])
        self.snake = SnakeBeta(init, last)
        self.conv_out = Conv1d(init, last, 1, 7)
        self.config = config
