"""The vocoder's laws: a stream equals the whole, rows are independent, and memory does not grow with time."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from omni_jax.config import Code2WavConfig, DecoderConfig
from omni_jax.models.qwen3_omni.code2wav import Code2Wav
from omni_jax.nn.layers import Init
from omni_jax.parallel.mesh import make_mesh
from omni_jax.plan.hlo import HloProgram
from omni_jax.speech import qwen3_omni
from omni_jax.speech.qwen3_omni import decode

# Two stages instead of four, which compile in half the time: 24 samples a frame, of which the last 15 wait for the next one.
SMALL = Code2WavConfig(
    decoder=DecoderConfig(
        layers=3, width=16, heads=2, kv_heads=2, head_width=8, ffn_width=24, norm_eps=1e-5, rope_theta=1e4,
        qk_norm=False, layer_scale=True, window=8,
    ),
    codebook=64, codebooks=4, width=16, channels=16, rates=(4, 3), ratios=(2,),
)  # fmt: skip

step = jax.jit(lambda model, state, codes, lengths: model.step(state, codes, lengths))

# Rows of speech that end in the first step, in a later one, and never.
LENGTHS = np.array([58, 20, 3, 1, 31])
FRAMES = 58


def abstract(config):
    return jax.eval_shape(lambda: Code2Wav(Init(jax.random.key(0), jnp.float32), config))


@pytest.fixture(scope="module")
def vocoder():
    """All parameters are random: a zero bias would hide faults at the beginning, a small scale those of its branch."""
    random = np.random.default_rng(0)

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        mean, spread = (1 if "scale" in name or "gamma" in name else 0), 0.1
        if "kernel" in name:
            spread = 0.8 / math.sqrt(math.prod(leaf.shape[:-1]))
        if "table" in name:
            spread = 1
        return jnp.asarray(mean + spread * random.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, abstract(SMALL))


def speech(rows, frames, seed=0):
    return np.random.default_rng([seed, frames]).integers(0, 64, (rows, 4, frames), np.int32)


@pytest.fixture(scope="module")
def whole(vocoder):
    return np.asarray(decode(vocoder, speech(len(LENGTHS), FRAMES), LENGTHS))


def heard(model, codes, turns):
    """Each row's samples of a stream; ``turns`` are the frames of a step and how many of them each row takes."""
    state, at = model.start(len(codes)), np.zeros(len(codes), int)
    rows = [[] for _ in codes]
    for size, new in turns:
        piece = np.full((*codes.shape[:2], size), 63, np.int32)  # padding is not silence
        for row, count in enumerate(new):
            piece[row, :, :count] = codes[row, :, at[row] : at[row] + count]
        state, samples = step(model, state, piece, np.asarray(new, np.int32))
        for row, count in enumerate(new):
            first = model.lag if at[row] == 0 else 0
            rows[row].append(np.asarray(samples[row])[first : count * model.frame_samples])
            assert not np.any(samples[row, count * model.frame_samples :])
        at += new
    np.testing.assert_array_equal(state.frames, at)
    return [np.concatenate(row) for row in rows]


def assert_same(model, rows, whole, lengths=LENGTHS):
    for row, expected, length in zip(rows, whole, lengths, strict=True):
        assert len(row) == model.samples(length)
        np.testing.assert_allclose(row, expected[: len(row)], atol=1e-5 * np.abs(expected).max())


def test_the_number_of_samples_follows_from_the_frames(vocoder):
    assert (vocoder.frame_samples, vocoder.lag) == (24, 15)
    published = abstract(replace(SMALL, channels=64, rates=(8, 5, 4, 3), ratios=(2, 2)))
    assert (published.frame_samples, published.lag) == (1920, 555)
    assert [published.samples(frames) for frames in (0, 1, 2, 300)] == [0, 1365, 3285, 575_445]


# --- a stream equals the whole


@pytest.mark.parametrize("sizes", [[1] * 58, [4] * 15, [25] * 3, [1, 1, 4, 25, 1, 25, 4], [25, 4, 4, 25]])
def test_a_stream_equals_the_whole(vocoder, whole, sizes):
    starts = np.cumsum([0, *sizes])
    turns = [(size, np.clip(LENGTHS - start, 0, size)) for start, size in zip(starts, sizes, strict=False)]
    assert_same(vocoder, heard(vocoder, speech(len(LENGTHS), FRAMES), turns), whole)


@pytest.mark.parametrize("seed", range(3))
def test_rows_may_take_different_numbers_of_frames_a_step(vocoder, whole, seed):
    """A row may wait while others speak, and take fewer frames than a step has."""
    random, left, turns = np.random.default_rng(seed), LENGTHS.copy(), []
    while left.any():
        size = random.choice([1, 4])
        turns.append((size, np.minimum(left, random.integers(0, size + 1, len(left)))))
        left -= turns[-1][1]
    assert_same(vocoder, heard(vocoder, speech(len(LENGTHS), FRAMES), turns), whole)


def test_a_waiting_row_keeps_its_state(vocoder):
    state, _ = step(vocoder, vocoder.start(5), speech(5, 25), np.full(5, 25))
    later, _ = step(vocoder, state, speech(5, 4), np.array([0, 4, 1, 2, 3]))
    for now, before in zip(jax.tree.leaves(later), jax.tree.leaves(state), strict=True):
        assert (now.shape, now.dtype) == (before.shape, before.dtype)  # one program serves all steps
        row = (slice(None), 0) if now.ndim == 5 else 0
        np.testing.assert_array_equal(now[row], before[row])
    assert not np.array_equal(later.tails[0][1], state.tails[0][1])


