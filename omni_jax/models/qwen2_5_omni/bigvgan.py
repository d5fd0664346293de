"""BigVGAN (arXiv:2206.04658), the vocoder of Qwen2.5-Omni: mel frames to a waveform of 24 kHz.

Its receptive field reaches to both sides, so a row's ends affect the result: beyond them, convolutions see zeros, and
the activations' filters see the end values repeated. Both are computed for each row, so neither padding nor cutting a
long row into windows changes the result.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from omni_jax.config.speech import BigVGANConfig
from omni_jax.nn import conv
from omni_jax.nn.conv import SnakeBeta
from omni_jax.nn.layers import Init, expand_to
from omni_jax.nn.resample import REACH, RowBounds, smooth
from omni_jax.nn.stack import stack

# Bounds of a mel frame's loudness in decibels, and decibels for each unit of natural logarithms of amplitudes.
MIN_DB, REFERENCE_DB = -115.0, 20.0
DB_PER_LOG = 20 / 2.302585092994046


class Conv1d(conv.Conv1d):
    """Centred convolution that sees zeros outside of a row; kernel [width, ins, outs], width odd."""

    def __init__(self, init: Init, ins: int, outs: int, width: int, *, bias: bool = True):
        super().__init__(init, ins, outs, width)
        self.bias = self.bias if bias else None

    def __call__(self, x: Float[Array, "B T C"], bounds: RowBounds, *, dilation: int = 1) -> Float[Array, "B T C2"]:
        y = jax.lax.conv_general_dilated(
            bounds.silence(x),
            self.kernel[...],
            (1,),
            "SAME",
            rhs_dilation=(dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return y if self.bias is None else y + expand_to(self.bias[...], y)

    def by_taps(
        self, x: Float[Array, "B T C"], bounds: RowBounds, dilation: Int[Array, ""], most: int
    ) -> Float[Array, "B T C2"]:
        """The same convolution as one product a tap, for a dilation of at most ``most``, known only at run time."""
        kernel, (batch, steps, _) = self.kernel[...], x.shape
        half = len(kernel) // 2
        x = jnp.pad(bounds.silence(x), [(0, 0), (half * most, half * most), (0, 0)])

        def add(tap, y):
            seen = jax.lax.dynamic_slice_in_dim(x, half * most + (tap - half) * dilation, steps, axis=1)
            # By itself, a product compiles twice as fast as fused with the slice before it and the sum after it.
            seen, weight = jax.lax.optimization_barrier((seen, kernel[tap]))
            return y + jax.lax.optimization_barrier(seen @ weight)

        y = jax.lax.fori_loop(0, len(kernel), add, jnp.zeros((batch, steps, kernel.shape[2]), x.dtype))
        return y if self.bias is None else y + expand_to(self.bias[...], y)


class ConvTranspose1d(conv.Conv1d):
    """Transposed convolution, kernel [width, ins, outs]; ``width - rate`` extra steps are cut off, half at each end."""

    def __call__(self, x: Float[Array, "B T C"], bounds: RowBounds, *, rate: int) -> Float[Array, "B T*{rate} C2"]:
        kernel, (batch, steps, _) = self.kernel[...], x.shape
        width, cut = len(kernel), (len(kernel) - rate) // 2
        parts = -(-width // rate)
        y = jnp.einsum("BTC,WCD->BTWD", bounds.silence(x), kernel)
        y = jnp.pad(y, [(0, 0), (0, 0), (0, parts * rate - width), (0, 0)]).reshape(batch, steps, parts, -1)
        # A step contributes to ``parts`` runs of ``rate`` samples: its own and the next ones.
        runs = [jnp.pad(y[:, :, part], [(0, 0), (part, parts - 1 - part), (0, 0)]) for part in range(parts)]
        y = sum(runs[1:], runs[0])
        return y.reshape(batch, (steps + parts - 1) * rate, -1)[:, cut:][:, : steps * rate] + expand_to(
            self.bias[...], x
        )


class Residual(nnx.Module):
    """For each dilation: x + conv(snake(dilated conv(snake x))), with alias-free snakes."""

    def __init__(self, init: Init, channels: int, width: int, units: int):
        self.snakes = stack(init, 2 * units, lambda init: SnakeBeta(init, channels))
        self.dilated = stack(init, units, lambda init: Conv1d(init, channels, channels, width))
        self.convs = stack(init, units, lambda init: Conv1d(init, channels, channels, width))

    def __call__(
        self, x: Float[Array, "B T C"], bounds: RowBounds, dilations: tuple[int, ...]
    ) -> Float[Array, "B T C"]:
        forms = {"tpu": self.looped, "default": self.unrolled}
        forms = {name: partial(form, dilations=dilations) for name, form in forms.items()}
        return jax.lax.platform_dependent(x, bounds, **forms)

    def unrolled(
        self, x: Float[Array, "B T C"], bounds: RowBounds, dilations: tuple[int, ...]
    ) -> Float[Array, "B T C"]:
        """Without a loop: a convolution's dilation is fixed at compile time."""
        for unit, dilation in enumerate(dilations):
            y = smooth(x, bounds, _entry(self.snakes, 2 * unit))
            y = _entry(self.dilated, unit)(y, bounds, dilation=dilation)
            y = smooth(y, bounds, _entry(self.snakes, 2 * unit + 1))
            x = x + _entry(self.convs, unit)(y, bounds)
        return x

    def looped(self, x: Float[Array, "B T C"], bounds: RowBounds, dilations: tuple[int, ...]) -> Float[Array, "B T C"]:
        """With loops: a TPU's compiler takes seconds for a convolution, and the vocoder has a hundred of them."""

        def convolve(y, each):
            snake, conv, dilation = each
            return conv.by_taps(smooth(y, bounds, snake), bounds, dilation, max(dilations)), None

        def step(x, unit):
            snakes, *convs, dilation = unit
            convs = jax.tree.map(lambda *both: jnp.stack(both), *convs)
            y, _ = jax.lax.scan(convolve, x, (snakes, convs, jnp.array([dilation, 1])))
            return x + y, None

        snakes = jax.tree.map(lambda leaf: leaf.reshape(-1, 2, *leaf.shape[1:]), self.snakes)
        return jax.lax.scan(step, x, (snakes, self.dilated, self.convs, jnp.array(dilations)))[0]


