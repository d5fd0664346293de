"""The flow's laws: rows are independent, blocks attend as masked, pieces equal the whole, noise is by frame."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.config.speech import DiTConfig, SpeakerEncoderConfig
from omni_jax.models.qwen2_5_omni.dit import DiT, attend_blocks, frame_noise, sway_times
from omni_jax.nn.layers import Init

# Blocks of 8 frames are 4 codes.
SMALL = DiTConfig(
    layers=3, width=16, heads=2, head_width=8, ffn_width=32, rope_theta=1e4, context=64, codes=50, code_width=8, repeats=2,
    mel_bins=6, speaker_width=5, block_frames=8, look_ahead=(1,), look_back=(0,),
    speaker_encoder=SpeakerEncoderConfig(
        mel_bins=6, channels=(8, 8, 8, 16), kernels=(5, 3, 3, 1), dilations=(1, 2, 3, 1), parts=2, squeeze_width=4,
        attention_width=4, out_width=7,
    ),
)  # fmt: skip
PUBLISHED = DiTConfig(
    layers=22, width=1024, heads=16, head_width=64, ffn_width=2048, rope_theta=1e4, context=32768, codes=8194,
    code_width=512, repeats=2, mel_bins=80, speaker_width=192, block_frames=24, look_ahead=(10,), look_back=(0, 20),
    speaker_encoder=SpeakerEncoderConfig(
        mel_bins=80, channels=(256, 256, 256, 256, 768), kernels=(5, 3, 3, 3, 1), dilations=(1, 2, 3, 4, 1), parts=2,
        squeeze_width=64, attention_width=64, out_width=128,
    ),
)  # fmt: skip
LENGTHS = np.array([20, 1, 13])
CODES = 20


def abstract(config, dtype=jnp.float32):
    return jax.eval_shape(lambda: DiT(Init(jax.random.key(0), dtype), config))


def filled(config):
    """All parameters are random (a zero bias would hide a fault), and small enough that the flow is not chaotic."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * random.normal(size=leaf.shape), leaf.dtype), abstract(config))


@pytest.fixture(scope="module")
def dit():
    return filled(SMALL)


@pytest.fixture(scope="module")
def inputs():
    """Codes, lengths, speakers, reference mels, their lengths, noise."""
    random = np.random.default_rng(1)
    return [
        random.integers(0, 50, (3, CODES), np.int32),
        LENGTHS,
        random.standard_normal((3, 5), np.float32),
        random.standard_normal((3, 12, 6), np.float32),
        np.array([12, 5, 9]),
        random.standard_normal((3, 2 * CODES, 6), np.float32),
    ]


@jax.jit
def velocity(model, inputs, start=0):
    *condition, x = inputs
    return model.velocity(x, jnp.float32(0.4), model.condition(*condition, start))


@partial(jax.jit, static_argnums=2)
def sample(model, inputs, guidance=0.5, start=0):
    return model.sample(*inputs, start, steps=4, guidance=guidance)


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_parameter_count_is_the_published_one():
    for dtype in (jnp.float32, jnp.bfloat16):
        leaves = jax.tree.leaves(abstract(PUBLISHED, dtype))
        assert sum(leaf.size for leaf in leaves) == 333_607_760
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}


# --- rows are independent


def test_padded_equals_alone(dit, inputs):
    whole = np.asarray(sample(dit, inputs))
    codes, lengths, speakers, mels, voices, noise = inputs
    for row, (length, voice) in enumerate(zip(lengths, voices, strict=True)):
        one = slice(row, row + 1)
        alone = [
            codes[one, :length],
            lengths[one],
            speakers[one],
            mels[one, :voice],
            voices[one],
            noise[one, : 2 * length],
        ]
        assert_same(sample(dit, alone)[0], whole[row, : 2 * length])
        assert not whole[row, 2 * length :].any()


def test_codes_and_noise_beyond_a_rows_length_are_ignored(dit, inputs):
    codes, lengths, speakers, mels, voices, noise = inputs
    behind = np.arange(2 * CODES) >= 2 * lengths[:, None]
    other = [
        np.where(behind[:, ::2], 49 - codes, codes),
        lengths,
        speakers,
        np.where((np.arange(12) >= voices[:, None])[..., None], 7, mels),
        voices,
        np.where(behind[..., None], 7, noise),
    ]
    np.testing.assert_array_equal(sample(dit, other), sample(dit, inputs))


# --- blocks attend as masked


