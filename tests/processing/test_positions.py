"""Positions and the tokens of a video with sound: printed cases of the reference, laws, and errors.

Prompts are strings, one letter a token: T text, I image, V video, A audio, < > vision_start and _end, ( ) audio_start and _end.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.config import from_hf
from omni_jax.processing.positions import (
    batch_positions,
    interleave,
    next_position,
    text_positions,
    token_positions,
)
from omni_jax.testing import tiny_config

CONFIG = from_hf(tiny_config()).thinker
LETTERS = {
    "T": 7,
    "I": CONFIG.image_token,
    "V": CONFIG.video_token,
    "A": CONFIG.audio_token,
    "<": CONFIG.vision_start,
    ">": CONFIG.vision_end,
    "(": CONFIG.audio_start,
    ")": CONFIG.audio_end,
}


def ids(prompt):
    return np.array([LETTERS[letter] for letter in prompt], np.int32)


def positions(prompt, images=(), videos=(), start=0.0):
    return token_positions(ids(prompt), images, videos, CONFIG, start)


def expect(found, time, height=None, width=None):
    assert found.dtype == np.float32
    height = time if height is None else height
    for axis, values in zip(found, (time, height, height if width is None else width), strict=True):
        np.testing.assert_array_equal(axis, np.array(values, np.float32))


# --- printed by get_rope_index of Transformers 5.23.0


def test_positions_of_text():
    expect(positions("TTTT"), [0, 1, 2, 3])


def test_positions_of_an_image():
    expect(
        positions("T<IIIIII>TT", [(1, 4, 6)]),
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7],
    )


def test_positions_of_a_batch_with_images_and_padding():
    tokens = np.stack([ids("TTT<IIIIII>T"), ids("TTT<IIIIII>T")])
    mask = np.array([[False] * 2 + [True] * 10, [True] * 12])
    found = batch_positions(tokens, mask, [(1, 4, 6)] * 2, [], CONFIG)
    expect(
        found[:, 0],
        [0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 0, 0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 0, 0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    )
    expect(
        found[:, 1],
        [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 7, 8],
        [0, 1, 2, 3, 4, 4, 4, 5, 5, 5, 7, 8],
        [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8],
    )


@pytest.mark.parametrize(
    ("seconds", "later", "after"),
    [(2.0, 28, [29, 30, 31]), (0.7, np.float32(0.7) * np.float32(13) + 2, [12.099999, 13.099999, 14.099999])],
)
def test_positions_of_a_video(seconds, later, after):
    expect(
        positions("T<VVVVVVVV>TT", videos=[((2, 4, 4), seconds)]),
        [0, 1, 2, 2, 2, 2, later, later, later, later, *after],
        [0, 1, 2, 2, 3, 3, 2, 2, 3, 3, *after],
        [0, 1, 2, 3, 2, 3, 2, 3, 2, 3, *after],
    )


def test_positions_of_sound():
    expect(positions("T(AAAAA)TT"), range(10))


def test_positions_of_an_image_and_sound():
    expect(
        positions("T<IIIIII>(AAAAA)T", [(1, 4, 6)]),
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13],
    )


def test_positions_of_a_video_with_sound():
    expect(
        positions("T<(" + "VVVV" + "A" * 26 + "VVVV" + "A" * 13 + ")>T", videos=[((2, 4, 4), 2.0)]),
        [0, 1, 2, 3, 3, 3, 3, *range(3, 29), 29, 29, 29, 29, *range(29, 42), 42, 43, 44],
        [0, 1, 2, 3, 3, 4, 4, *range(3, 29), 3, 3, 4, 4, *range(29, 42), 42, 43, 44],
        [0, 1, 2, 3, 4, 3, 4, *range(3, 29), 3, 4, 3, 4, *range(29, 42), 42, 43, 44],
    )


def test_after_a_large_picture_with_little_sound_positions_go_back():
    found = positions("T<(" + "V" * 64 + "AAA" + ")>T", videos=[((1, 16, 16), 2.0)])
    assert found.max() == 10
    expect(found[:, -6:], [3, 4, 5, 6, 7, 8])


def test_positions_of_padded_rows_of_text():
    mask = np.array([[False, False, True, True, True], [True] * 5])
    found = batch_positions(np.zeros((2, 5), np.int32), mask, [], [], CONFIG)
    expect(found[:, 0], [0, 0, 0, 1, 2])
    expect(found[:, 1], [0, 1, 2, 3, 4])
    lone = batch_positions(np.zeros((1, 3), np.int32), np.array([[False, False, True]]), [], [], CONFIG)
    assert next_position(lone[:, 0]) == 1  # the reference's delta gives 2


def test_the_next_position_follows_the_last_token():
    for prompt, grid, last in (("T<IIIIII>TT", (1, 4, 6), 7), ("T<IIII>T", (1, 4, 4), 5)):
        found = positions(prompt, [grid])
        expect(found[:, -1:], [last])
        assert next_position(found) == last + 1
    assert next_position(positions("<VVVVVVVV", videos=[((2, 4, 4), 0.01)])) == 3  # a wide picture, a short time


# --- cases that the reference does not support


def test_positions_of_videos_with_and_without_sound_in_one_prompt():
    found = positions("<VVVV><(VAAA)><VVVV>", videos=[((4, 2, 2), 1.0), ((1, 2, 2), 1.0), ((4, 2, 2), 1.0)])
    time = [0, 1, 14, 27, 40, 41, 42, 43, 44, 44, 45, 46, 47, 48, 49, 50, 63, 76, 89, 90]
    flat = [0, 1, 1, 1, 1, 41, 42, 43, 44, 44, 45, 46, 47, 48, 49, 50, 50, 50, 50, 90]
    expect(found, time, flat)


@pytest.mark.parametrize("prompt", ["TIIIIIIIIIIT", "T<IIIIIIIIII>T"])
def test_positions_of_adjacent_images(prompt):
    found = positions(prompt, [(1, 4, 4), (1, 4, 6)])
    at = found[:, prompt.index("I") :] - prompt.index("I")
    expect(
        at[:, :10],
        [0, 0, 0, 0, 2, 2, 2, 2, 2, 2],
        [0, 0, 1, 1, 2, 2, 2, 3, 3, 3],
        [0, 1, 0, 1, 2, 3, 4, 2, 3, 4],
    )
    expect(at[:, 10:], np.arange(at.shape[1] - 10) + 5)


def test_positions_of_adjacent_media_of_all_kinds():
    expect(
        positions("IIIIVVAA", [(1, 4, 4)], [((2, 2, 2), 1.0)]),
        [0, 0, 0, 0, 2, 15, 16, 17],
        [0, 0, 1, 1, 2, 2, 16, 17],
        [0, 1, 0, 1, 2, 2, 16, 17],
    )


def test_positions_of_a_video_with_empty_sound():
    expect(positions("<(VV)>", videos=[((2, 2, 2), 1.0)]), [0, 1, 2, 15, 16, 17], [0, 1, 2, 2, 16, 17])


def test_steps_of_an_images_grid_are_a_second_apart():
    expect(positions("III", [(3, 2, 2)]), [0, 13, 26], [0, 0, 0])


def test_seconds_and_grids_may_have_other_number_types():
    grid = np.array([2, 4, 4])
    same = positions("<VVVVVVVV>", videos=[((2, 4, 4), 0.5)])
    np.testing.assert_array_equal(positions("<VVVVVVVV>", videos=[(grid, np.float32(0.5))]), same)
    assert positions("").shape == (3, 0)


# --- laws

SECONDS = st.floats(0.01, 5)
SIDES = st.integers(1, 4)


MEDIA = ("image", "video", "audio", "sounding")


@st.composite
def pieces(draw, kinds=("text", *MEDIA)):
    """Text, or one medium with its start and end tokens: its prompt, images and videos."""
    kind = draw(st.sampled_from(kinds))
    if kind == "text":
        return "T" * draw(st.integers(1, 5)), [], []
    if kind == "audio":
        return "(" + "A" * draw(st.integers(1, 9)) + ")", [], []
    grid = (1 if kind == "image" else draw(SIDES), 2 * draw(SIDES), 2 * draw(SIDES))
    count, seconds = grid[0] * grid[1] * grid[2] // 4, draw(SECONDS)
    if kind == "image":
        return "<" + "I" * count + ">", [grid], []
    own = "V" * count
    if kind == "sounding":
        names = {CONFIG.video_token: "V", CONFIG.audio_token: "A"}
        merged = interleave(grid, seconds, draw(st.integers(0, 60)), CONFIG)
        own = "(" + "".join(names[token] for token in merged.tolist()) + ")"
    return "<" + own + ">", [], [(grid, seconds)]


def joined(parts):
    prompts, images, videos = zip(*parts, strict=True)
    return "".join(prompts), sum(map(tuple, images), ()), sum(map(tuple, videos), ())


@given(before=st.lists(pieces(), max_size=4), medium=pieces(MEDIA), after=st.lists(pieces(), min_size=1, max_size=4))
@settings(max_examples=80, deadline=None)
def test_a_continued_conversation_has_the_positions_of_the_whole(before, medium, after):
    head = positions(*joined([*before, medium]))
    tail = positions(*joined(after), start=next_position(head))
    whole = positions(*joined([*before, medium, *after]))
    np.testing.assert_array_equal(np.concatenate([head, tail], axis=1), whole)


@given(parts=st.lists(pieces(), min_size=1, max_size=6), start=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_a_later_start_shifts_all_positions(parts, start):
    prompt, images, videos = joined(parts)
    whole = [(grid, 1.0) for grid, _ in videos]  # at whole seconds sums in float32 are exact
    np.testing.assert_array_equal(positions(prompt, images, whole, start), positions(prompt, images, whole) + start)


@given(rows=st.lists(st.lists(pieces(), min_size=1, max_size=4), min_size=1, max_size=4), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_a_row_does_not_depend_on_batch_and_padding(rows, seed):
    rng = np.random.default_rng(seed)
    prompts = [joined(parts) for parts in rows]
    width = max(len(prompt) for prompt, _, _ in prompts) + int(rng.integers(0, 4))
    tokens = rng.choice(list(LETTERS.values()), (len(rows), width)).astype(np.int32)  # padding may have any id
    mask = np.zeros(tokens.shape, bool)
    for number, (prompt, _, _) in enumerate(prompts):
        mask[number, rng.permutation(width)[: len(prompt)]] = True
        tokens[number, mask[number]] = ids(prompt)
    _, images, videos = joined([part for parts in rows for part in parts])
    starts = rng.integers(0, 50, len(rows))
    for start in (0.0, starts):
        found = batch_positions(tokens, mask, images, videos, CONFIG, start)
        assert found.dtype == np.float32
        assert not found[:, ~mask].any()
        for number, (prompt, row_images, row_videos) in enumerate(prompts):
            own = positions(prompt, row_images, row_videos, np.broadcast_to(start, len(rows))[number])
            np.testing.assert_array_equal(found[:, number, mask[number]], own)


@given(mask=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_positions_of_text_and_sound_count_the_real_tokens(mask):
    mask = np.array(mask)
    tokens = np.where(np.arange(5) % 2, CONFIG.audio_token, 7) * np.ones_like(mask, np.int32)
    np.testing.assert_array_equal(batch_positions(tokens, mask, [], [], CONFIG), text_positions(mask))


# --- the tokens of a video with sound


@pytest.mark.parametrize(
    ("grid", "seconds", "sound", "expected"),
    [
        ((2, 4, 4), 2.0, 39, "VVVV" + "A" * 26 + "VVVV" + "A" * 13),
        ((3, 4, 4), 2.0, 26, "VVVV" + "A" * 26 + "VVVVVVVV"),
        ((3, 2, 2), 0.1, 5, "VAAVAVAA"),  # 0, 1.3 and 2.6 positions
        ((2, 2, 2), 1.0, 13, "V" + "A" * 13 + "V"),
        ((2, 2, 2), 1.0, 14, "V" + "A" * 13 + "VA"),  # at one time: the video first
        ((1, 4, 4), 2.0, 2, "VVVVAA"),
        ((3, 2, 2), 1.0, 0, "VVV"),
    ],
)
def test_video_and_sound_are_merged_by_time(grid, seconds, sound, expected):
    merged = interleave(grid, seconds, sound, CONFIG)
    assert merged.dtype == np.int32
    np.testing.assert_array_equal(merged, ids(expected))


@given(grid=st.tuples(SIDES, SIDES, SIDES), seconds=SECONDS, sound=st.integers(0, 80))
@settings(max_examples=80, deadline=None)
def test_merged_tokens_are_in_order_of_time(grid, seconds, sound):
    merged = interleave((grid[0], 2 * grid[1], 2 * grid[2]), seconds, sound, CONFIG)
    video = merged == CONFIG.video_token
    times = np.empty(merged.size)
    times[~video] = np.arange(sound)
    times[video] = np.repeat(np.arange(grid[0]), grid[1] * grid[2]) * seconds * 13.0
    np.testing.assert_array_equal(np.sort(times), times)
    assert not (~video[:-1] & video[1:] & (times[:-1] == times[1:])).any()  # at equal times the video is first


# --- mismatches

NAN = float("nan")
WRONG = {
    "no grid": ("T<IIII>", [], [], "^image 0: found 4 placeholders from token 2 on, but images given: 0$"),
    "too few": ("<IIII><IIII>", [(1, 4, 4)], [], "^image 1: found 4 placeholders from token 7 on, but images given: 1$"),
    "too many": ("<IIII>", [(1, 4, 4)] * 3, [], "^images given: 3, but the tokens have placeholders for 1$"),
    "no placeholder": ("TTT", [], [((1, 4, 4), 1.0)], "^videos given: 1, but the tokens have placeholders for 0$"),
    "of the other kind": ("<IIII>", [], [((1, 4, 4), 1.0)], "^image 0: found 4 .* images given: 0$"),
    "cut short": ("<IIII><III>", [(1, 4, 4)] * 2, [], "^image 1: found 3 placeholders from token 7 on, expected 4, one for"),
    "run too long": ("<IIIII>", [(1, 4, 4)], [], "^image 1: found 1 placeholders from token 5 on, but images given: 1$"),
    "cut by text": ("<VVTVV>", [], [((1, 4, 4), 1.0)], "^video 0: found 2 placeholders from token 1 on, expected 4"),
    "sound, too few": ("<(VAV)>", [], [((3, 2, 2), 1.0)], "^video 0: found 2 placeholders from token 2 on, expected 3"),
    "sound, too many": ("<(VAVV)>", [], [((2, 2, 2), 1.0)], "^video 0: found 3 placeholders from token 2 on, expected 2"),
    "mixed without its start": ("<VAVA>", [], [((2, 2, 2), 1.0)], "^video 0: found 1 placeholders .* expected 2"),
    "seconds 0": ("<V>", [], [((1, 2, 2), 0.0)], "^video 0: expected the seconds .* above 0 and below 1290555, got 0$"),
    "seconds below 0": ("<V><V>", [], [((1, 2, 2), 1.0), ((1, 2, 2), -2.0)], "^video 1: expected the seconds .* got -2$"),
    "seconds NaN": ("<V>", [], [((1, 2, 2), NAN)], "^video 0: expected the seconds .* got nan$"),
    "seconds endless": ("<V>", [], [((1, 2, 2), float("inf"))], "^video 0: expected the seconds .* got inf$"),
    "seconds too many": ("<VV>", [], [((2, 2, 2), 1e6)], "^video 0: .* below 645277.5, got 1000000$"),
    "odd grid": ("<I>", [(1, 2, 3)], [], r"^image 0: expected a grid .* multiples of 2, got \[1, 2, 3\]$"),
    "grid of nothing": ("<I>", [(1, 0, 2)], [], r"^image 0: expected a grid .* got \[1, 0, 2\]$"),
    "grid below 0": ("<V>", [], [((-1, 2, -2), 1.0)], r"^video 0: expected a grid .* got \[-1, 2, -2\]$"),
    "flat grid": ("<I>", [(2, 2)], [], r"^image 0: expected a grid of patches \(time, height, width\).* got \[2, 2\]$"),
    "grid in fractions": ("<I>", [(1.0, 2.0, 2.0)], [], r"^image 0: expected a grid .* got \[1.0, 2.0, 2.0\]$"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_mismatched_media_raise_one_line(case):
    prompt, images, videos, said = WRONG[case]
    with pytest.raises(ValueError, match=said) as error:
        positions(prompt, images, videos)
    assert "\n" not in str(error.value)


def test_errors_in_a_batch_name_the_row_and_the_medium():
    tokens, mask = np.stack([ids("<IIII>"), ids("T<III>")]), np.ones((2, 6), bool)
    with pytest.raises(ValueError, match=r"^row 1: image 1: found 3 placeholders from token 2 on, expected 4"):
        batch_positions(tokens, mask, [(1, 4, 4)] * 2, [], CONFIG)


@pytest.mark.parametrize(
    ("grid", "seconds", "sound", "said"),
    [
        ((1, 2, 3), 1.0, 1, "^video: expected a grid"),
        ((1, 2, 2), 0.0, 1, "^video: expected the seconds"),
        ((1, 2, 2), 1.0, -1, "^video: expected 0 or more audio tokens, got -1$"),
    ],
)
def test_wrong_grids_and_seconds_of_a_video_with_sound_are_refused(grid, seconds, sound, said):
    with pytest.raises(ValueError, match=said):
        interleave(grid, seconds, sound, CONFIG)
