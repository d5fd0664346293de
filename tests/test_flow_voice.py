"""The flow vocoder's laws: a row is itself in any batch, and a stream is the whole to its tolerance, however it is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax import flow_voice
from omni_jax.config.token2wav import BigVGANConfig, DiTConfig, SpeakerEncoderConfig
from omni_jax.flow_voice import decode
from omni_jax.models.bigvgan import BigVGAN
from omni_jax.models.dit import DiT, frame_noise
from omni_jax.nn.layers import Init
from omni_jax.weights.speakers import Speaker

# Blocks of 12 frames are 6 codes, of 24 samples each; BigVGAN hears 11 frames to both sides.
FLOW = DiTConfig(
    layers=4, width=32, heads=2, head_width=16, ffn_width=64, rope_theta=1e4, context=2400, codes=50, code_width=16,
    repeats=2, mel_bins=8, speaker_width=5, block_frames=12, look_ahead=(1,), look_back=(0, 2),
    speaker_encoder=SpeakerEncoderConfig(
        mel_bins=8, channels=(8, 8, 8, 16), kernels=(5, 3, 3, 1), dilations=(1, 2, 3, 1), parts=2, squeeze_width=4,
        attention_width=4, out_width=7,
    ),
)  # fmt: skip
VOCODER = BigVGANConfig(mel_bins=8, channels=16, rates=(4, 3), kernels=(8, 7), block_kernels=(3,), dilations=((1,),))
BLOCK, EACH = 6, 24
STREAMED = 1e-4


def filled(build, config, seed=0):
    """Random weights of the usual scale; no bias is zero, for that would hide what it is added to."""
    random = np.random.default_rng(seed)
    made = jax.jit(lambda: build(Init(jax.random.key(seed), jnp.float32), config))()
    return jax.tree.map(
        lambda leaf: leaf if leaf.ndim > 2 else leaf + 0.05 * random.standard_normal(leaf.shape, np.float32), made
    )


@pytest.fixture(scope="module")
def parts():
    vocoder = filled(BigVGAN, VOCODER)
    # Half as loud: the waveform is not cut at one.
    vocoder.conv_out.kernel[...] = 0.2 * vocoder.conv_out.kernel[...]
    return filled(DiT, FLOW), vocoder


def speaker(seed=0, frames=20):
    random = np.random.default_rng([seed, frames])
    return Speaker(
        bos_token=0,
        cond=random.standard_normal((1, 5), np.float32),
        ref_mel=random.standard_normal((1, frames, 8), np.float32),
    )


SPEAKERS = [speaker(0, 20), speaker(1, 5), speaker(0, 20), speaker(2, 33), speaker(1, 5)]
SEEDS = [3, 4, 2**31 + 5, 6, 7]
LENGTHS = np.array([100, 6, 37, 1, 0])


def speech(rows, codes, seed=0):
    return np.random.default_rng([seed, codes]).integers(0, 50, (rows, codes), np.int32)


def whole(parts, codes, seed=3, voice=SPEAKERS[0]):
    return decode(*parts, codes[None], np.array([len(codes)]), [voice], seeds=[seed])[0]


def assert_same(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def error(found, expected):
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


# --- whole rows


@pytest.fixture(scope="module")
def rows(parts):
    return decode(*parts, speech(5, 100), LENGTHS, SPEAKERS, seeds=SEEDS)


def test_a_row_is_itself_in_a_batch(parts, rows):
    """Beside others, longer or of other voices; behind its end is silence."""
    assert (rows.shape, rows.dtype) == ((5, 100 * EACH), np.float32)
    for row, length in enumerate(LENGTHS):
        own = slice(row, row + 1)
        alone = decode(*parts, speech(5, 100)[own, :length], LENGTHS[own], SPEAKERS[own], seeds=SEEDS[own])
        assert_same(rows[row, : length * EACH], alone[0])
        assert not rows[row, length * EACH :].any()


def test_what_a_row_is_made_of(parts, rows):
    """Modules called by hand, unpadded: noise of the row's seed by its frames' numbers, samples of the mel frames."""
    dit, vocoder = parts
    codes, voice = speech(5, 100)[2:3, :37], SPEAKERS[2]
    noise = frame_noise(jax.random.key(np.uint32(SEEDS[2])), 74, 8)[None]
    mel = jax.jit(lambda model, *given: model.sample(*given))(
        dit, codes, np.array([37]), voice.cond, voice.ref_mel, np.array([20]), noise
    )
    samples = jax.jit(lambda model, *given: model.decode(*given))(vocoder, mel, np.array([74]))
    assert_same(rows[2, : 37 * EACH], np.asarray(samples[0]))
    assert 0.05 < np.abs(samples).max() < 1


def test_noise_is_drawn_or_given(parts, rows):
    noise = np.stack([frame_noise(jax.random.key(np.uint32(seed)), 200, 8) for seed in SEEDS])
    codes = speech(5, 100)
    np.testing.assert_array_equal(decode(*parts, codes, LENGTHS, SPEAKERS, noise=noise), rows)
    np.testing.assert_array_equal(decode(*parts, codes, LENGTHS, SPEAKERS, seeds=SEEDS), rows)
    others = decode(*parts, codes, LENGTHS, SPEAKERS, seeds=[seed + 1 for seed in SEEDS])
    for row in np.flatnonzero(LENGTHS):
        assert error(others[row], rows[row]) > 0.01
    for given in ({}, {"seeds": SEEDS, "noise": noise}):
        with pytest.raises(ValueError, match="expected either seeds or noise"):
            decode(*parts, codes, LENGTHS, SPEAKERS, **given)


def test_voices_are_heard(parts):
    codes = speech(1, 12)[0]
    assert error(whole(parts, codes, voice=speaker(1)), whole(parts, codes, voice=speaker(0))) > 0.01


def test_a_large_batch_takes_several_calls(parts, rows, monkeypatch):
    """Of one row, of two; the longest first, so that short rows are not padded to it."""
    sizes = []
    sound = flow_voice._sound
    monkeypatch.setattr(flow_voice, "_sound", lambda *given: sizes.append(given[2].shape) or sound(*given))
    for frames, expected in ((100, [(1, 102), (1, 42), (4, 6)]), (500, [(2, 102), (2, 6)])):
        monkeypatch.setattr(flow_voice, "CALL_FRAMES", frames)
        found = decode(*parts, speech(5, 100), LENGTHS, SPEAKERS, seeds=SEEDS)
        for row in range(5):
            assert_same(found[row], rows[row])
        assert [size for size, _ in zip(sizes, expected, strict=False)] == [
            (min(a, b), c) for (a, c), b in zip(expected, (5,) * 3, strict=False)
        ]
        sizes.clear()