@pytest.mark.parametrize(
    ("looks", "seen"),
    [
        ((False, False), [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ((True, False), [[1, 0, 0], [1, 1, 0], [0, 1, 1]]),
        ((False, True), [[1, 1, 0], [0, 1, 1], [0, 0, 1]]),
        ((True, True), [[1, 1, 0], [1, 1, 1], [0, 1, 1]]),
    ],
)
def test_attention_by_blocks_equals_masked_attention(looks, seen):
    """Blocks of 4; the last one has only 3 frames, of which 2 are real."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 11, 2, 8), np.float32)
    real = np.arange(11) < 10
    found = attend_blocks(*map(jnp.asarray, (q, k, v)), jnp.asarray(real[None]), jnp.array(looks), size=4)
    mask = np.kron(seen, np.ones((4, 4)))[:11, :11].astype(bool) & real
    scores = np.where(mask, np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(8), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)
    assert_same(found[:, real], expected[:, real])


def test_a_block_affects_only_the_blocks_that_attend_to_it(dit, inputs):
    """The first layer looks back and the second ahead: block 2 of 0 to 4 changes blocks 1 to 3."""
    inputs = [leaf[:1] for leaf in inputs]
    changed = [leaf.copy() for leaf in inputs]
    changed[0][0, 9] = (changed[0][0, 9] + 1) % 50
    frames = np.nonzero(np.asarray(velocity(dit, inputs) - velocity(dit, changed)))[1]
    assert {*frames // 8} == {1, 2, 3}
    ahead = replace(SMALL, look_back=(), look_ahead=(0, 2))
    frames = np.nonzero(np.asarray(velocity(filled(ahead), inputs) - velocity(filled(ahead), changed)))[1]
    assert {*frames // 8} == {0, 1, 2}


# --- a piece equals the whole


def piece(inputs, first, end):
    codes, _, speakers, mels, voices, noise = (leaf[:1] for leaf in inputs)
    return [codes[:, first:end], np.array([end - first]), speakers, mels, voices, noise[:, 2 * first : 2 * end]]


def test_a_piece_equals_the_whole_where_blocks_attend_only_to_themselves(inputs):
    model = filled(replace(SMALL, look_back=(), look_ahead=()))
    whole = sample(model, [leaf[:1] for leaf in inputs])
    assert_same(sample(model, piece(inputs, 8, 16), 0.5, np.array([16])), whole[:, 16:32])


def test_a_piece_with_its_neighbours_equals_the_whole(dit, inputs):
    """A velocity depends on one block before and one after; over a whole flow each step reaches a little further."""
    whole = velocity(dit, [leaf[:1] for leaf in inputs])
    assert_same(velocity(dit, piece(inputs, 4, 16), np.array([8]))[:, 8:16], whole[:, 16:24])


def test_a_piece_needs_its_absolute_positions(dit, inputs):
    """Rope depends only on differences, but rounds them: a piece equals the whole exactly only at its own positions."""
    here = velocity(dit, piece(inputs, 0, 4), np.array([0]))
    there = velocity(dit, piece(inputs, 0, 4), np.array([16_000]))
    assert 0 < np.abs(here - there).max() < 1e-2 * np.abs(here).max()


# --- noise, time and guidance


def test_noise_depends_only_on_seed_and_frame_number():
    key = jax.random.key(3)
    whole = frame_noise(key, 40, 6)
    assert whole.dtype == jnp.float32
    np.testing.assert_array_equal(frame_noise(key, 7, 6), whole[:7])
    np.testing.assert_array_equal(frame_noise(key, 9, 6, start=jnp.int32(31)), whole[31:])
    many = np.asarray(frame_noise(key, 2000, 6))
    assert abs(many.mean()) < 0.03
    assert abs(many.std() - 1) < 0.03
    assert np.abs(np.asarray(frame_noise(jax.random.key(4), 40, 6)) - whole).max() > 1


def test_times_are_swayed():
    times = sway_times(10, -1.0)
    np.testing.assert_allclose(times, 1 - np.cos(np.pi / 2 * np.linspace(0, 1, 10)), atol=1e-7)
    np.testing.assert_allclose(sway_times(10, None), np.linspace(0, 1, 10), atol=1e-7)


def test_the_error_falls_with_the_fourth_power_of_the_steps(dit, inputs):
    """The solver is of fourth order: on a smooth flow, halving the step size divides the error by sixteen."""
    dit = jax.tree.map(lambda leaf: leaf, dit)
    dit.time_in.kernel[...] = jnp.zeros_like(dit.time_in.kernel[...])
    exact, *errors = (
        np.asarray(
            jax.jit(lambda model, inputs, steps=steps: model.sample(*inputs, steps=steps, sway=None))(dit, inputs)
        )
        for steps in (33, 5, 9)
    )
    coarse, fine = (np.abs(found - exact).max() for found in errors)
    assert coarse / fine > 12  # a solver of third order would give 8


def test_guidance_is_linear(dit, inputs):
    *condition, x = inputs

    @partial(jax.jit, static_argnums=1)
    def at(model, guidance):
        return model.velocity(x, jnp.float32(0.4), model.condition(*condition), guidance=guidance)

    none, half, one = (at(dit, guidance) for guidance in (0.0, 0.5, 1.0))
    assert_same(one - none, 2 * (half - none))
    assert np.abs(half - none).max() > 1e-2


def test_no_codes_give_no_frames(dit, inputs):
    codes, lengths, speakers, mels, voices, noise = inputs
    assert dit.sample(codes[:, :0], 0 * lengths, speakers, mels, voices, noise[:, :0]).shape == (3, 0, 6)


def test_wrong_arguments_are_refused(dit, inputs):
    codes, lengths, speakers, mels, voices, noise = inputs
    with pytest.raises(ValueError, match="codes: expected at most 32 of a row, got 40"):
        dit.sample(np.tile(codes, 2), lengths, speakers, mels, voices, np.tile(noise, (1, 2, 1)))
    with pytest.raises(ValueError, match=r"noise: expected \[3, 40, 6\], got \[3, 20, 6\]"):
        dit.sample(codes, lengths, speakers, mels, voices, noise[:, :20])
    with pytest.raises(ValueError, match=r"at least 2 steps and a guidance of 0 or more, got 1 and 0\.5"):
        dit.sample(*inputs, steps=1)
    with pytest.raises(ValueError, match="reference mel: expected at least 4 frames, got 3"):
        dit.sample(codes, lengths, speakers, mels[:, :3], voices.clip(max=3), noise)