# --- rows are independent


def test_padded_equals_alone(vocoder, whole):
    """Neither the padding of a row nor the other rows have an effect."""
    codes = speech(len(LENGTHS), FRAMES)
    for row in (1, 3):
        length = LENGTHS[row]
        alone = np.asarray(decode(vocoder, codes[row : row + 1, :, :length], LENGTHS[row : row + 1]))[0]
        assert_same(vocoder, [alone], whole[row : row + 1], [length])
        assert not whole[row, vocoder.samples(length) :].any()
    codes = np.where(np.arange(FRAMES) < LENGTHS[:, None, None], codes, 63 - codes)
    np.testing.assert_array_equal(decode(vocoder, codes, LENGTHS), whole)


def test_rows_are_sharded_over_devices(vocoder, whole):
    """Every row is on its own device with its state; nothing is sent."""
    mesh = make_mesh("data=2,model=2", devices=jax.devices())
    placed = jax.device_put(vocoder, NamedSharding(mesh, PartitionSpec()))
    rows = [0, 1, 2, 4]
    found = decode(placed, speech(len(LENGTHS), FRAMES)[rows], LENGTHS[rows])
    assert_same(
        vocoder,
        [row[: vocoder.samples(n)] for row, n in zip(found, LENGTHS[rows], strict=True)],
        whole[rows],
        LENGTHS[rows],
    )
    state = qwen3_omni._first_state(placed, 4)
    assert {leaf.sharding.shard_shape(leaf.shape)[leaf.ndim == 5] for leaf in jax.tree.leaves(state)} == {1}
    numbers = np.zeros(4, np.int32)
    call = qwen3_omni.samples_of_codes.lower(placed, state, speech(4, 25), numbers, numbers + 25, frames=25).compile()
    assert not HloProgram(call.as_text()).collectives()
    kept = qwen3_omni._take(placed, state, np.array([0, 2]))
    assert {leaf.sharding.shard_shape(leaf.shape)[leaf.ndim == 5] for leaf in jax.tree.leaves(kept)} == {1}


def test_a_frame_changes_only_samples_from_its_lag_to_the_window(vocoder, whole):
    """A frame changes samples from ``lag`` before its own. Three layers with a window of 8 reach 21 frames further, and
    the convolutions 19 more."""
    codes = speech(len(LENGTHS), FRAMES)
    codes[0, :, 15] = (codes[0, :, 15] + 32) % 64
    changed = np.nonzero(whole - np.asarray(decode(vocoder, codes, LENGTHS)))
    assert set(changed[0]) == {0}
    assert changed[1].min() == 15 * 24 - 15
    assert (15 + 21) * 24 < changed[1].max() < (15 + 21 + 20) * 24


def test_no_frames_give_no_samples_and_wrong_codebooks_are_refused(vocoder):
    assert decode(vocoder, np.zeros((2, 4, 0), np.int32), np.zeros(2, np.int32)).shape == (2, 0)
    with pytest.raises(ValueError, match=r"codes: expected \[batch, 4, frames\], got \[2, 1, 8\]"):
        vocoder.step(vocoder.start(2), jnp.zeros((2, 1, 8), jnp.int32), jnp.zeros(2, jnp.int32))


def test_the_waveform_is_clipped_at_one(vocoder, whole):
    """The waveform is scaled to a largest sample of 1.6; samples beyond 1 are clipped."""
    louder = jax.tree.map(lambda leaf: leaf, vocoder)
    gain = np.float32(1.6 / np.abs(whole).max())
    louder.conv_out.kernel[...] = gain * vocoder.conv_out.kernel[...]
    louder.conv_out.bias[...] = gain * vocoder.conv_out.bias[...]
    found = np.asarray(decode(louder, speech(len(LENGTHS), FRAMES), LENGTHS))
    np.testing.assert_allclose(found, np.clip(gain * whole, -1, 1), atol=1e-5)
    assert np.abs(found).max() == 1


def test_bfloat16_weights_give_float32_samples(vocoder, whole):
    """Weights decide the arithmetic; samples are float32."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), vocoder)
    state, found = step(half, half.start(len(LENGTHS)), speech(len(LENGTHS), FRAMES)[..., :4], LENGTHS.clip(0, 4))
    assert found.dtype == jnp.float32
    assert {leaf.dtype for leaf in (*state.tails, state.cache.k)} == {jnp.dtype(jnp.bfloat16)}
    expected = whole[0, : vocoder.samples(4)]
    error = np.abs(found[0, vocoder.lag :] - expected).max() / np.abs(expected).max()
    assert 1e-5 < error < 0.05


def test_half_an_hour_needs_one_program_and_constant_state(vocoder, compiled):
    """Any length is steps of one program, which remembers no more after half an hour (22,500 frames) than after a second."""
    decode(vocoder, speech(1, 30), np.array([30]))
    compiled.clear()
    found = decode(vocoder, speech(1, 22_500), np.array([22_500]))
    assert found.shape == (1, 22_500 * 24 - 15)
    assert not compiled
