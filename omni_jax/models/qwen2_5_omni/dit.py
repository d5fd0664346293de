"""The flow of Qwen2.5-Omni's vocoder: codes of the talker and a speaker's voice to mel frames.

A diffusion transformer (DiT, arXiv:2212.09748) predicts the velocity of the flow from noise to mel frames (flow
matching, arXiv:2210.02747), and an ODE integrator takes a fixed number of steps along it. Attention is inside blocks of
frames; a few layers also see the previous or the next block. So neighbouring blocks can be computed without all others,
which is how speech is streamed.

What is the same in all steps is computed once: speaker embedding, code embeddings, and each layer's modulation at each
time.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int

from omni_jax.config.speech import DiTConfig
from omni_jax.models.qwen2_5_omni.ecapa_tdnn import SpeakerEncoder
from omni_jax.nn import rope
from omni_jax.nn.layers import Embedding, Init, Linear, Mlp
from omni_jax.nn.rope import CosSin
from omni_jax.nn.softmax import MASKED
from omni_jax.nn.stack import scan, stack

TIME_WIDTH, TIME_SCALE, TIME_THETA = 256, 1000, 10000
NORM_EPS = 1e-6
# Kutta's 3/8 rule: times of the four slopes, weights of the earlier slopes at each, and weights of all in the step.
NODES = np.array([0, 1 / 3, 2 / 3, 1], np.float32)
SLOPES = np.array([[0, 0, 0], [1 / 3, 0, 0], [-1 / 3, 1, 0], [1, -1, 1]], np.float32)
SUM = np.array([1, 3, 3, 1], np.float32) / 8


@struct.dataclass
class Condition:
    """The condition of the flow, as it enters the first layer.

    Attributes:
        given: projected codes, reference voice and speaker embedding of each frame.
        absent: the empty condition for classifier-free guidance (silence, no speaker), the same for all frames.
        mask: which frames are real.
        cos_sin: rope's cosines and sines.
    """

    given: Float[Array, "B T D"]
    absent: Float[Array, "D"]
    mask: Bool[Array, "B T"]
    cos_sin: CosSin


@struct.dataclass
class Modulation:
    """The modulation of the norms at a time, or at several, which are leading axes.

    Attributes:
        layers: shift, scale and gate of attention and of the MLP in each layer.
        out: scale and shift of the output.
    """

    layers: Float[Array, "*times L 6 D"]
    out: Float[Array, "*times 2 D"]


class Block(nnx.Module):
    """Attention and an MLP, each with a norm's shift and scale and a gate that depend on the time (adaLN-Zero)."""

    def __init__(self, init: Init, config: DiTConfig):
        d, n, h = config.width, config.heads, config.head_width
        self.modulation = Linear(init, (d,), (6, d), axes=("embed", None, None), bias=True)
        self.q = Linear(init, (d,), (n, h), axes=("embed", "heads", "head"), bias=True)
        self.k = Linear(init, (d,), (n, h), axes=("embed", "heads", "head"), bias=True)
        self.v = Linear(init, (d,), (n, h), axes=("embed", "heads", "head"), bias=True)
        self.o = Linear(init, (n, h), (d,), axes=("heads", "head", "embed"), bias=True)
        self.mlp = Mlp(init, d, config.ffn_width, d, tanh=True)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        modulation: Float[Array, "6 D"],
        cos_sin: CosSin,
        mask: Bool[Array, "B T"],
        looks: Bool[Array, "2"],
        size: int,
    ) -> Float[Array, "B T D"]:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation[:, None, None]
        y = norm(x) * (1 + scale) + shift
        q_BTNH, k_BTNH = rotate_first(self.q(y), cos_sin), rotate_first(self.k(y), cos_sin)
        x = x + gate * self.o(attend_blocks(q_BTNH, k_BTNH, self.v(y), mask, looks, size=size))
        return x + mlp_gate * self.mlp(norm(x) * (1 + mlp_scale) + mlp_shift)


