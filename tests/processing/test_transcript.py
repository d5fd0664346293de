"""The transcript: text, thinking and tool calls from tokens, the same however the tokens arrive."""

import json
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from omni_jax.processing.prompt import encode, load_tokenizer, render
from omni_jax.processing.transcript import TAGS, Piece, Transcript, byte_alphabet
from tests.support.tiny_tokenizer import byte_letters
from tests.support.transcripts import CALL, SIZES, WEATHER, assert_same_in_any_split, read, result

# --- characters


@settings(deadline=None)
@given(text=st.text(), sizes=SIZES)
@example(text="你好 👩‍👩‍👧 \ufffd é \n\n", sizes=[])
def test_any_text_round_trips(tokenizer, text, sizes):
    tokens = [token for token in encode(tokenizer, text) if token not in tokenizer.get_added_vocab().values()]
    whole = assert_same_in_any_split(tokenizer, tokens, sizes)
    assert whole.text == tokenizer.decode(tokens)
    assert whole.tokens_used == len(tokens)
    if text.isascii() and "<" not in text:
        assert whole.text == text


@settings(deadline=None)
@given(text=st.text(st.characters(max_codepoint=0x2FFF, exclude_categories=("Cs", "Cn"))))
def test_normalised_text_round_trips_unchanged(tokenizer, text):
    text = unicodedata.normalize("NFC", text).replace("<", "")
    assert read(tokenizer, text).text == text


@settings(deadline=None)
@given(data=st.data(), sizes=SIZES)
def test_any_tokens_decode_as_by_the_tokenizer(plain_tokenizer, data, sizes):
    # Ids beyond the vocabulary too: the embedding has more rows than the tokenizer has tokens.
    tokens = data.draw(st.lists(st.integers(0, len(plain_tokenizer) + 9)))
    whole = assert_same_in_any_split(plain_tokenizer, tokens, sizes)
    assert whole.text == plain_tokenizer.decode(tokens, skip_special_tokens=True)


@settings(deadline=None)
@given(data=st.binary(), sizes=SIZES)
@example(data=b"\xf0\x9f\x91", sizes=[])
@example(data=b"\xed\xa0\x80\xc0\xaf\xf5\xe4\xbd", sizes=[1, 1])
def test_any_bytes_decode_as_by_the_tokenizer(tokenizer, data, sizes):
    whole = assert_same_in_any_split(tokenizer, list(data), sizes)  # the tiny vocabulary's id of a byte is the byte
    assert whole.text == tokenizer.decode(list(data))


def test_a_character_is_emitted_whole(tokenizer):
    transcript = Transcript(tokenizer)
    given_out = [transcript.push([byte]).text for byte in "a👧é".encode()]
    assert given_out == ["a", "", "", "", "👧", "", "é"]
    assert transcript.finish() == Piece()


def test_bytes_that_cannot_become_a_character_do_not_hold_others_back(tokenizer):
    transcript = Transcript(tokenizer)
    assert [transcript.push([0x80]).text for _ in range(5)] == ["\ufffd"] * 5
    assert transcript.push([0xE4, 0xBD]).text == ""
    assert transcript.push([ord("a")]).text == "\ufffda"
    assert transcript.push([0xE4, 0xBD]).text == ""
    assert transcript.finish().text == "\ufffd"
    assert transcript.text == "\ufffd" * 5 + "\ufffda\ufffd"


def test_special_tokens_are_left_out(tokenizer):
    assert read(tokenizer, "a<|audio_start|>b<|im_end|>\n<|im_end|>").text == "ab\n"
    assert read(tokenizer, "<|fim_prefix|>").text == "<|fim_prefix|>"  # added, but not special


def test_an_added_token_beyond_the_byte_alphabet_is_written_as_it_is(tokenizer):
    tokenizer = load_tokenizer(tokenizer.name_or_path)
    tokenizer.add_tokens(["hello 世界"])
    tokens = encode(tokenizer, "a hello 世界!")
    assert read(tokenizer, tokens).text == tokenizer.decode(tokens) == "a hello 世界!"


