"""The flow vocoder's laws: rows are independent, and a stream equals the whole within tolerance, however it is cut."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.config.speech import BigVGANConfig, DiTConfig, Speaker, SpeakerEncoderConfig
from omni_jax.models.qwen2_5_omni.bigvgan import BigVGAN
from omni_jax.models.qwen2_5_omni.dit import DiT, frame_noise
from omni_jax.nn.layers import Init
from omni_jax.speech import token2wav
from omni_jax.speech.synthesizer import checked
from omni_jax.speech.token2wav import FlowStream, decode

# Blocks of 12 frames are 6 codes, of 24 samples each; BigVGAN's receptive field is 11 frames on both sides.
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
    """Random weights of the usual scale; no bias is zero, because that would hide a fault where it is added."""
    random = np.random.default_rng(seed)
    made = jax.jit(lambda: build(Init(jax.random.key(seed), jnp.float32), config))()
    return jax.tree.map(
        lambda leaf: leaf if leaf.ndim > 2 else leaf + 0.05 * random.standard_normal(leaf.shape, np.float32), made
    )


@pytest.fixture(scope="module")
def parts():
    vocoder = filled(BigVGAN, VOCODER)
    # Half as loud, so that the waveform is not clipped at one.
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
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max(initial=0))


def error(found, expected):
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


# --- whole rows


@pytest.fixture(scope="module")
def rows(parts):
    return decode(*parts, speech(5, 100), LENGTHS, SPEAKERS, seeds=SEEDS)


def test_a_row_in_a_batch_equals_its_single_run(parts, rows):
    """Beside longer rows and other voices; after its end is silence."""
    assert (rows.shape, rows.dtype) == ((5, 100 * EACH), np.float32)
    for row, length in enumerate(LENGTHS):
        own = slice(row, row + 1)
        alone = decode(*parts, speech(5, 100)[own, :length], LENGTHS[own], SPEAKERS[own], seeds=SEEDS[own])
        assert_same(rows[row, : length * EACH], alone[0])
        assert not rows[row, length * EACH :].any()


def test_a_row_equals_the_modules_called_by_hand(parts, rows):
    """The modules called by hand, unpadded: noise by the row's seed and frame numbers, then mel, then samples."""
    dit, vocoder = parts
    codes, voice = speech(5, 100)[2:3, :37], SPEAKERS[2]
    noise = frame_noise(jax.random.key(np.uint32(SEEDS[2])), 74, 8)[None]
    mel = jax.jit(lambda model, *given: model.sample(*given))(
        dit, codes, np.array([37]), voice.cond, voice.ref_mel, np.array([20]), noise
    )
    samples = jax.jit(lambda model, *given: model.decode(*given))(vocoder, mel, np.array([74]))
    assert_same(rows[2, : 37 * EACH], np.asarray(samples[0]))
    assert 0.05 < np.abs(samples).max() < 1


def test_noise_is_drawn_from_the_seed_or_given(parts, rows):
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


def test_the_voice_changes_the_samples(parts):
    codes = speech(1, 12)[0]
    assert error(whole(parts, codes, voice=speaker(1)), whole(parts, codes, voice=speaker(0))) > 0.01


def test_a_large_batch_is_decoded_in_several_calls(parts, rows, monkeypatch):
    """The longest rows go first, so that short rows are not padded to them."""
    sizes, sound = [], token2wav._sound
    monkeypatch.setattr(token2wav, "_sound", lambda *given: sizes.append(given[2].shape) or sound(*given))
    for frames, expected in ((100, [(1, 108), (1, 42), (2, 6)]), (500, [(2, 108), (2, 6)])):
        sizes.clear()
        monkeypatch.setattr(token2wav, "MEL_FRAMES_PER_CALL", frames)
        found = decode(*parts, speech(5, 100), LENGTHS, SPEAKERS, seeds=SEEDS)
        for row in range(5):
            assert_same(found[row], rows[row])
        assert sizes == expected


def test_a_call_of_many_rows_is_split(parts):
    """A stream's window has more rows than a call may have."""
    rows = token2wav.Rows.of(SPEAKERS, SEEDS)
    codes, lengths = speech(5, 18), np.array([18, 6, 17, 1, 3])
    together = token2wav._sound(*parts, codes, lengths, rows, 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token2wav, "MEL_FRAMES_PER_CALL", 2 * 36)
        apart = token2wav._sound(*parts, codes, lengths, rows, 12)
    assert together.shape == (5, 18 * EACH)
    assert_same(apart, together)


def test_the_vocoder_decodes_a_long_row_in_windows(parts):
    """Windows of 27 blocks: a row of 400 frames has two, a row of 300 has one."""
    dit, vocoder = parts
    mel = np.random.default_rng(0).standard_normal((3, 400, 8), np.float32) * 3 - 4
    lengths = np.array([400, 300, 320], np.int32)
    expected = np.asarray(jax.jit(lambda model, *given: model.decode(*given))(vocoder, mel, lengths))
    for frames in (400, 300):
        found = token2wav._waveform(dit, vocoder, mel[:, :frames], np.minimum(lengths, frames))
        inside = (frames - (0 if frames == 400 else vocoder.receptive_field)) * VOCODER.frame_samples
        assert_same(found[:, :inside], expected[:, :inside])


