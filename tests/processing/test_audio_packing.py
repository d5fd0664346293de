"""Packing: every frame once and in order, whole windows, and clips from arrays with masks or lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.buckets import CHUNK_SLOTS
from omni_jax.config import AudioEncoderConfig, Qwen25AudioEncoderConfig
from omni_jax.processing.audio_packing import pack, split_clips

LENGTHS = st.lists(st.integers(1, 1300), min_size=1, max_size=9)


def config(window_chunks):
    """Of Qwen3-Omni's encoder, with chunks of 100 frames."""
    return AudioEncoderConfig(
        mel_bins=2, layers=1, width=8, heads=1, ffn_width=8, channels=1, chunk_frames=100, window_chunks=window_chunks,
        out_width=8,
    )  # fmt: skip


# Of Qwen2.5-Omni's, with chunks of 200.
POOLED = Qwen25AudioEncoderConfig(mel_bins=2, layers=1, width=8, heads=1, ffn_width=8, chunk_frames=200, out_width=8)
WINDOWED = st.sampled_from([config(chunks) for chunks in (1, 2, 3, 8)])
ENCODERS = st.one_of(WINDOWED, st.just(POOLED))


def numbered(lengths):
    """Clips whose frames are numbered from 1 across all clips, in both mel bins."""
    ends = np.cumsum(lengths)
    frames = [np.arange(end - length + 1, end + 1) for end, length in zip(ends, lengths, strict=True)]
    return [np.stack([numbers, -numbers]).astype(np.float32) for numbers in frames]


# --- how many tokens a clip has


@pytest.mark.parametrize(
    ("encoder", "tokens"),
    [
        (config(8), [0, 1, 1, 1, 1, 1, 2, 13, 13, 14, 14, 15, 26, 27, 31, 390, 31200]),
        (POOLED, [0, 0, 0, 1, 2, 2, 2, 25, 25, 25, 27, 27, 50, 50, 59, 750, 60000]),
    ],
)
def test_the_number_of_tokens_of_a_clip(encoder, tokens):
    frames = [0, 1, 2, 3, 7, 8, 9, 99, 100, 101, 108, 109, 200, 201, 237, 3000, 240000]
    assert [encoder.tokens(n) for n in frames] == tokens
    np.testing.assert_array_equal(encoder.tokens(np.array(frames)), tokens)
    assert encoder.chunk_tokens == {100: 13, 200: 50}[encoder.chunk_frames]


@given(st.integers(0, 10**4))
@settings(deadline=None)
def test_tokens_are_three_halvings_of_each_hundred_frames(frames):
    tokens = 0
    for start in range(0, frames, 100):
        left = min(100, frames - start)
        for _ in range(3):
            left = (left + 1) // 2
        tokens += left
    assert config(8).tokens(frames) == tokens


@given(st.integers(0, 10**4))
@settings(deadline=None)
def test_tokens_are_the_pairs_of_every_other_frame(frames):
    assert POOLED.tokens(frames) == (frames + 1) // 2 // 2


# --- calls


@given(lengths=LENGTHS, encoder=ENCODERS)
@settings(max_examples=80, deadline=None)
def test_every_frame_appears_once_and_in_order(lengths, encoder):
    calls = list(pack(numbered(lengths), encoder))
    mel = np.concatenate([np.moveaxis(item.mel, 1, 0).reshape(2, -1) for item in calls], axis=1)
    np.testing.assert_array_equal(mel[0], -mel[1])
    np.testing.assert_array_equal(mel[0][mel[0] != 0], np.arange(1, sum(lengths) + 1))
    for item in calls:
        assert len(item.mel) in CHUNK_SLOTS
        assert item.mel.dtype == np.float32


@given(lengths=LENGTHS, encoder=ENCODERS)
@settings(max_examples=80, deadline=None)
def test_tokens_stand_at_their_frames(lengths, encoder):
    """A token of a clip's n-th chunk comes from that chunk's row; every token occurs once."""
    size, chunk_tokens = encoder.chunk_frames, encoder.chunk_tokens
    first = np.cumsum([0, *(encoder.tokens(n) for n in lengths)])
    starts = np.cumsum([0, *lengths])
    seen = [np.empty(0, int)]
    for item in pack(numbered(lengths), encoder):
        assert item.order.shape == (len(item.mel), chunk_tokens)
        for mel, order in zip(item.mel, item.order, strict=True):
            tokens, frames = order[order >= 0], mel[0][mel[0] != 0]
            assert len(tokens) == encoder.tokens(len(frames))
            if len(frames):
                clip = np.searchsorted(starts, frames[0] - 1, side="right") - 1
                chunk = int(frames[0] - 1 - starts[clip]) // size
                assert frames[0] == starts[clip] + size * chunk + 1
                np.testing.assert_array_equal(tokens, first[clip] + chunk_tokens * chunk + np.arange(len(tokens)))
            seen.append(tokens)
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(first[-1]))


