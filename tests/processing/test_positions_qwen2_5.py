"""Positions of Qwen2.5-Omni, and a video and its sound in turns of two seconds: printed cases of the reference, and laws.

Prompts are strings, one letter a token: T text, I image, V video, A audio, < > vision_start and _end, ( ) audio_start and _end.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.config import from_hf
from omni_jax.processing.positions import batch_positions, interleave, next_position, token_positions
from omni_jax.processing.tmrope_clock import ChunkedClock, Clock, clock
from omni_jax.testing import tiny_config
from omni_jax.testing.qwen2_5_omni import tiny_qwen2_5_config

CONFIG = from_hf(tiny_qwen2_5_config()).thinker
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


def letters(tokens):
    names = {token: letter for letter, token in LETTERS.items()}
    return "".join(names[token] for token in tokens.tolist())


def positions(prompt, images=(), videos=(), start=0.0):
    return token_positions(ids(prompt), images, videos, CONFIG, start)


def expect(found, time, height=None, width=None):
    assert found.dtype == np.float32
    height = time if height is None else height
    for axis, values in zip(found, (time, height, height if width is None else width), strict=True):
        np.testing.assert_array_equal(axis, values)


def test_the_configuration_selects_the_position_clock():
    assert clock(CONFIG) == ChunkedClock(25, 50)
    assert clock(from_hf(tiny_config()).thinker) == Clock(13)


# --- printed by get_rope_index of Transformers 5.23.0


def test_positions_of_an_image():
    expect(
        positions("T<IIIIII>TT", [(1, 4, 6)]),
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7],
    )


@pytest.mark.parametrize(
    ("seconds", "frames", "after"), [(1.0, [2, 27, 52, 77], [78, 79, 80]), (0.7, [2, 19, 37, 54], [55, 56, 57])]
)
def test_positions_of_a_video_are_whole_numbers(seconds, frames, after):
    expect(
        positions("T<" + "V" * 16 + ">TT", videos=[((4, 4, 4), seconds)]),
        [0, 1, *np.repeat(frames, 4), *after],
        [0, 1, *[2, 2, 3, 3] * 4, *after],
        [0, 1, *[2, 3, 2, 3] * 4, *after],
    )


def test_positions_of_a_video_with_sound():
    """The two start tokens share a position, and so do the two end tokens."""
    turn = "V" * 8 + "A" * 50
    found = positions("T<(" + turn * 2 + ")>TT", videos=[((4, 4, 4), 1.0)])
    frames = [np.repeat(at, 4) for at in (2, 27, 52, 77)]
    time = [0, 1, 1, *frames[0], *frames[1], *range(2, 52), *frames[2], *frames[3], *range(52, 102), 102, 102, 103, 104]
    expect(found[:1].repeat(3, 0), time)
    np.testing.assert_array_equal(found[1:, 3:11], [[2, 2, 3, 3] * 2, [2, 3, 2, 3] * 2])
    np.testing.assert_array_equal(found[1:, 11:61], [np.arange(2, 52)] * 2)
    assert next_position(found) == 105


def test_positions_of_padded_rows():
    tokens = np.stack([ids("TTT<IIIIII>T"), ids("TTT<IIIIII>T")])
    mask = np.array([[False] * 2 + [True] * 10, [True] * 12])
    found = batch_positions(tokens, mask, [(1, 4, 6)] * 2, [], CONFIG)
    expect(
        found[:, 0],
        [0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 0, 0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 0, 0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    )
    expect(found[0, 1][None].repeat(3, 0), [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 7, 8])


# --- cases that the reference does not support


def test_positions_of_a_silent_video_beside_one_with_sound():
    """In a call with sound in a video, the reference treats a silent video as text, or as the one with sound."""
    grid = (4, 2, 2)
    found = positions("<VVVV><(VA)><VVVV>", videos=[(grid, 1.0), ((1, 2, 2), 1.0), (grid, 1.0)])
    steps = [0, 25, 50, 75]
    time = [0, *np.add(1, steps), 77, 78, 78, 79, 79, 80, 80, 81, *np.add(82, steps), 158]
    flat = [0, *[1] * 4, 77, 78, 78, 79, 79, 80, 80, 81, *[82] * 4, 158]
    expect(found, time, flat)


def test_positions_without_start_and_end_tokens():
    expect(positions("(VA)", videos=[((1, 2, 2), 1.0)]), [0, 1, 1, 2])
    expect(positions("<(VA)TT", videos=[((1, 2, 2), 1.0)]), [0, 0, 1, 1, 2, 3, 4])
    expect(positions("VVA", videos=[((2, 2, 2), 1.0)]), [0, 25, 26], [0, 0, 26])


def test_positions_of_a_video_with_empty_sound():
    expect(positions("<(VV)>", videos=[((2, 2, 2), 1.0)]), [0, 0, 1, 26, 27, 27], [0, 0, 1, 1, 27, 27])


# --- turns


@pytest.mark.parametrize(
    ("grid", "seconds", "sound", "expected"),
    [
        ((4, 4, 4), 1.0, 100, "V" * 8 + "A" * 50 + "V" * 8 + "A" * 50),
        ((4, 2, 2), 1.0, 49, "VV" + "A" * 49 + "VV"),
        ((2, 2, 2), 1.0, 120, "VV" + "A" * 120),
        ((3, 2, 2), 1.96, 51, "VV" + "A" * 50 + "VA"),  # 49 belongs to the first two seconds, 98 to the second
        ((3, 2, 2), 2.0, 51, "V" + "A" * 50 + "VAV"),
        ((4, 2, 2), 1.0, 0, "VVVV"),
        # 6 s apart: a token opens the next turn, not the turn of its time, so the second frame is cut.
        ((2, 4, 4), 6.0, 160, "VVVV" + "A" * 50 + "V" + "A" * 50 + "V" + "A" * 50 + "VV" + "A" * 10),
    ],
)
def test_video_and_sound_alternate_in_turns_of_two_seconds(grid, seconds, sound, expected):
    found = interleave(grid, seconds, sound, CONFIG)
    assert found.dtype == np.int32
    assert letters(found) == expected


@given(times=st.lists(st.floats(0, 300), max_size=40), chunk=st.integers(1, 60))
@settings(max_examples=80, deadline=None)
def test_a_turn_ends_with_the_first_token_beyond_it(times, chunk):
    """The rule as the reference implements it."""
    times = np.sort([0.0, *times])
    expected, turn = [], 0
    for time in times:
        turn += time >= (turn + 1) * chunk
        expected.append(turn)
    np.testing.assert_array_equal(ChunkedClock(25, chunk).turns(times), expected)


# --- laws

MEDIA = ("image", "video", "audio", "sounding")
SIDES = st.integers(1, 4)


@st.composite
def pieces(draw, kinds=("text", *MEDIA)):
    """Text, or one medium with its start and end tokens: its prompt, images and videos."""
    kind = draw(st.sampled_from(kinds))
    if kind == "text":
        return "T" * draw(st.integers(1, 5)), [], []
    if kind == "audio":
        return "(" + "A" * draw(st.integers(1, 9)) + ")", [], []
    grid = (1 if kind == "image" else draw(SIDES), 2 * draw(SIDES), 2 * draw(SIDES))
    count, seconds = grid[0] * grid[1] * grid[2] // 4, draw(st.floats(0.01, 7))
    if kind == "image":
        return "<" + "I" * count + ">", [grid], []
    own = "V" * count
    if kind == "sounding":
        own = "(" + letters(interleave(grid, seconds, draw(st.integers(0, 130)), CONFIG)) + ")"
    return "<" + own + ">", [], [(grid, seconds)]


def joined(parts):
    prompts, images, videos = zip(*parts, strict=True)
    return "".join(prompts), sum(map(tuple, images), ()), sum(map(tuple, videos), ())


@given(before=st.lists(pieces(), min_size=1, max_size=4), after=st.lists(pieces(), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_continued_conversation_has_the_positions_of_the_whole(before, after):
    """At any place, because whole numbers are never rounded."""
    head = positions(*joined(before))
    tail = positions(*joined(after), start=next_position(head))
    whole = positions(*joined([*before, *after]))
    np.testing.assert_array_equal(np.concatenate([head, tail], axis=1), whole)
    np.testing.assert_array_equal(whole, np.trunc(whole))


@given(rows=st.lists(st.lists(pieces(), min_size=1, max_size=4), min_size=1, max_size=4), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
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
    found = batch_positions(tokens, mask, images, videos, CONFIG, starts)
    assert not found[:, ~mask].any()
    for number, row in enumerate(prompts):
        np.testing.assert_array_equal(found[:, number, mask[number]], positions(*row, start=starts[number]))
