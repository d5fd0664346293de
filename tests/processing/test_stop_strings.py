"""Stop strings end a transcript at the same character, however the text is made of tokens."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from omni_jax.processing.prompt import encode
from omni_jax.processing.transcript import Piece, Transcript
from tests.support.transcripts import CALL, SIZES, WEATHER, assert_same_in_any_split, read


def cut(text, stops):
    """The text before the stop string that is complete first (of several at once, the longest); and whether one is."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], end
    return text, None


@settings(deadline=None)
@given(
    text=st.text("ab你\n"),
    stops=st.lists(st.text("ab你\n", min_size=1, max_size=4), max_size=3),
    sizes=SIZES,
)
@example(text="aab", stops=["ab", "aab"], sizes=[])
@example(text="ab\n\n\n", stops=["\n\n"], sizes=[2])
def test_the_text_is_cut_before_the_first_stop_string(tokenizer, text, stops, sizes):
    tokens = list(text.encode())
    whole = assert_same_in_any_split(tokenizer, tokens, sizes, stop_strings=stops)
    expected, end = cut(text, stops)
    assert whole.text == expected
    assert whole.stopped == (end is not None)
    assert whole.tokens_used == len(text[:end].encode())


@settings(deadline=None)
@given(
    text=st.lists(st.sampled_from(["user", "system", "us", "e"]), max_size=6).map("".join),
    stops=st.lists(st.sampled_from(["user", "use", "s", "sy", "es", "erus"]), min_size=1, max_size=3),
)
@example(text="user", stops=["user", "s"])
def test_a_stop_string_does_not_depend_on_how_the_text_is_tokenised(tokenizer, text, stops):
    merged, single = (read(tokenizer, said, stop_strings=stops) for said in (text, list(text.encode())))
    assert (merged.text, merged.stopped) == (single.text, single.stopped)
    assert merged.text == cut(text, stops)[0]


def test_only_possible_beginnings_of_stop_strings_are_held_back(tokenizer):
    transcript = Transcript(tokenizer, stop_strings=["END"])
    given_out = [transcript.push([byte]).text for byte in b"xENxEENDy"]
    assert given_out == ["x", "", "", "ENx", "", "E", "", "", ""]
    assert (transcript.text, transcript.stopped, transcript.tokens_used) == ("xENxE", True, 8)
    assert transcript.finish() == Piece()


def test_a_held_beginning_of_a_stop_string_is_emitted_at_the_end(tokenizer):
    assert read(tokenizer, "xEN", stop_strings="END").text == "xEN"


def test_stop_strings_do_not_apply_to_thinking_and_tool_calls(tokenizer):
    transcript = read(tokenizer, f"<think>city</think>a\n{CALL}b city c", stop_strings=["city"])
    assert (transcript.text, transcript.thinking) == ("a\nb ", "city")
    assert transcript.tool_calls == [WEATHER]
    assert transcript.stopped


def test_newlines_between_a_call_and_a_stop_string_belong_to_neither(tokenizer):
    assert read(tokenizer, f"a\n{CALL}\nEND", stop_strings=["END"]).text == "a"
    assert read(tokenizer, f"{CALL}a\nEND", stop_strings=["END"]).text == "a\n"


def test_nothing_follows_a_stop_string_completed_by_a_broken_character(tokenizer):
    tokens = [0xE4, *encode(tokenizer, "<tool_call>a")]
    transcript = read(tokenizer, tokens, stop_strings=["\ufffd"])
    assert (transcript.text, transcript.stopped, transcript.tokens_used) == ("", True, 2)


def test_a_stop_string_is_found_in_a_block_that_became_text(tokenizer):
    transcript = read(tokenizer, "a<tool_call>{b}</tool_call>c", stop_strings=["b}"])
    assert (transcript.text, transcript.stopped) == ("a<tool_call>{", True)


def test_a_held_beginning_of_a_stop_string_does_not_hide_the_newlines_at_a_call(tokenizer):
    assert read(tokenizer, f"a\n{CALL}\n", stop_strings=["\n\n\n"]).text == "a"
    assert read(tokenizer, f"{CALL}a\n", stop_strings=["ax"]).text == "a\n"


@pytest.mark.parametrize("stops", [[""], ["a", ""], "", [3]])
def test_an_empty_stop_string_is_refused(tokenizer, stops):
    with pytest.raises(ValueError, match="expected non-empty strings"):
        Transcript(tokenizer, stop_strings=stops)