@given(lengths=LENGTHS, own=WINDOWED)
@settings(max_examples=60, deadline=None)
def test_windows_are_contiguous_of_one_clip_and_short_enough(lengths, own):
    owner = np.repeat(np.arange(len(lengths)), [own.tokens(n) for n in lengths])
    within = np.concatenate([np.arange(own.tokens(n)) for n in lengths])
    for item in pack(numbered(lengths), own):
        np.testing.assert_array_equal(item.order >= 0, item.window >= 0)
        # Padding inside a clip's last chunk splits no window, because no window continues after it.
        ids, order = item.window[item.window >= 0], item.order[item.order >= 0]
        assert (np.diff(ids) >= 0).all()
        for number in np.unique(ids):
            tokens = order[ids == number]
            assert len(tokens) <= own.window_tokens
            assert len(set(owner[tokens])) == 1
            assert len(set(within[tokens] // own.window_tokens)) == 1
        spans = [np.flatnonzero(item.window.reshape(-1) == number) for number in np.unique(ids)]
        assert all(np.ptp(span) < own.window_tokens for span in spans)
        keys = list(zip(owner[order], within[order] // own.window_tokens, strict=True))
        assert len(set(keys)) == len(np.unique(ids))


@given(lengths=LENGTHS)
@settings(max_examples=30, deadline=None)
def test_the_extent_of_chunks_in_windows_is_the_clip_or_a_whole_chunk(lengths):
    """A clip shorter than a chunk is convolved as if its array ended with it, whatever the other clips."""
    own = config(2)
    owner = np.repeat(np.arange(len(lengths)), [own.tokens(n) for n in lengths])
    for item in pack(numbered(lengths), own):
        assert all(one is other for one, other in zip(item.inputs, (item.mel, item.extent, item.window), strict=True))
        for extent, order in zip(item.extent, item.order, strict=True):
            assert extent == (min(lengths[owner[order[0]]], 100) if order[0] >= 0 else 100)


@given(lengths=LENGTHS)
@settings(max_examples=30, deadline=None)
def test_the_extent_of_independent_chunks_is_their_frames(lengths):
    for item in pack(numbered(lengths), POOLED):
        mel, extent = item.inputs
        np.testing.assert_array_equal(extent, (mel[:, 0] != 0).sum(axis=1))
        assert extent.dtype == np.int32


@pytest.mark.parametrize("encoder", [config(8), POOLED])
def test_hours_of_sound_take_calls_of_bounded_size(encoder):
    """Two hours, as a view without memory; the reference's processor cuts at 300 s."""
    hours = np.broadcast_to(np.float32(0), (2, 720_000))
    count = 0
    for item in pack([hours], encoder):
        assert len(item.mel) <= CHUNK_SLOTS[-1]
        count += int((item.order >= 0).sum())
    assert count == encoder.tokens(720_000)


@given(lengths=LENGTHS, seed=st.integers(0, 9), encoder=ENCODERS)
@settings(max_examples=60, deadline=None)
def test_rows_gives_the_row_of_each_token(lengths, seed, encoder):
    total = sum(encoder.tokens(n) for n in lengths)
    rng = np.random.default_rng(seed)
    index = np.full((3, total + 1), -1, np.int32)  # each token at a random place in a batch of three rows
    index[rng.integers(0, 3, total), np.arange(total)] = np.arange(total)
    found = np.full(index.shape, -1)
    for item in pack(numbered(lengths), encoder):
        rows = item.rows(index)
        assert rows.shape == index.shape
        here = rows >= 0
        found[here] = item.order.reshape(-1)[rows[here]]
    np.testing.assert_array_equal(found, index)


def test_a_batch_without_audio_has_no_rows_of_features():
    (item,) = pack(numbered([50]), config(2))
    np.testing.assert_array_equal(item.rows(np.full((2, 5), -1)), np.full((2, 5), -1))
    assert list(pack([], config(2))) == list(pack([], POOLED)) == []


def test_a_clip_without_a_token_has_a_call_and_no_rows():
    (item,) = pack(numbered([2, 1]), POOLED)
    assert (item.order == -1).all()
    np.testing.assert_array_equal(item.rows(np.array([[0, -1]])), [[-1, -1]])


# --- clips from arrays


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5), spare=st.integers(0, 5), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_list_a_mask_and_lengths_give_the_same_clips(lengths, spare, data):
    clips = numbered(lengths)
    array = np.full((len(lengths), 2, max(lengths) + spare), 99.0)
    for row, clip in zip(array, clips, strict=True):
        row[:, : clip.shape[1]] = clip
    mask = np.arange(array.shape[2]) < np.array(lengths)[:, None]
    mask = mask.astype(data.draw(st.sampled_from([bool, np.int32, np.float32])))
    for found in (
        split_clips(clips, mel_bins=2),
        split_clips(array, mask=mask, mel_bins=2),
        split_clips(array, lengths=lengths, mel_bins=2),
    ):
        assert len(found) == len(clips)
        for one, other in zip(found, clips, strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == np.float32


def test_one_clip_and_an_array_without_padding_are_accepted():
    assert [clip.shape for clip in split_clips(np.zeros((128, 7)))] == [(128, 7)]
    assert [clip.shape for clip in split_clips(np.zeros((2, 128, 7)))] == [(128, 7)] * 2
    assert split_clips([]) == ()


ARRAY = np.zeros((2, 128, 10), np.float32)
HOLE = np.ones((2, 10), int)
HOLE[1, 4] = 0
WRONG = {
    "one axis": (np.zeros(10), {}, r"expected a list of \[128, A\] or one \[B, 128, A\] array, got shape \(10,\)"),
    "four axes": (np.zeros((1, 2, 128, 10)), {}, "got shape"),
    "frames first": (np.zeros((2, 10, 128)), {}, r"clip 0: expected shape \[128, A\] .* got \[10, 128\]"),
    "a clip of 80 bins": ([np.zeros((128, 5)), np.zeros((80, 5))], {}, r"clip 1: .* got \[80, 5\]"),
    "a clip of one axis": ([np.zeros(128)], {}, r"clip 0: expected shape"),
    "mask of another shape": (ARRAY, {"mask": np.ones((2, 9))}, r"mask: expected shape \(2, 10\) .* got \(2, 9\)"),
    "mask of one row": (ARRAY, {"mask": np.ones(10)}, r"mask: expected shape \(2, 10\)"),
    "a hole in the mask": (ARRAY, {"mask": HOLE}, "mask: expected ones on the first frames of each clip"),
    "padding on the left": (ARRAY, {"mask": np.tile(np.arange(10) > 3, (2, 1))}, "mask: expected ones on the first"),
    "an empty mask": (ARRAY, {"mask": np.zeros((2, 10))}, "clip 0: expected at least one frame, got none"),
    "one length too few": (ARRAY, {"lengths": [3]}, "lengths: expected 2 whole numbers, one a clip"),
    "one for all": (ARRAY, {"lengths": 3}, "lengths: expected 2 whole numbers, one a clip"),
    "half a frame": (ARRAY, {"lengths": [3, 2.5]}, "lengths: expected 2 whole numbers"),
    "too long": (ARRAY, {"lengths": [3, 11]}, r"lengths: expected 1 to 10 frames a clip.* got 3 to 11"),
    "negative": (ARRAY, {"lengths": [3, -1]}, r"lengths: expected 1 to 10 frames a clip.* got -1 to 3"),
    "no frames": (ARRAY, {"lengths": [3, 0]}, "clip 1: expected at least one frame, got none"),
    "an empty clip": ([np.zeros((128, 5)), np.zeros((128, 0))], {}, "clip 1: expected at least one frame, got none"),
    "both": (ARRAY, {"lengths": [3, 3], "mask": HOLE}, "expected mask= or lengths=, got both; give one"),
    "a list with lengths": ([ARRAY[0]], {"lengths": [3]}, "a list of clips carries its own lengths"),
    "a list with a mask": ([ARRAY[0]], {"mask": HOLE[:1]}, "a list of clips carries its own lengths"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_raises_one_line(case):
    mel, options, said = WRONG[case]
    with pytest.raises(ValueError, match=said) as error:
        split_clips(mel, **options)
    assert "\n" not in str(error.value)


def test_nan_is_refused_because_it_would_spread_to_other_clips():
    clips = [np.zeros((128, 30), np.float32), np.full((128, 30), np.nan, np.float32)]
    with pytest.raises(ValueError, match="mel: clip 1: expected numbers, got NaN"):
        split_clips(clips)


def test_many_wrong_lengths_raise_one_line():
    with pytest.raises(ValueError, match="lengths: expected 40 whole numbers") as error:
        split_clips(np.zeros((40, 128, 5), np.float32), lengths=np.arange(41))
    assert "\n" not in str(error.value)
