"""A reply's tokens read at once and in pieces."""

from hypothesis import strategies as st

from omni_jax.processing.prompt import encode
from omni_jax.processing.transcript import TAGS, Transcript

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
WEATHER = {"name": "weather", "arguments": {"city": "Zürich"}}


def read(tokenizer, said, **options):
    """The transcript of a whole reply, pushed at once."""
    transcript = Transcript(tokenizer, **options)
    transcript.push(encode(tokenizer, said) if isinstance(said, str) else said)
    transcript.finish()
    return transcript


def stream(tokenizer, tokens, sizes, **options):
    """The transcript of a reply that is pushed in groups of the given sizes, then one by one, and its pieces."""
    transcript, pieces, start = Transcript(tokenizer, **options), [], 0
    for size in (*sizes, *[1] * len(tokens)):
        pieces.append(transcript.push(tokens[start : start + size]))
        start += size
    return transcript, [*pieces, transcript.finish()]


def result(transcript):
    return (
        transcript.text,
        transcript.thinking,
        transcript.tool_calls,
        transcript.stopped,
        transcript.tokens_used,
    )


def assert_same_in_any_split(tokenizer, tokens, sizes, **options):
    whole = read(tokenizer, tokens, **options)
    transcript, pieces = stream(tokenizer, tokens, sizes, **options)
    assert result(transcript) == result(whole)
    if not closes_what_nothing_opened(tokenizer, tokens, options):
        assert "".join(piece.text for piece in pieces) == whole.text
        assert "".join(piece.thinking for piece in pieces) == whole.thinking
    return whole


def closes_what_nothing_opened(tokenizer, tokens, options):
    """Whether the first tag is a lone </think>, so that the pieces before it could not be known as thinking."""
    known = {tokenizer.get_added_vocab().get(tag): tag for tag in TAGS}
    first = next((known[token] for token in tokens if token in known and known[token] != "</tool_call>"), None)
    return first == "</think>" and not options.get("thinking")


SIZES = st.lists(st.integers(0, 5), max_size=20)
