"""A growing reply: which of its tokens are spoken, and when that is decided."""

import pytest

from omni_jax.decoding.sampling import Sampling
from omni_jax.engine.reply import Draft
from omni_jax.processing.transcript import Transcript

EOS = 501


@pytest.fixture
def draft(writer):
    def start(*stops, all_spoken=False):
        return Draft(
            Transcript(writer.tokenizer, stop_strings=stops, all_spoken=all_spoken), Sampling(eos_token_id=EOS)
        )

    return start


def spoken(draft, tokens, *, steps=1, most=99):
    """The words of each call, and their sum."""
    calls = []
    for at in range(0, len(tokens), steps):
        new = tokens[at : at + steps]
        draft.add_tokens(new, [0.0] * len(new), most)
        words, places = draft.new_text_tokens()
        assert words == [draft.tokens[place] for place in places]
        calls.append(words)
    return calls, [word for call in calls for word in call]


def ids(writer, text):
    return writer.tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_all_tokens_but_the_end_token_are_spoken(writer, draft, steps):
    tokens = ids(writer, "Hello there, all of you.")
    one = draft()
    calls, words = spoken(one, [*tokens, EOS], steps=steps)
    assert words == tokens
    assert one.tokens == [*tokens, EOS]
    if steps == 1:
        assert calls == [[token] for token in tokens] + [[]]


def test_a_reply_cut_by_its_length_is_spoken_whole(writer, draft):
    tokens = ids(writer, "Hello there")
    one = draft()
    assert spoken(one, tokens, most=len(tokens))[1] == tokens
    assert (one.done, one.reason) == (True, "length")


THOUGHT = '<think>Hm.</think>\n\nYes.<tool_call>{"name": "a", "arguments": {}}</tool_call>'


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_thinking_and_tool_calls_are_not_spoken(writer, draft, steps):
    assert spoken(draft(), [*ids(writer, THOUGHT), EOS], steps=steps)[1] == ids(writer, "Yes.")


def test_thinking_and_tool_calls_are_spoken_as_in_the_reference_if_asked(writer, draft):
    """As in the reference, whose talker reads every token of the turn."""
    tokens = ids(writer, THOUGHT)
    assert spoken(draft("never", all_spoken=True), [*tokens, EOS])[1] == tokens


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_a_stop_string_is_not_spoken(writer, draft, steps):
    before, stop = ids(writer, "One. Two"), ids(writer, "STOP")
    one = draft("STOP")
    assert spoken(one, [*before, *stop, *ids(writer, "more")], steps=steps)[1] == before
    assert one.transcript.text == "One. Two"


def test_tokens_that_may_begin_a_stop_string_are_held_back(writer, draft):
    before, half = ids(writer, "One"), ids(writer, "STO")
    one = draft("STOP")
    assert spoken(one, [*before, *half])[1] == before
    assert spoken(one, [*ids(writer, "RM"), EOS])[1] == half + ids(writer, "RM")


def test_part_of_a_character_that_may_be_a_stop_string_is_held_back(writer, draft):
    """A character of several tokens may be a stop string: its first token is not spoken before it is known what it is."""
    tokens = ids(writer, "Köln")
    assert len(tokens) > 4  # "ö" is two
    one = draft("ö")
    assert spoken(one, tokens)[1] == tokens[:1]
    assert one.transcript.text == "K"
    assert spoken(draft("é"), [*tokens, EOS])[1] == tokens
