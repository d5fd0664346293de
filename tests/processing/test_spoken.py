"""Which tokens of a reply are spoken: those of its visible answer, the same however the tokens arrive."""

from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from omni_jax.processing.prompt import encode
from omni_jax.processing.transcript import TAGS, Transcript
from tests.support.transcripts import CALL, SIZES, closes_what_nothing_opened

# Each with what is spoken of it.
REPLIES = {
    "thinking": ("<think>\nWell.\n</think>\n\nYes.", "Yes."),
    "thinking of nothing": ("<think>\n\n</think>\n\nYes.\n", "Yes.\n"),
    "thinking without an end": ("Yes. <think>well", "Yes."),
    "a call": (CALL, ""),
    "words around a call": (f"I look.\n{CALL}\nDone.\n", "I look.\n\nDone.\n"),
    "a call behind words": (f"I look.\n\n{CALL}\n<|im_end|>", "I look."),
    "a call before words": (f"{CALL}\n\nDone.", "Done."),
    "calls": (f"I look.\n{CALL}\n{CALL}", "I look."),
    "a malformed call": ("a\n<tool_call>\n{broken}\n</tool_call>\nb\n", "a\n\nb\n"),
    "a malformed call alone": ("\n<tool_call>\n{broken}\n</tool_call>\n", ""),
    "a call without an end": ('a\n<tool_call>\n{"name": "f", "argu', "a"),
    "a call that another ends": (f"a<tool_call>{{lost {CALL}b", "ab"),
    "an end of nothing": ("never opened </tool_call> here", "never opened  here"),
    "a special token": ("a<|audio_start|>b<|im_end|>", "ab"),
    "blanks alone": (" \n\n ", ""),
    "blanks at both ends": ("\nHi\n\n", "\nHi\n\n"),
    "a lesser sign": ("1 < 2 <tools", "1 < 2 <tools"),
}


def spoken(tokenizer, tokens, sizes=(), **options):
    """The places that are spoken, and those after each push, for tokens pushed in groups and then one by one."""
    transcript, pushes, start = Transcript(tokenizer, **options), [], 0
    for size in (*sizes, *[1] * len(tokens)):
        transcript.push(tokens[start : start + size])
        pushes.append(list(transcript.spoken))
        start += size
    transcript.finish()
    return list(transcript.spoken), pushes


def said(tokenizer, tokens, **options):
    places, _ = spoken(tokenizer, tokens, [len(tokens)], **options)
    return tokenizer.decode([tokens[place] for place in places])


@pytest.mark.parametrize("case", REPLIES)
def test_only_the_visible_answer_is_spoken(tokenizer, case):
    written, expected = REPLIES[case]
    assert said(tokenizer, encode(tokenizer, written)) == expected


@pytest.mark.parametrize("case", REPLIES)
def test_tags_that_several_tokens_spell_are_not_spoken_either(plain_tokenizer, tokenizer, case):
    """Of a tokenizer without thinking, and of single bytes."""
    written, expected = REPLIES[case]
    for vocabulary, tokens in (
        (plain_tokenizer, encode(plain_tokenizer, written)),
        (tokenizer, list(written.encode())),
    ):
        if "<|" in written:
            continue
        heard = said(vocabulary, tokens)
        assert heard.strip() == expected.strip()


def test_a_token_that_shares_characters_with_a_tag_is_not_spoken(tokenizer):
    words = ("Yes", ".<", "think", ">H", "m", ".", "</", "think", ">N", "o")
    coarse = SimpleNamespace(get_added_vocab=dict, added_tokens_decoder={}, convert_ids_to_tokens=words.__getitem__)
    transcript = Transcript(coarse)
    transcript.push(range(10))
    transcript.finish()
    assert list(transcript.spoken) == [0, 9]
    assert transcript.text == "".join(words)


def test_what_may_become_a_tag_waits(tokenizer):
    transcript = Transcript(tokenizer)
    counts = []
    for token in b"a <thin <think>b":
        transcript.push([token])
        counts.append(len(transcript.spoken))
    assert counts == [1, 1, 1, 1, 1, 1, 1, 7, *[7] * 8]
    assert said(tokenizer, list(b"a <tool_c")) == "a"  # and is not spoken if nothing follows