def test_padded_sizes_are_few_and_near():
    sizes = [token2wav._slots(blocks) for blocks in range(1, 1366)]
    assert all(blocks <= size <= 1.125 * blocks for blocks, size in enumerate(sizes, 1))
    assert sizes[:16] == list(range(1, 17))
    assert len(set(sizes)) < 70


def test_no_codes_give_silence(parts):
    assert decode(*parts, speech(2, 0), np.array([0, 0]), SPEAKERS[:2], seeds=[0, 1]).shape == (2, 0)
    assert not decode(*parts, speech(2, 9), np.array([0, 0]), SPEAKERS[:2], seeds=[0, 1]).any()


def test_a_row_longer_than_the_context_is_refused(parts):
    dit = filled(DiT, replace(FLOW, context=100))
    codes = speech(2, 51)
    assert decode(dit, parts[1], codes, np.array([50, 3]), SPEAKERS[:2], seeds=[0, 1]).shape == (2, 51 * EACH)
    with pytest.raises(ValueError, match="codes: expected at most 50 of a row, got 51; cut the speech into pieces"):
        decode(dit, parts[1], codes, np.array([3, 51]), SPEAKERS[:2], seeds=[0, 1])


def test_codes_of_two_or_three_axes_are_accepted():
    codes, how = speech(2, 9), {"codebooks": 1, "codebook": FLOW.codes}
    for given in (codes[:, None], codes[:1]):
        ids, lengths = checked(given, None, **how)
        np.testing.assert_array_equal(ids[:, 0], codes[: len(ids)])
        np.testing.assert_array_equal(lengths, [9] * len(ids))
    given = np.where(np.arange(9) < 4, codes, -1)  # codes after a row's end may have any value
    ids, lengths = checked(given[:, None], [4, 0], **how)
    np.testing.assert_array_equal(ids[:, 0], np.where(np.arange(9) < [[4], [0]], codes, 0))
    np.testing.assert_array_equal(lengths, [4, 0])