class DiT(nnx.Module):
    """Reference: Qwen2_5OmniToken2WavDiTModel. Its parameters are float32 in any model, as in the reference."""

    def __init__(self, init: Init, config: DiTConfig):
        init, d = Init(init.key(), jnp.float32), config.width
        self.time_in = Linear(init, (TIME_WIDTH,), (d,), axes=(None, "embed"), bias=True)
        self.time_out = Linear(init, (d,), (d,), axes=("embed", None), bias=True)
        self.codes = Embedding(init, config.codes, config.code_width)
        self.speaker_encoder = SpeakerEncoder(init, config.speaker_encoder)
        # Widths of mel frame, reference voice, code and speaker embedding, in the order of concatenation.
        sizes = (config.mel_bins, config.speaker_encoder.out_width, config.code_width, config.speaker_width)
        self.input = Linear(init, (sum(sizes),), (d,), axes=(None, "embed"), bias=True)
        self.layers = stack(init, config.layers, lambda init: Block(init, config))
        self.modulation = Linear(init, (d,), (2, d), axes=("embed", None, None), bias=True)
        self.out = Linear(init, (d,), (config.mel_bins,), axes=("embed", None), bias=True)
        self.config = config

    def sample(
        self,
        codes: Int[Array, "B Y"],
        lengths: Int[Array, "B"],
        speaker: Float[Array, "B D"],
        mel: Float[Array, "B A Z"],
        mel_lengths: Int[Array, "B"],
        noise: Float[Array, "B T Z"],
        start: Int[Array, "B"] | int = 0,
        *,
        steps: int = 10,
        guidance: float = 0.5,
        sway: float | None = -1.0,
    ) -> Float[Array, "B T Z"]:
        """Mel frames, T = Y * repeats; zero beyond a row's end.

        Args:
            codes: codes, a row's real ones first.
            lengths: real codes of each row.
            speaker: the speaker's embedding.
            mel: reference mel frames of the speaker.
            mel_lengths: real reference mel frames of each row.
            noise: the flow's beginning; see ``frame_noise``.
            start: where the codes are a piece of longer rows, the mel frame at which the piece begins, a multiple of
                ``block_frames``. The piece then equals that part of the whole, except where its first and last blocks
                would have seen their neighbours.
            steps: points of time, one more than the steps taken. Each step computes four velocities.
            guidance: scale of classifier-free guidance; 0 for none, at half the work.
            sway: below 0 for shorter steps at the beginning; None for equal ones.

        Raises:
            ValueError: ``steps`` or ``guidance`` is too small, or ``noise`` has another shape.
        """
        if steps < 2 or guidance < 0:
            raise ValueError(f"expected at least 2 steps and a guidance of 0 or more, got {steps} and {guidance}")
        expected = (*codes.shape[:1], codes.shape[1] * self.config.repeats, self.config.mel_bins)
        if noise.shape != expected:
            raise ValueError(f"noise: expected {list(expected)}, got {list(noise.shape)}")
        if not codes.shape[1]:
            return jnp.zeros(expected, jnp.float32)
        with jax.default_matmul_precision("float32"):
            condition = self.condition(codes, lengths, speaker, mel, mel_lengths, start)
            times = sway_times(steps, sway)
            sizes = times[1:] - times[:-1]
            at = times[:-1, None] + sizes[:, None] * NODES
            at[:, -1] = times[1:]
            modulations = jax.vmap(jax.vmap(self.modulate))(jnp.asarray(at))

            def step(x, inputs):
                size, modulations = inputs

                def slope(slopes, inputs):
                    number, weights, modulation = inputs
                    between = x + size * jnp.tensordot(weights, slopes[:-1], axes=1)
                    return slopes.at[number].set(self._velocity(between, modulation, condition, guidance)), None

                inputs = (jnp.arange(4), jnp.asarray(SLOPES), modulations)
                slopes, _ = jax.lax.scan(slope, jnp.zeros((4, *x.shape), x.dtype), inputs)
                return x + size * jnp.tensordot(SUM, slopes, axes=1), None

            x, _ = jax.lax.scan(step, noise.astype(jnp.float32), (jnp.asarray(sizes), modulations))
            return jnp.where(condition.mask[..., None], x, 0)

    def velocity(
        self, x: Float[Array, "B T Z"], time: Float[Array, ""], condition: Condition, *, guidance: float = 0.5
    ) -> Float[Array, "B T Z"]:
        """The velocity of the flow at a time from 0 (noise) to 1 (mel frames)."""
        with jax.default_matmul_precision("float32"):
            return self._velocity(x, self.modulate(time), condition, guidance)

    def condition(
        self,
        codes: Int[Array, "B Y"],
        lengths: Int[Array, "B"],
        speaker: Float[Array, "B D"],
        mel: Float[Array, "B A Z"],
        mel_lengths: Int[Array, "B"],
        start: Int[Array, "B"] | int = 0,
    ) -> Condition:
        """The condition, which all steps share; see ``sample`` for the arguments."""
        config, frames = self.config, codes.shape[1] * self.config.repeats
        speaker, mel = jnp.asarray(speaker, jnp.float32), jnp.asarray(mel, jnp.float32)
        if frames > config.context:
            raise ValueError(
                f"codes: expected at most {config.context // config.repeats} of a row, got {codes.shape[1]}; "
                "cut the speech into pieces"
            )

        def entered(
            codes: Int[Array, "b n"], voice: Float[Array, "b V"], speaker: Float[Array, "b D"]
        ) -> Float[Array, "b n W"]:
            """The input projection of everything but the mel frames themselves."""
            voice, speaker = (jnp.broadcast_to(x[:, None], (*codes.shape, x.shape[1])) for x in (voice, speaker))
            mel = jnp.zeros((*codes.shape, config.mel_bins))
            return self.input(jnp.concatenate([mel, voice, self.codes(codes), speaker], axis=-1))

        with jax.default_matmul_precision("float32"):
            given = entered(codes, self.speaker_encoder(mel, mel_lengths), speaker)
            # Silence is the same at all times, so a few frames of it give the same embedding as any number.
            least = self.speaker_encoder.frames
            silence = self.speaker_encoder(jnp.zeros((1, least, config.mel_bins)), jnp.full(1, least))
            absent = entered(jnp.zeros((1, 1), jnp.int32), silence, jnp.zeros((1, config.speaker_width)))[0, 0]
        mask = jnp.arange(frames)[None] < lengths[:, None] * config.repeats
        positions = jnp.broadcast_to(jnp.asarray(start), lengths.shape)[:, None] + jnp.arange(frames)[None]
        return Condition(
            jnp.repeat(given, config.repeats, axis=1),
            absent,
            mask,
            rope.cos_sin(rope.angles(positions, config.head_width, config.rope_theta)),
        )

    def modulate(self, time: Float[Array, ""]) -> Modulation:
        """The modulation of each layer at a time."""
        half = TIME_WIDTH // 2
        # The sines take a thousand times the time, so an error in the last digit is audible: all is rounded just once.
        waves = np.arange(half, dtype=np.float32) * np.float32(-math.log(TIME_THETA) / (half - 1))
        angles = (TIME_SCALE * time) * np.exp(waves, dtype=np.float64).astype(np.float32)
        x = self.time_in(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)]))
        x = jax.nn.silu(self.time_out(jax.nn.silu(x)))
        return Modulation(jax.vmap(lambda linear: linear(x))(self.layers.modulation), self.modulation(x))

    def _velocity(
        self, x: Float[Array, "B T Z"], modulation: Modulation, condition: Condition, guidance: float
    ) -> Float[Array, "B T Z"]:
        config = self.config
        x = x @ self.input.kernel[: config.mel_bins]
        mask, cos_sin = condition.mask, condition.cos_sin
        if guidance:
            x = jnp.concatenate([x + condition.given, x + condition.absent[None, None]])
            mask, cos_sin = (
                jnp.concatenate([mask, mask]),
                jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), cos_sin),
            )
        else:
            x = x + condition.given
        looks = np.array([[layer in config.look_back, layer in config.look_ahead] for layer in range(config.layers)])

        def body(x, block, layer, modulation, looks):
            return block(x, modulation, cos_sin, mask, looks, config.block_frames), None

        x, _ = scan(body, x, self.layers, modulation.layers, jnp.asarray(looks))
        scale, shift = modulation.out[:, None, None]
        y = self.out(norm(x) * (1 + scale) + shift)
        if guidance:
            given, absent = jnp.split(y, 2)
            y = given + (given - absent) * guidance
        return y