def test_a_finished_transcript_refuses_more_tokens(tokenizer):
    transcript = read(tokenizer, "a")
    assert transcript.finish() == Piece()
    with pytest.raises(ValueError, match="finished"):
        transcript.push([1])


def test_the_byte_alphabet_is_that_of_vocab_json():
    assert list(dict(sorted(byte_alphabet().items())).values()) == byte_letters()


# --- thinking


@pytest.mark.parametrize(
    ("said", "text", "thinking"),
    [
        ("<think>\nwell,\n\nso\n</think>\n\nYes.", "Yes.", "well,\n\nso"),
        ("<think>\n\n</think>\n\nYes.\n", "Yes.\n", ""),
        ("<think>\nnever done \n", "", "never done"),
        ("<think>a</think>\nb<think> c </think>d", "bd", "a\nc"),
        ("well,\n so\n</think>\n\nYes.", "Yes.", "well,\n so"),
        ("</think>\n\nYes.", "Yes.", ""),
        ("<think>a</think>b</think>c", "b</think>c", "a"),
        ("a</think>b</think>c", "b</think>c", "a"),
        ("a</think>b<think>c</think>d", "bd", "a\nc"),
        ("<think>a <think> b</think>", "", "a <think> b"),
        ("<think>I call <tool_call> soon</think>", "", "I call <tool_call> soon"),
    ],
)
def test_thinking_is_separated_from_text(tokenizer, said, text, thinking):
    whole = assert_same_in_any_split(tokenizer, encode(tokenizer, said), [])
    assert (whole.text, whole.thinking, whole.tool_calls) == (text, thinking, [])


def test_thinking_opened_by_the_prompt_is_thinking(tokenizer):
    transcript = read(tokenizer, "\nwell\n</think>\n\nYes.", thinking=True)
    assert (transcript.text, transcript.thinking) == ("Yes.", "well")
    assert read(tokenizer, " all of it", thinking=True).thinking == "all of it"


def test_thinking_without_an_opening_tag_is_separated_when_it_ends(tokenizer):
    transcript = Transcript(tokenizer, stop_strings=("!",))
    assert transcript.push(encode(tokenizer, "well\n")) == Piece(text="well")
    assert transcript.push(encode(tokenizer, "so</think>\n\nYes")) == Piece(text="Yes", thinking="\nso")
    transcript.push(encode(tokenizer, " No! more"))
    assert (transcript.text, transcript.thinking, transcript.stopped) == ("Yes No", "well\nso", True)


def test_thinking_is_streamed(tokenizer):
    transcript = Transcript(tokenizer)
    assert transcript.push(encode(tokenizer, "<think>\n\na ")) == Piece(thinking="a")
    assert transcript.push(encode(tokenizer, " b\n")) == Piece(thinking="  b")
    assert transcript.push(encode(tokenizer, "</think>\n\nc")) == Piece(text="c")


def test_an_unfinished_character_is_replaced_at_the_end_of_its_block(tokenizer):
    think, unthink = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    transcript = read(tokenizer, [0xE4, think, 0xE4, unthink, 0xBD])
    assert (transcript.text, transcript.thinking) == ("\ufffd\ufffd", "\ufffd")


def test_tags_spread_over_several_tokens_are_text(tokenizer):
    tokens = [*b"<think>a</think>"]
    assert read(tokenizer, tokens).text == "<think>a</think>"


def test_a_tokenizer_without_thinking_gives_text_only(plain_tokenizer):
    assert read(plain_tokenizer, "<think>a</think>").text == "<think>a</think>"
    with pytest.raises(ValueError, match="no <think>"):
        Transcript(plain_tokenizer, thinking=True)


# --- tool calls


