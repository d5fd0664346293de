"""The vocoder of Qwen3-Omni: codes of the talker to a waveform of 24 kHz.

A sliding-window transformer over frames, then causal and transposed convolutions up to 1,920 samples a frame. A stream
and a whole pass use the same function: a step of a few frames that carries the state of earlier ones.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Float32, Int

from omni_jax.config import Code2WavConfig
from omni_jax.models.decoder import Decoder
from omni_jax.nn.cache import KVCache
from omni_jax.nn.conv import CausalState, Conv1d, ConvTranspose1d, SnakeBeta
from omni_jax.nn.layers import Embedding, Init, LayerNorm, Mlp, expand_to
from omni_jax.nn.stack import stack
from omni_jax.parallel.sharding import constrain, mesh_of, spec

DILATIONS = (1, 3, 9)
# Frames of a step, over all rows: enough for large matrix products, few enough for little memory.
BATCH_FRAMES = 200


@struct.dataclass
class Code2WavState:
    """The state of a stream; its size does not grow.

    Attributes:
        cache: keys and values of the transformer's window, the newest last; ``cache.length`` of its slots are filled.
        tails: the last inputs of each causal convolution, in the order of use.
        frames: frames so far.
    """

    cache: KVCache
    tails: tuple[Float[Array, "B _history _C"], ...]
    frames: Int[Array, "B"]


def axes(state: Code2WavState) -> Any:
    """The logical axes of each array of a state. A device holds the whole state of its own rows, and no other."""
    heard = (None, "alone", None, None, None)
    cache = replace(state.cache, k=heard, v=heard, length=("alone",))
    return replace(state, cache=cache, tails=(("alone", None, None),) * len(state.tails), frames=("alone",))


class Upsample(nnx.Module):
    """A transposed convolution and a ConvNeXt block (arXiv:2201.03545) with a depthwise kernel [7, 1, channels]."""

    def __init__(self, init: Init, width: int, ratio: int):
        self.conv = ConvTranspose1d(init, width, width, ratio)
        self.depthwise = Conv1d(init, 1, width, 7)
        self.norm = LayerNorm(init, width, eps=1e-6)
        self.mlp = Mlp(init, width, 4 * width, width)
        self.gamma = init.full((width,), (None,), 1e-6)

    def __call__(self, x: Float[Array, "B T D"], past: CausalState, ratio: int) -> Float[Array, "B T*{ratio} D"]:
        x = self.conv(x, past, rate=ratio)
        return x + expand_to(self.gamma[...], x) * self.mlp(self.norm(self.depthwise(x, past)))


class Residual(nnx.Module):
    """x + conv(snake(dilated conv(snake x)))."""

    def __init__(self, init: Init, channels: int):
        self.snake1 = SnakeBeta(init, channels)
        self.conv1 = Conv1d(init, channels, channels, 7)
        self.snake2 = SnakeBeta(init, channels)
        self.conv2 = Conv1d(init, channels, channels, 1)

    def __call__(self, x: Float[Array, "B T C"], past: CausalState, dilation: int) -> Float[Array, "B T C"]:
        y = self.conv1(self.snake1(x), past, dilation=dilation)
        return x + self.conv2(self.snake2(y), past)


class Stage(nnx.Module):
    """Snake, a transposed convolution that halves the channels, three residual units."""

    def __init__(self, init: Init, channels: int, rate: int):
        self.snake = SnakeBeta(init, channels)
        self.conv = ConvTranspose1d(init, channels, channels // 2, 2 * rate)
        self.units = stack(init, len(DILATIONS), lambda init: Residual(init, channels // 2))

    def __call__(self, x: Float[Array, "B T C"], past: CausalState, rate: int) -> Float[Array, "B T*{rate} C//2"]:
        x = self.conv(self.snake(x), past, rate=rate)
        # Not a scan: a convolution's dilation is fixed when it is compiled.
        for number, dilation in enumerate(DILATIONS):
            x = jax.tree.map(lambda leaf, number=number: leaf[number], self.units)(x, past, dilation)
        return x


class Code2Wav(nnx.Module):
    """Reference: Qwen3OmniMoeCode2Wav (arXiv:2509.17765).

    Attributes:
        frame_samples: samples a frame, 1,920.
        lag: samples at a frame's end that depend on the next frame, 555: each stage looks one step ahead.
    """

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
        self.frame_samples, self.lag = 1, 0
        for ratio in config.ratios:
            self.frame_samples *= ratio
        for rate in config.rates:
            self.frame_samples, self.lag = self.frame_samples * rate, (self.lag + 1) * rate

    def samples(self, frames: int) -> int:
        """How many samples so many frames determine; a stream has given as many after them."""
        return max(0, frames * self.frame_samples - self.lag)

    def start(self, batch: int) -> Code2WavState:
        """The initial state of ``batch`` rows."""
        config, frames = self.config.decoder, jnp.zeros(batch, jnp.int32)
        cache = KVCache.empty(
            layers=config.layers,
            batch=batch,
            slots=(config.window or 1) - 1,  # never None here: the config requires a window
            kv_heads=config.kv_heads,
            head_width=config.head_width,
            dtype=self.embedding.table.dtype,
        )
        codes = jax.ShapeDtypeStruct((batch, self.config.codebooks, 1), jnp.int32)
        # Tracing the network gives the shapes of its tails.
        _, tails, _ = jax.eval_shape(lambda codes: self._run(cache, None, frames, codes, frames), codes)
        return Code2WavState(cache, jax.tree.map(lambda tail: jnp.zeros(tail.shape, tail.dtype), tails), frames)

    def step(
        self, state: Code2WavState, codes: Int[Array, "B Q y"], lengths: Int[Array, "B"]
    ) -> tuple[Code2WavState, Float32[Array, "B y*{self.frame_samples}"]]:
        """The next samples of a stream.

        After s earlier frames, a row gives the samples from number ``s * frame_samples - lag`` on. Its first step
        therefore begins with ``lag`` samples before the row's beginning, which must be dropped. ``lengths *
        frame_samples`` samples count; the others are zero. All steps together give ``samples(frames)`` samples, so
        nothing is left to flush.

        Args:
            state: the state after the earlier frames.
            codes: y new frames, a row's real ones first.
            lengths: real frames of each row. With 0, a row's state stays as it is.
        """
        mesh = mesh_of(self.embedding.table[...])
        if mesh is None:
            return self._step(state, codes, lengths)
        # Every device holds all weights and decodes its own rows, so nothing is sent between devices.
        own = spec(("alone",), lengths.shape, mesh)
        lying = jax.tree.map(lambda leaf, names: spec(names, leaf.shape, mesh), state, axes(state))
        step = jax.shard_map(
            Code2Wav._step,
            mesh=mesh,
            in_specs=(PartitionSpec(), lying, own, own),
            out_specs=(lying, own),
            check_vma=False,
        )
        return step(self, state, codes, lengths)

    def placed(self, state: Code2WavState) -> Code2WavState:
        """A state made inside a program, sharded as ``step`` takes and returns it."""
        mesh = mesh_of(self.embedding.table[...])
        return jax.tree.map(lambda leaf, names: constrain(leaf, names, mesh), state, axes(state))

    def _step(
        self, state: Code2WavState, codes: Int[Array, "B Q y"], lengths: Int[Array, "B"]
    ) -> tuple[Code2WavState, Float32[Array, "B y*{self.frame_samples}"]]:
        cache, tails, samples = self._run(state.cache, state.tails, state.frames, codes, lengths)
        return Code2WavState(cache, tails, state.frames + lengths), samples

    def _run(
        self,
        cache: KVCache,
        tails: tuple[Float[Array, "B _history _C"], ...] | None,
        seen: Int[Array, "B"],
        codes: Int[Array, "B Q y"],
        lengths: Int[Array, "B"],
    ) -> tuple[KVCache, tuple[Float[Array, "B _history _C"], ...], Float32[Array, "B y*{self.frame_samples}"]]:
        batch, books, frames = codes.shape
        if books != self.config.codebooks:
            raise ValueError(f"codes: expected [batch, {self.config.codebooks}, frames], got {list(codes.shape)}")
        past = CausalState(tails, seen, lengths, frames)
        first = jnp.arange(books)[None, :, None] * self.config.codebook
        x = jnp.mean(self.embedding(codes + first), axis=1)
        positions = jnp.broadcast_to(past.positions(frames), (3, batch, frames))
        x, new, _ = self.decoder(x, positions, jnp.arange(frames)[None] < lengths[:, None], cache)
        cache = slide(cache, *new, lengths)
        for upsample, ratio in zip(self.upsamples, self.config.ratios, strict=True):
            x = upsample(x, past, ratio)
        x = self.conv_in(x, past)
        for stage, rate in zip(self.stages, self.config.rates, strict=True):
            x = stage(x, past, rate)
        x = self.conv_out(self.snake(x), past)[..., 0]
        positions, ends = past.positions(x.shape[1]), (seen + lengths) * self.frame_samples - self.lag
        real = (positions >= 0) & (positions < ends[:, None])
        return cache, tuple(past.tails), jnp.where(real, jnp.clip(x, -1, 1), 0).astype(jnp.float32)


def slide(
    cache: KVCache, k: Float[Array, "L B T K H"], v: Float[Array, "L B T K H"], lengths: Int[Array, "B"]
) -> KVCache:
    """Appends to a sliding-window cache: entries that do not fit push the oldest ones out."""
    grown = cache.grow(cache.slots + k.shape[2]).append(k, v, lengths)
    dropped = jnp.maximum(grown.length - cache.slots, 0)

    def last(row_LKSH: Float[Array, "L K _ H"], start: Int[Array, ""]) -> Float[Array, "L K _ H"]:
        return jax.lax.dynamic_slice_in_dim(row_LKSH, start, cache.slots, axis=2)

    last = jax.vmap(last, in_axes=(1, 0), out_axes=1)
    return KVCache(k=last(grown.k, dropped), v=last(grown.v, dropped), length=grown.length - dropped)