def norm(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Layer norm without parameters: the modulation takes their place."""
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + NORM_EPS)


def rotate_first(x: Float[Array, "B T N H"], cos_sin: CosSin) -> Float[Array, "B T N H"]:
    """Rope on the first head only, pairs (2k, 2k + 1), as the published model was trained."""
    cos, sin = cos_sin
    left, right = x[:, :, 0, 0::2], x[:, :, 0, 1::2]
    turned = jnp.stack([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return x.at[:, :, 0].set(turned.reshape(*x.shape[:2], -1))


def attend_blocks(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    mask: Bool[Array, "B T"],
    looks: Bool[Array, "2"],
    *,
    size: int,
) -> Float[Array, "B T N H"]:
    """Attention of each block of ``size`` frames to itself and, as ``looks`` says, to the previous and the next one.

    The first frame begins a block. Frames outside of ``mask`` are not seen.
    """
    batch, length, heads, width = q.shape
    blocks = -(-length // size)

    def split(x, beside):
        shape = [(0, 0), (beside * size, (blocks + beside) * size - length)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, shape).reshape(batch, blocks + 2 * beside, size, *x.shape[2:])

    def around(x):
        x = split(x, 1)
        return jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], axis=2)

    def attend(
        q: Float[Array, "B Y t N H"],
        k: Float[Array, "B Y s N H"],
        v: Float[Array, "B Y s N H"],
        mask: Bool[Array, "B Y s"],
    ) -> Float[Array, "B Y t N H"]:
        # Heads before frames: a CPU's small matrix products are twice as fast in this layout.
        q, k, v = (jnp.swapaxes(x, 2, 3) for x in (q, k, v))
        scores = jnp.einsum("BYNTH,BYNSH->BYNTS", q, k) * jnp.float32(width**-0.5)
        weights = jax.nn.softmax(jnp.where(mask[:, :, None, None], scores, MASKED), axis=-1)
        return jnp.swapaxes(jnp.einsum("BYNTS,BYNSH->BYNTH", weights, v), 2, 3)

    def with_neighbours(q, k, v, mask):
        seen = jnp.repeat(jnp.stack([looks[0], jnp.bool(True), looks[1]]), size)
        return attend(split(q, 0), around(k), around(v), around(mask) & seen[None, None])

    def alone(q, k, v, mask):
        return attend(*(split(x, 0) for x in (q, k, v, mask)))

    out = jax.lax.cond(jnp.any(looks), with_neighbours, alone, q, k, v, mask)
    return out.reshape(batch, blocks * size, heads, width)[:, :length]


def sway_times(steps: int, sway: float | None) -> Float[np.ndarray, "{steps}"]:
    """Points of time from 0 to 1 with F5-TTS's sway sampling (arXiv:2410.06885), bit-equal to the reference's."""
    step, number = np.float64(np.float32(1) / np.float32(steps - 1)), np.arange(steps)
    # Counted from the nearer end, and rounded once.
    times = np.where(number < steps // 2, number * step, 1 - (steps - 1 - number) * step).astype(np.float32)
    if sway is None:
        return times
    cosines = np.cos(np.float32(math.pi / 2) * times, dtype=np.float64).astype(np.float32)
    return times + np.float32(sway) * (cosines - 1 + times)


def frame_noise(
    key: jax.Array, frames: int, bins: int, start: Int[Array, ""] | int = 0
) -> Float[Array, "{frames} {bins}"]:
    """The noise of the frames from ``start`` on.

    Each frame's noise depends only on its number, so it is the same in a piece, in a padded row and in the whole.
    """
    draw = jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number), (bins,), jnp.float32))
    return draw(start + jnp.arange(frames))