@pytest.mark.parametrize(
    ("said", "text", "calls"),
    [
        (CALL, "", [WEATHER]),
        (f"I look.\n\n{CALL}\n", "I look.", [WEATHER]),
        (f"I look.\n{CALL}\n{CALL}", "I look.", [WEATHER, WEATHER]),
        (f"I look.\n{CALL}\nDone.\n", "I look.\n\nDone.\n", [WEATHER]),
        (f"<think>\nhm\n</think>\n\n{CALL}<|im_end|>", "", [WEATHER]),
        ('<tool_call>{"name": "now"}</tool_call>', "", [{"name": "now", "arguments": {}}]),
        (
            r'<tool_call>{"name": "f", "arguments": "{\"x\": 1}"}</tool_call>',
            "",
            [{"name": "f", "arguments": {"x": 1}}],
        ),
        ("Newlines only\n\n", "Newlines only\n\n", []),
    ],
)
def test_tool_calls_are_separated_from_text(tokenizer, said, text, calls):
    whole = assert_same_in_any_split(tokenizer, encode(tokenizer, said), [])
    assert (whole.text, whole.tool_calls) == (text, calls)


@pytest.mark.parametrize(
    "said",
    [
        "a\n<tool_call>\n{broken}\n</tool_call>\nb\n",
        "<tool_call></tool_call>",
        "<tool_call>[1]</tool_call>",
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": []}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "not json"}</tool_call>',
        "<tool_call>" + "[" * 5000 + "</tool_call>",
        'a\n<tool_call>\n{"name": "f", "argu',
        "<tool_call>a <think> b",
        "never opened </tool_call>",
    ],
)
def test_invalid_tool_calls_become_text(tokenizer, said):
    whole = assert_same_in_any_split(tokenizer, encode(tokenizer, said), [])
    assert (whole.text, whole.thinking, whole.tool_calls) == (said, "", [])


def test_an_unclosed_block_does_not_swallow_the_next(tokenizer):
    transcript = read(tokenizer, f"<tool_call>{{lost {CALL}")
    assert (transcript.text, transcript.tool_calls) == ("<tool_call>{lost ", [WEATHER])


def test_a_call_is_available_as_soon_as_it_is_closed(tokenizer):
    transcript = Transcript(tokenizer)
    *tokens, close = encode(tokenizer, f"a\n{CALL}")
    assert transcript.push(tokens) == Piece(text="a")
    assert transcript.tool_calls == []
    assert transcript.push([close]) == Piece()
    assert transcript.tool_calls == [WEATHER]


def test_calls_read_back_can_be_put_into_the_next_prompt(tokenizer):
    calls = read(tokenizer, CALL).tool_calls
    text = render(tokenizer, [{"role": "assistant", "content": "", "tool_calls": calls}])
    assert read(tokenizer, text).tool_calls == calls


WORD = st.text(max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | WORD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORD, inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(name=WORD, arguments=st.dictionaries(WORD, JSON, max_size=3), sizes=SIZES)
def test_any_arguments_round_trip(tokenizer, name, arguments, sizes):
    call = {"name": name, "arguments": arguments}
    # Escaped, so that neither normalisation nor a tag inside a string interferes.
    written = json.dumps(call).replace("<", "\\u003c")
    tokens = encode(tokenizer, f"<tool_call>\n{written}\n</tool_call>")
    assert assert_same_in_any_split(tokenizer, tokens, sizes).tool_calls == [call]


# --- all together

FRAGMENTS = [*TAGS, CALL, "{}", "\n", " ", "a", "b", "<|im_end|>", "你"]


@settings(deadline=None)
@given(
    fragments=st.lists(st.sampled_from(FRAGMENTS) | st.integers(0, 255)),
    stops=st.lists(st.sampled_from(["\n\n", "a", "b\n", "</tool"]), max_size=2),
    thinking=st.booleans(),
    sizes=SIZES,
)
def test_a_stream_equals_the_whole(tokenizer, fragments, stops, thinking, sizes):
    tokens = []
    for fragment in fragments:
        tokens += encode(tokenizer, fragment) if isinstance(fragment, str) else [fragment]
    whole = assert_same_in_any_split(tokenizer, tokens, sizes, stop_strings=stops, thinking=thinking)
    assert not any(stop in whole.text for stop in stops)
    assert whole.thinking == whole.thinking.strip()
    # Only the used tokens count: the rest may be cut off without changing the reply.
    cut_off = read(tokenizer, tokens[: whole.tokens_used], stop_strings=stops, thinking=thinking)
    assert result(cut_off) == result(whole)