REFUSED = {
    "no axis of one codebook": ((2, 9), None, 0, r"whole numbers of shape \[B, 1, Y\] or \[1, Y\], got int32 of shape \[2, 9\]"),
    "several codebooks": ((2, 4, 9), None, 0, r"got int32 of shape \[2, 4, 9\]"),
    "no rows": ((0, 1, 9), None, 0, "whole numbers of shape"),
    "too long": ((2, 1, 9), [3, 10], 0, r"lengths: expected a number of frames from 0 to 9 for each of 2 rows, got \[3, 10\]"),
    "too few lengths": ((2, 1, 9), [3], 0, "for each of 2 rows"),
    "below zero": ((2, 1, 9), None, -1, "codes: expected ids from 0 to 49, got -1 to -1"),
    "beyond the table": ((2, 1, 9), None, 50, "codes: expected ids from 0 to 49, got 50 to 50"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_codes_outside_the_codebook_are_refused(case):
    shape, lengths, value, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        checked(np.full(shape, value, np.int32), lengths, codebooks=1, codebook=FLOW.codes)
    with pytest.raises(ValueError, match="whole numbers"):
        checked(np.zeros((1, 9)), None, codebooks=1, codebook=FLOW.codes)


# --- a stream


def pieces(parts, codes, sizes, seed=3, voice=SPEAKERS[0]):
    """The chunks of a stream; the last group size is repeated to the end."""
    stream = FlowStream(*parts, [voice], [seed])
    starts = [0, *np.cumsum(sizes).tolist()]
    while starts[-1] < len(codes):
        starts.append(starts[-1] + sizes[-1])
    starts = [start for start in starts if start < len(codes)] or [0]
    found = []
    for start, end in zip(starts, [*starts[1:], len(codes)], strict=True):
        given = np.zeros((1, 40), np.int32)  # a row's own codes come first in a call
        given[0, : end - start] = codes[start:end]
        found += stream.add_codes(given, np.array([start]), np.array([end]), np.array([end == len(codes)]))
    return found


@pytest.mark.parametrize("length", [1, 5, 6, 24, 25, 36, 96, 100])
@pytest.mark.parametrize("sizes", [(1, 2, 4, 8, 16, 25), (24,)])
def test_a_stream_equals_the_whole(parts, length, sizes):
    """Also if it ends with a block, before the first window is full, or with its first code."""
    codes = speech(1, length)[0]
    assert error(np.concatenate(pieces(parts, codes, sizes)), whole(parts, codes)) < STREAMED


def test_a_window_is_decoded_once_its_look_ahead_is_there(parts):
    """A block's sound needs the next three blocks; later windows have 2, 4 and 8 new blocks; the end flushes all."""
    counts = [len(part) // (EACH * BLOCK) for part in pieces(parts, speech(1, 200)[0], (1,))]
    came = {codes: count for codes, count in enumerate(counts, 1) if count}
    assert came == {24: 1, 36: 2, 60: 4, 108: 8, 156: 8, 200: 10}


def test_a_stream_does_not_depend_on_how_its_codes_are_grouped(parts):
    codes = speech(1, 200)[0]
    one = np.concatenate(pieces(parts, codes, (25,)))
    assert_same(np.concatenate(pieces(parts, codes, (7,))), one, STREAMED)
    np.testing.assert_array_equal(np.concatenate(pieces(parts, codes, (25,))), one)
    assert error(np.concatenate(pieces(parts, codes, (25,), seed=4)), one) > 0.01


def test_errors_of_a_stream_do_not_accumulate(parts):
    codes = speech(1, 480)[0]
    wrong = np.abs(np.concatenate(pieces(parts, codes, (24,))) - whole(parts, codes))
    parts_of_it = wrong.reshape(4, -1).max(axis=1) / np.abs(whole(parts, codes)).max()
    assert parts_of_it.max() < STREAMED
    assert parts_of_it[-1] < 3 * parts_of_it[:2].max()


def test_more_look_ahead_and_context_reduce_the_error(parts, monkeypatch):
    """The chosen sizes are needed, and with enough of both only rounding remains."""
    codes, errors = speech(1, 160)[0], {}
    for back, ahead in ((4, 1), (1, 3), (4, 3), (6, 5)):
        monkeypatch.setattr(token2wav, "BACK", back)
        monkeypatch.setattr(token2wav, "AHEAD", ahead)
        errors[back, ahead] = error(np.concatenate(pieces(parts, codes, (24,))), whole(parts, codes))
    assert errors[4, 3] < STREAMED
    assert min(errors[4, 1], errors[1, 3]) > 10 * errors[4, 3]
    assert errors[6, 5] < 2e-6


def test_a_stream_may_be_longer_than_the_flows_context(parts):
    """The flow holds windows, not the row."""
    short = filled(DiT, replace(FLOW, context=360)), parts[1]
    codes = speech(1, 250)[0]
    np.testing.assert_array_equal(
        np.concatenate(pieces(short, codes, (24,))), np.concatenate(pieces(parts, codes, (24,)))
    )


def test_streams_of_any_length_compile_four_programs(parts):
    """The programs of the four windows, whatever the length and the end."""
    pieces(parts, speech(1, 200)[0], (24,))
    before = token2wav.mel_of_codes._cache_size(), token2wav.samples_of_mel._cache_size()
    for length in (1, 20, 41, 77, 143, 290):
        pieces(parts, speech(1, length)[0], (25,))
    assert (token2wav.mel_of_codes._cache_size(), token2wav.samples_of_mel._cache_size()) == before


# --- rows that end one by one


def streamed(parts, codes, lengths, *, size=24):
    """Sound of each row, in a batch that drops ended rows as its caller does, and the calls at which it came."""
    stream = FlowStream(*parts, SPEAKERS[: len(codes)], SEEDS[: len(codes)])
    rows, counts, ended = np.arange(len(codes)), np.zeros(len(codes), int), np.zeros(len(codes), bool)
    found, calls = [[] for _ in codes], [[] for _ in codes]
    for call in range(-(-max(lengths) // size)):
        count = 1 << (int((~ended).sum()) - 1).bit_length()
        if count < len(rows):
            index = np.argsort(ended, kind="stable")[:count]
            rows, counts, ended = rows[index], counts[index], ended[index]
            stream.keep_rows(index)
        after = np.where(ended, counts, np.minimum(lengths[rows], counts + size))
        given = np.zeros((len(rows), size), np.int32)
        for number, row in enumerate(rows):
            new = codes[row, counts[number] : after[number]]
            given[number, : len(new)] = new
        over = after >= lengths[rows]
        for row, samples in zip(rows, stream.add_codes(given, counts, after, over), strict=True):
            if samples.size:
                found[row].append(samples)
                calls[row].append(call)
        counts, ended = after, over
    assert not stream.live.any()
    return [np.concatenate(parts or [np.zeros(0, np.float32)]) for parts in found], calls


ENDS = np.array([170, 60, 25, 0, 60])


def test_streams_of_a_batch_equal_single_streams(parts):
    """Rows that end in the first call, later, or never began; two end at once, and others continue."""
    codes = speech(5, 170)
    found, calls = streamed(parts, codes, ENDS)
    for row, length in enumerate(ENDS):
        alone = pieces(parts, codes[row, :length], (24,), SEEDS[row], SPEAKERS[row])
        assert_same(found[row], np.concatenate(alone))
        assert calls[row] == [call for call, samples in enumerate(alone) if samples.size]
        if length:
            assert error(found[row], whole(parts, codes[row, :length], SEEDS[row], SPEAKERS[row])) < STREAMED