class BigVGAN(nnx.Module):
    """Reference: Qwen2_5OmniToken2WavBigVGANModel. Its parameters are float32 in any model, as in the reference.

    Attributes:
        residuals: the residual blocks, all of the first stage before those of the second.
        frame_samples: samples a mel frame.
        receptive_field: mel frames to each side that a frame's samples depend on.
    """

    def __init__(self, init: Init, config: BigVGANConfig):
        init = Init(init.key(), jnp.float32)
        self.conv_in = Conv1d(init, config.mel_bins, config.channels, 7)
        self.upsamples, self.residuals = nnx.List([]), nnx.List([])
        channels = config.channels
        for kernel in config.kernels:
            self.upsamples.append(ConvTranspose1d(init, channels, channels // 2, kernel))
            channels //= 2
            for width, dilations in zip(config.block_kernels, config.dilations, strict=True):
                self.residuals.append(Residual(init, channels, width, len(dilations)))
        self.snake = SnakeBeta(init, channels)
        self.conv_out = Conv1d(init, channels, 1, 7, bias=False)
        self.config = config
        self.frame_samples, self.receptive_field = config.frame_samples, _receptive_field(config)

    def decode(
        self, mel: Float[Array, "B A Z"], lengths: Int[Array, "B"]
    ) -> Float32[Array, "B A*{self.frame_samples}"]:
        """The waveforms of whole rows, in [-1, 1].

        Args:
            mel: natural logarithms of amplitudes, a row's real frames first.
            lengths: real mel frames of each row. A row is zero beyond ``length * frame_samples``.
        """
        batch, frames, bins = mel.shape
        if bins != self.config.mel_bins:
            raise ValueError(f"mel: expected [batch, frames, {self.config.mel_bins}], got {list(mel.shape)}")
        if not frames:
            return jnp.zeros((batch, 0), jnp.float32)
        return self.decode_window(mel, jnp.zeros_like(lengths), lengths)

    def decode_window(
        self, mel: Float[Array, "B A Z"], first: Int[Array, "B"], end: Int[Array, "B"]
    ) -> Float32[Array, "B A*{self.frame_samples}"]:
        """The waveforms of a window of longer rows. Decoding a row in windows takes no more memory than one window.

        Where a row goes on beyond a side of the window, the ``receptive_field`` frames at that side are not exact.

        Args:
            mel: the window's mel frames.
            first: where each row begins, counted from the window's first frame; may be outside of the window.
            end: where each row ends, counted likewise.
        """
        with jax.default_matmul_precision("float32"):
            bounds, config = RowBounds(first, end), self.config
            x = self.conv_in(normalize(mel), bounds)
            blocks = len(config.block_kernels)
            for stage, rate in enumerate(config.rates):
                x = self.upsamples[stage](x, bounds, rate=rate)
                bounds = bounds.scaled(rate)
                residuals = self.residuals[stage * blocks : (stage + 1) * blocks]
                made = [residual(x, bounds, each) for residual, each in zip(residuals, config.dilations, strict=True)]
                x = sum(made[1:], made[0]) / blocks
            x = self.conv_out(smooth(x, bounds, self.snake), bounds)
            return bounds.silence(jnp.clip(x, -1, 1))[..., 0]


def normalize(mel: Float[Array, "B A Z"]) -> Float[Array, "B A Z"]:
    """Logarithms of amplitudes as decibels less REFERENCE_DB, with the range MIN_DB to 0 mapped to -1 to 1."""
    decibels = DB_PER_LOG * jnp.maximum(mel.astype(jnp.float32), MIN_DB / DB_PER_LOG) - REFERENCE_DB
    return jnp.clip(2 * (decibels - MIN_DB) / -MIN_DB - 1, -1, 1)


def _entry(stacked, number):
    return jax.tree.map(lambda leaf: leaf[number], stacked)


def _receptive_field(config: BigVGANConfig) -> int:
    """The receptive field to each side in mel frames, computed from the samples back to the mel frames."""
    block = max(
        sum(2 * REACH + (dilation + 1) * (width // 2) for dilation in dilations)
        for width, dilations in zip(config.block_kernels, config.dilations, strict=True)
    )
    receptive_field = REACH + 3
    for rate, kernel in zip(reversed(config.rates), reversed(config.kernels), strict=True):
        receptive_field = (receptive_field + block + kernel - 1) // rate + 1
    return receptive_field + 3
