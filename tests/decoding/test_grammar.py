"""Grammars: every sampled reply keeps to its own, and masks are the same packed and unpacked."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.decoding import grammar as grammars
from omni_jax.decoding.grammar import Grammar, GrammarCompiler
from omni_jax.decoding.sampling import Sampling, SamplingRows, sample
from omni_jax.decoding.text import generate
from omni_jax.engine import encode
from omni_jax.processing.transcript import Transcript

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "word": {"enum": ["a", "bc"]}},
    "required": ["n", "word"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "clock", "parameters": SCHEMA}},
    {"name": "stop", "parameters": {"type": "object", "additionalProperties": False}},
]
NEW = 120
NAMED = {"type": "function", "function": {"name": "stop"}}


@pytest.fixture(scope="module")
def compiler(writer):
    return GrammarCompiler(writer.tokenizer, writer.config.thinker.vocabulary)


def allowed(compiler, matcher):
    """The ids that may come next."""
    masks = compiler.masks(1)
    compiler.fill(masks, {0: matcher})
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
    return np.flatnonzero(bits[0, : compiler.vocabulary]).tolist()


def walk(compiler, matcher, seed, most=400):
    """A random reply, which ends as soon as half a coin and the grammar say so."""
    rng, tokens = np.random.default_rng(seed), []
    end = compiler.end
    while len(tokens) < most:
        ids = allowed(compiler, matcher)
        assert ids
        token = end if end in ids and (len(tokens) > 30 or rng.random() < 0.5) else int(rng.choice(ids))
        if token == end:
            return tokens
        matcher.consume([token])
        tokens.append(token)
    return None


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_every_reply_under_a_schema_parses(compiler, writer, seed):
    tokens = walk(compiler, compiler.matcher(Grammar.of({"json": SCHEMA})), seed)
    if tokens is not None:
        found = json.loads(writer.tokenizer.decode(tokens))
        assert isinstance(found["n"], int)
        assert found["word"] in ("a", "bc")


@pytest.mark.parametrize("choice", ["auto", "required", NAMED])
def test_calls_are_as_their_schemas_say(compiler, writer, choice):
    called = 0
    for seed in range(6):
        tokens = walk(compiler, compiler.matcher(Grammar.of_tools(TOOLS, choice)), seed)
        if tokens is None:
            continue
        transcript = Transcript(writer.tokenizer)
        transcript.push(tokens)
        transcript.finish()
        called += len(transcript.tool_calls)
        assert "<tool_call>" not in transcript.text
        assert choice == "auto" or (transcript.tool_calls and not transcript.text.strip())
        for call in transcript.tool_calls:
            assert call["name"] == "stop" if choice == NAMED else call["name"] in ("clock", "stop")
            assert set(call["arguments"]) == ({"n", "word"} if call["name"] == "clock" else set())
    assert called or choice == "auto"


def test_a_call_may_come_anywhere_in_text_and_its_fixed_tokens_are_forced(compiler, writer):
    matcher = compiler.matcher(Grammar.of_tools(TOOLS[:1]))
    matcher.consume(writer.tokenizer.encode("I look.\n<tool_call>"))
    assert writer.tokenizer.decode(matcher.forced()).startswith('\n{"name": "clock", "arguments": {')
    tag = writer.tokenizer.get_added_vocab()["<tool_call>"]
    inner = compiler.matcher(Grammar.of({"json": {"type": "string"}}))
    inner.consume(writer.tokenizer.encode('"a'))
    assert tag not in allowed(compiler, inner)  # a tag within a string would end it for the transcript


def test_regex_choice_and_lark(compiler, writer):
    for option, pattern in (
        ({"regex": r"[a-c]{3}/\d"}, r"[a-c]{3}/\d"),
        ({"choice": ["yes", 'n"o']}, r'yes|n"o'),
        ({"lark": 'start: "a" B\nB: /b+/'}, "ab+"),
    ):
        tokens = walk(compiler, compiler.matcher(Grammar.of(option)), 3)
        assert re.fullmatch(pattern, writer.tokenizer.decode(tokens))


def test_a_grammar_stands_behind_thinking_that_the_prompt_opened(compiler, writer):
    matcher = compiler.matcher(Grammar.of({"choice": ["yes"]}), thinking=True)
    matcher.consume(writer.tokenizer.encode("well, {so}\n</think>\n\nye"))
    assert allowed(compiler, matcher) == writer.tokenizer.encode("s")


def test_forks_go_their_own_ways_and_own_ends_are_allowed(compiler, writer):
    ids = writer.tokenizer.encode("ab")
    one = compiler.matcher(Grammar.of({"regex": "a|ab"}), ends=[7, -1])
    one.consume(ids[:1])
    other = one.fork()
    other.consume(ids[1:])
    assert sorted(allowed(compiler, one)) == sorted({7, compiler.end, *ids[1:]})
    assert sorted(allowed(compiler, other)) == sorted({7, compiler.end})
    other.consume([7, 8, 9])  # the end, and what a call made behind it
    with pytest.raises(ValueError, match=r"^grammar: .*satisf"):
        one.consume(ids[:1])


WRONG = {
    "a list": (lambda: Grammar.of([1]), "grammar: expected a dict with one of json, regex, choice, lark, got"),
    "two": (lambda: Grammar.of({"regex": "a", "lark": "b"}), "grammar: expected a dict with one of"),
    "no schema": (lambda: Grammar.of({"json": "x"}), "grammar: expected a JSON schema as a dict, got 'x'"),
    "no JSON": (
        lambda: Grammar.of({"json": {"enum": [object()]}}),
        "grammar: expected a JSON schema, got Object of type",
    ),
    "no choice": (lambda: Grammar.of({"choice": []}), "grammar: expected choice as a list of texts"),
    "a number": (lambda: Grammar.of({"regex": 3}), "grammar: expected regex as a text, got 3"),
    "a format": (lambda: Grammar.of_response_format({"type": "xml"}), "response_format: expected"),
    "a format without a schema": (
        lambda: Grammar.of_response_format({"type": "json_schema"}),
        "response_format: expected",
    ),
    "a nameless tool": (lambda: Grammar.of_tools([{}]), 'tools: expected functions with a "name"'),
    "another tool": (lambda: Grammar.of_tools(TOOLS, {"name": "x"}), "tool_choice: expected auto, required"),
}
IMPOSSIBLE = {
    "a type": ({"json": {"type": "strange"}}, "Invalid type: strange"),
    "a look-around": ({"json": {"type": "string", "pattern": "(?=a)"}}, "look-around"),
    "another file": ({"json": {"$ref": "http://localhost/x"}}, "not present in a registry"),
    "a group": ({"regex": "(a"}, "unclosed group"),
    "a rule": ({"lark": "start: b"}, "unknown name"),
    "a large one": ({"lark": 'start: "a"\n' * 40_000}, "expected at most 262,144 characters"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_one_line(case):
    make, message = WRONG[case]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_grammars_are_one_line(compiler, case):
    option, message = IMPOSSIBLE[case]
    with pytest.raises(ValueError, match=f"^grammar: .*{message}") as error:
        compiler.matcher(Grammar.of(option))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_formats_of_openai():
    assert Grammar.of_response_format({"type": "text"}) is None
    assert Grammar.of_response_format({"type": "json_object"}) == Grammar.of({"json": {"type": "object"}})
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    assert Grammar.of_response_format(schema) == Grammar.of({"json": SCHEMA})


def test_few_grammars_are_kept(writer, monkeypatch):
    monkeypatch.setattr(grammars, "MOST_COMPILED", 2)
    one = GrammarCompiler(writer.tokenizer, writer.config.thinker.vocabulary)
    for word in "abca":
        one.matcher(Grammar.of({"regex": word}))
    assert [grammar.text for grammar, _ in one._kept] == ["c", "a"]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), greedy=st.booleans(), early=st.booleans())
def test_packed_masks_choose_as_unpacked_ones(seed, greedy, early):
    rng = np.random.default_rng(seed)
    batch, vocabulary = 3, 70
    logits = rng.normal(size=(batch, vocabulary)).astype(np.float32)
    may = rng.random((batch, vocabulary)) < 0.3
    may[:, 5] = True
    may[2] = True
    if early:
        may[0] = np.arange(vocabulary) == 5  # only the end is left
    packed = np.packbits(np.pad(may, [(0, 0), (0, 96 - vocabulary)]), axis=1, bitorder="little").view(np.int32)
    options = Sampling(do_sample=not greedy, top_k=8, eos_token_id=5, min_new_tokens=9 if early else 0)
    rows = SamplingRows.of([options] * batch, [1, 2, 3], [99] * batch)
    count, candidates = np.zeros(batch, np.int32), 0 if greedy else 8
    tokens, logprobs = sample(
        jnp.asarray(logits), None, count, rows, candidates=candidates, allowed=jnp.asarray(packed)
    )
    if early:
        assert int(tokens[0]) == 5
    plain, _ = sample(jnp.where(may, jnp.asarray(logits), -1e9), None, count, rows, candidates=candidates)
    start = 1 if early else 0
    np.testing.assert_array_equal(tokens[start:], plain[start:])
    normal = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))  # the log-probability is the model's own
    np.testing.assert_allclose(logprobs, normal[np.arange(batch), np.asarray(tokens)], atol=1e-5)


@pytest.mark.parametrize("how", [{"do_sample": False}, {"do_sample": True, "temperature": 2.0, "top_k": 0}])
def test_a_model_writes_json_beside_a_free_row(writer, compiler, how):
    """The free row's tokens are those without a grammar."""
    batch = writer.prepare([[{"role": "user", "content": "Hi"}]] * 2)
    placed = encode.pad_and_index(batch, writer.config.thinker)
    padded = placed.batch
    end = writer.tokenizer.eos_token_id
    options = Sampling(**how, eos_token_id=end)
    matcher = compiler.matcher(Grammar.of({"json": {"enum": ["a", 12, {"b": [True]}]}}), ends=options.eos)
    masks = compiler.masks(2)

    def written(masks):
        made = generate(
            writer.parts.thinker, encode.embed(writer.parts, placed, writer.config.thinker), padded.tokens,
            padded.positions, padded.lengths, SamplingRows.of([options] * 2, [3, 4], [NEW] * 2),
            candidates=options.candidates(writer.config.thinker.vocabulary), masks=masks,
        )  # fmt: skip
        found = [[], []]
        for call in made:
            for row in range(2):
                new = call.tokens[row, : call.counts[row]].tolist()
                found[row] += new
                if row == 0 and masks is not None:
                    matcher.consume(new)
        return found

    def fill():
        compiler.fill(masks, {0: matcher})
        return masks

    rows = written(fill)
    assert rows[0][-1] == end
    assert json.loads(writer.tokenizer.decode(rows[0][:-1])) in ("a", 12, {"b": [True]})
    assert rows[1] == written(None)[1]