@pytest.mark.parametrize("tag", ["<think>", "<tool_call>"])
def test_nothing_of_a_block_is_spoken_while_it_is_written(tokenizer, tag):
    transcript = Transcript(tokenizer)
    tokens = encode(tokenizer, f"Yes.\n{tag}Hm, hm.\n")
    for token in tokens:
        transcript.push([token])
        assert set(transcript.spoken) <= set(range(4))


def test_a_block_that_the_prompt_has_opened_is_not_spoken(tokenizer):
    assert said(tokenizer, encode(tokenizer, "\nwell\n</think>\n\nYes."), thinking=True) == "Yes."
    assert said(tokenizer, encode(tokenizer, '{"name": "f"}\n</tool_call>\nYes.'), calling=True) == "Yes."


def test_words_before_a_lone_end_of_thinking_are_spoken_before_it_is_known(tokenizer):
    """A stream cannot take them back, so a whole reply speaks them too."""
    tokens = encode(tokenizer, "well\n</think>\n\nYes.")
    assert said(tokenizer, tokens) == "wellYes."


def test_all_is_spoken_as_in_transformers(tokenizer):
    tokens = encode(tokenizer, f"\n<think>Hm.</think>\n\nYes.<|audio_start|>{CALL}<tool_call>a")
    assert spoken(tokenizer, tokens, all_spoken=True)[0] == list(range(len(tokens)))
    assert spoken(None, tokens)[0] == list(range(len(tokens)))
    held = Transcript(tokenizer, stop_strings=["ab"], all_spoken=True)
    held.push(encode(tokenizer, "ca"))
    assert list(held.spoken) == [0]


FRAGMENTS = [
    *TAGS,
    CALL,
    "<tool_call>{}</tool_call>",
    "\n",
    " ",
    "a",
    "b",
    "<|im_end|>",
    "你",
    "<",
    "/think>",
    "tool_call>",
]


@settings(deadline=None, max_examples=300)
@given(
    fragments=st.lists(st.sampled_from(FRAGMENTS) | st.integers(0, 255)),
    stops=st.lists(st.sampled_from(["\n\n", "a", "b\n", "</tool"]), max_size=2),
    thinking=st.booleans(),
    calling=st.booleans(),
    all_spoken=st.booleans(),
    sizes=SIZES,
)
def test_what_is_spoken_does_not_depend_on_how_the_tokens_arrive(
    tokenizer, fragments, stops, thinking, calling, all_spoken, sizes
):
    tokens = []
    for fragment in fragments:
        tokens += encode(tokenizer, fragment) if isinstance(fragment, str) else [fragment]
    options = {"stop_strings": stops, "thinking": thinking, "calling": calling, "all_spoken": all_spoken}
    whole, _ = spoken(tokenizer, tokens, [len(tokens)], **options)
    final, pushes = spoken(tokenizer, tokens, sizes, **options)
    assert final == whole == sorted(set(whole))
    assert all(places == final[: len(places)] for places in pushes)


@settings(deadline=None, max_examples=300)
@given(
    fragments=st.lists(
        st.sampled_from(["<think>", "</think>", CALL, "\n", "a", " and", "<|im_end|>", "你", "é"])
        | st.integers(128, 255)
    ),
    thinking=st.booleans(),
)
@example(fragments=["<think>", "a", "</think>", "\n", "\n", "a", CALL, "\n"], thinking=False)
def test_what_is_spoken_is_the_text_without_blanks_at_its_ends(tokenizer, fragments, thinking):
    tokens = []
    for fragment in fragments:
        tokens += encode(tokenizer, fragment) if isinstance(fragment, str) else [fragment]
    if closes_what_nothing_opened(tokenizer, tokens, {"thinking": thinking}):
        return
    transcript = Transcript(tokenizer, thinking=thinking)
    transcript.push(tokens)
    transcript.finish()
    text = transcript.text
    if "\ufffd" in text or "</think>" in text:  # half a character before a block joins what follows; a lone tag is text
        return
    assert said(tokenizer, tokens, thinking=thinking).strip() == text.strip()
