"""ECAPA-TDNN (arXiv:2005.07143), the speaker encoder: a few seconds of a speaker's mel frames to one embedding."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from omni_jax.config.speech import SpeakerEncoderConfig
from omni_jax.nn import conv
from omni_jax.nn.layers import Init, Linear, expand_to
from omni_jax.nn.stack import stack


class Conv1d(conv.Conv1d):
    """Centred convolution and a ReLU. A row is reflected at both of its ends; kernel [width, ins, outs]."""

    def __call__(self, x: Float[Array, "B T C"], lengths: Int[Array, "B"], *, dilation: int) -> Float[Array, "B T C2"]:
        kernel, steps = self.kernel[...], x.shape[1]
        padding = (len(kernel) - 1) * dilation
        at = jnp.abs(jnp.arange(steps + padding) - padding // 2)[None]
        # Reflection does not repeat the end steps. Values more than a row's length beyond its end do not matter.
        at = jnp.minimum(at, jnp.abs(2 * (lengths[:, None] - 1) - at)).clip(max=steps - 1)
        y = jax.lax.conv_general_dilated(
            jnp.take_along_axis(x, at[..., None], axis=1),
            kernel,
            (1,),
            "VALID",
            rhs_dilation=(dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return jax.nn.relu(y + expand_to(self.bias[...], y))


def pointwise(init: Init, ins: int, outs: int) -> Linear:
    return Linear(init, (ins,), (outs,), axes=(None, None), bias=True)


class Block(nnx.Module):
    """Res2Net (arXiv:1904.01169) between two layers over channels, then squeeze and excitation (arXiv:1709.01507)."""

    def __init__(self, init: Init, ins: int, outs: int, width: int, config: SpeakerEncoderConfig):
        part = outs // config.parts
        self.before = pointwise(init, ins, outs)
        self.parts = stack(init, config.parts - 1, lambda init: Conv1d(init, part, part, width))
        self.after = pointwise(init, outs, outs)
        self.squeeze = pointwise(init, outs, config.squeeze_width)
        self.excite = pointwise(init, config.squeeze_width, outs)

    def __call__(
        self, x: Float[Array, "B T C"], lengths: Int[Array, "B"], weights: Float[Array, "B T 1"], dilation: int
    ) -> Float[Array, "B T C2"]:
        y = jax.nn.relu(self.before(x))
        # The first group of channels passes unchanged; the output of each other group is added to the next one's input.
        groups = jnp.split(y, 1 + self.parts.bias.shape[0], axis=-1)
        heard = [groups[0]]
        for number, group in enumerate(groups[1:]):
            layer = jax.tree.map(lambda leaf, number=number: leaf[number], self.parts)
            heard.append(layer(group + heard[-1] if number else group, lengths, dilation=dilation))
        y = jax.nn.relu(self.after(jnp.concatenate(heard, axis=-1)))
        mean = jnp.sum(y * weights, axis=1, keepdims=True)
        return x + y * jax.nn.sigmoid(self.excite(jax.nn.relu(self.squeeze(mean))))


class SpeakerEncoder(nnx.Module):
    """Reference: ECAPA_TimeDelayNet of Qwen2.5-Omni.

    Attributes:
        frames: the fewest mel frames that can be reflected.
    """

    def __init__(self, init: Init, config: SpeakerEncoderConfig):
        (first, *inner, last), (kernel, *kernels, joined) = config.channels, config.kernels
        self.stem = Conv1d(init, config.mel_bins, first, kernel)
        ins = [first, *inner]
        self.blocks = nnx.List([Block(init, *sizes, config) for sizes in zip(ins[:-1], inner, kernels, strict=True)])
        self.join = Conv1d(init, last, last, joined)
        self.attention_in = pointwise(init, 3 * last, config.attention_width)
        self.attention_out = pointwise(init, config.attention_width, last)
        self.out = pointwise(init, 2 * last, config.out_width)
        self.config = config
        self.frames = config.min_frames

    def __call__(self, mel: Float[Array, "B A Z"], lengths: Int[Array, "B"]) -> Float[Array, "B D"]:
        """Embeds each row's speaker.

        Args:
            mel: reference mel frames, a row's real ones first.
            lengths: real mel frames of each row, at least ``frames``.
        """
        if mel.shape[1] < self.frames:
            raise ValueError(f"reference mel: expected at least {self.frames} frames, got {mel.shape[1]}")
        dilation, *dilations, joined = self.config.dilations
        mask = (jnp.arange(mel.shape[1])[None] < lengths[:, None])[..., None]
        even = mask / lengths[:, None, None].astype(mel.dtype)
        x, heard = self.stem(mel, lengths, dilation=dilation), []
        for block, dilation in zip(self.blocks, dilations, strict=True):
            x = block(x, lengths, even, dilation)
            heard.append(x)
        x = self.join(jnp.concatenate(heard, axis=-1), lengths, dilation=joined)
        whole = jnp.broadcast_to(statistics(x, even)[:, None], (*x.shape[:2], 2 * x.shape[2]))
        scores = jax.nn.relu(self.attention_in(jnp.concatenate([x, whole], axis=-1)))
        scores = jnp.where(mask, self.attention_out(jnp.tanh(scores)), -jnp.inf)
        return self.out(statistics(x, jax.nn.softmax(scores, axis=1)))


def statistics(x: Float[Array, "B T C"], weights: Float[Array, "B T _"]) -> Float[Array, "B 2*C"]:
    """Weighted mean and standard deviation over time, side by side."""
    mean = jnp.sum(x * weights, axis=1, keepdims=True)
    variance = jnp.sum(jnp.square(x - mean) * weights, axis=1)
    return jnp.concatenate([mean[:, 0], jnp.sqrt(jnp.maximum(variance, 1e-12))], axis=-1)
