"""Generation: prefill and steps equal a whole pass, and a row does not depend on the calls, the cache or the batch."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_jax import Omni, Sampling, buckets
from omni_jax.decoding import text as generation
from omni_jax.decoding.sampling import SamplingRows
from omni_jax.engine import encode
from omni_jax.models import decoder
from omni_jax.models.thinker import Embedded
from omni_jax.processing.batch import Batch
from omni_jax.processing.transcript import Transcript

NEW = 24  # prompts of up to 16 tokens and 1 or 4 rows, so that the tests share their programs
GREEDY = {"do_sample": False}
SAMPLED = {"do_sample": True, "temperature": 1.5, "top_k": 50, "top_p": 0.98}
OPEN = (-1,)  # no stop token


@pytest.fixture(scope="module")
def omni(writer):
    """Text only; speech is tested in end_to_end/test_speaks.py."""
    return writer


def prompt(length, seed=0):
    return np.random.default_rng([seed, length]).integers(0, 250, length)


def batch(*rows):
    width = max(map(len, rows))
    mask = np.arange(width) < np.array([len(row) for row in rows])[:, None]
    tokens = np.zeros(mask.shape, int)
    tokens[mask] = np.concatenate(rows)
    return Batch.from_tokens(tokens, mask)


def answer(omni, rows, *, seed=0, **options):
    options = {"max_new_tokens": NEW, "eos_token_id": OPEN} | options
    options = {f"thinker_{name}": value for name, value in options.items()}
    return omni.generate_batch(rows if isinstance(rows, Batch) else batch(*rows), seed=seed, **options)


def made(omni, rows, *, most, how=GREEDY, steps=32):
    """Tokens and log-probabilities of each row, from the generator."""
    placed = encode.pad_and_index(batch(*rows), omni.config.thinker)
    padded, embedded = placed.batch, encode.embed(omni.parts, placed, omni.config.thinker)
    options = Sampling(**how).override(Sampling(eos_token_id=OPEN))
    calls = generation.generate(
        omni.parts.thinker, embedded, padded.tokens, padded.positions, padded.lengths,
        SamplingRows.of([options] * len(most), [0] * len(most), most),
        candidates=options.candidates(omni.config.thinker.vocabulary), steps=steps,
    )  # fmt: skip
    found = [([], []) for _ in most]
    sizes = []
    for call in calls:
        sizes.append(int(call.counts.max()))
        for row, count in enumerate(call.counts):
            found[row][0].extend(call.tokens[row, :count].tolist())
            found[row][1].extend(call.logprobs[row, :count].tolist())
    return found, sizes


# --- against the whole pass


def test_prefill_and_steps_equal_the_whole(omni):
    """Logits after each token of three rows that are split at different places."""
    thinker, rows, cuts, steps = omni.parts.thinker, [prompt(36), prompt(40), prompt(28)], [9, 13, 1], 27
    whole = np.asarray(omni.logits(batch(*rows)))
    prefill = jax.jit(lambda x, *rest: thinker.prefill(x, *rest, fresh=True))
    step = jax.jit(thinker.step)
    heads = batch(*(row[:cut] for row, cut in zip(rows, cuts, strict=True))).padded()
    cache = thinker.empty_cache(4, 48)
    logits, cache, _ = prefill(
        Embedded(thinker.embed(jnp.asarray(heads.tokens))), heads.positions, heads.lengths, cache
    )
    live, at = np.array([1, 1, 1, 0]), heads.lengths
    for _ in range(steps):
        for row in range(3):
            np.testing.assert_allclose(logits[row], whole[row, at[row] - 1], atol=1e-4 * np.abs(whole).max())
        tokens = np.array([*(row[n] for row, n in zip(rows, at[:3], strict=True)), 0])
        logits, _, cache = step(tokens, np.broadcast_to(at.astype(np.float32), (3, 4)), live, cache)
        at = at + live
    np.testing.assert_array_equal(cache.length, at)


@pytest.mark.parametrize("how", [GREEDY, SAMPLED])
def test_log_probabilities_equal_those_of_the_whole_pass(omni, how):
    """Teacher forcing: each prompt with its reply in one pass, with audio in one of the rows."""
    config = omni.config.thinker
    heard = [5, *[config.audio_token] * config.audio_encoder.tokens(90), 7]
    clips = (np.random.default_rng(0).normal(size=(128, 90)).astype(np.float32),)
    rows = [heard, prompt(16), prompt(9)]
    replies = answer(omni, replace(batch(*rows), mel=clips), seed=[1, 2, 4], **how)  # no reply has a placeholder
    said = batch(*(np.append(row, reply.tokens) for row, reply in zip(rows, replies, strict=True)))
    logits = np.asarray(omni.logits(replace(said, mel=clips)), np.float64)
    for whole, row, reply in zip(logits, rows, replies, strict=True):
        assert len(reply.tokens) == NEW
        own = whole[len(row) - 1 : len(row) + NEW - 1]
        own = own - np.log(np.exp(own).sum(1, keepdims=True))
        np.testing.assert_allclose(reply.logprobs, own[np.arange(NEW), reply.tokens], rtol=1e-4)
        if how is GREEDY:
            np.testing.assert_array_equal(reply.tokens, own.argmax(1))


def test_the_penalty_covers_prompt_and_reply_of_each_row(omni):
    rows = [prompt(9), prompt(16), np.resize(prompt(3), 12)]
    replies = answer(omni, rows, repetition_penalty=1.6, **GREEDY)
    said = [np.append(row, reply.tokens) for row, reply in zip(rows, replies, strict=True)]
    logits = np.asarray(omni.logits(batch(*said)))
    for whole, row, tokens in zip(logits, rows, said, strict=True):
        for at in range(len(row), len(tokens)):
            scores, seen = whole[at - 1], np.isin(np.arange(whole.shape[1]), tokens[:at])
            scores = np.where(seen, np.where(scores > 0, scores / 1.6, scores * 1.6), scores)
            assert scores.argmax() == tokens[at]
    assert [reply.tokens for reply in replies] != [reply.tokens for reply in answer(omni, rows, **GREEDY)]


# --- calls and cache


def test_greedy_tokens_do_not_depend_on_the_steps_of_a_call(omni):
    (whole, logprobs), *_ = made(omni, [prompt(9)], most=[NEW])[0]
    assert len(whole) == NEW
    for steps, sizes in [(1, [1] * NEW), (5, [1, 5, 5, 5, 5, 3])]:
        found, calls = made(omni, [prompt(9)], most=[NEW], steps=steps)
        assert found[0][0] == whole
        assert calls == sizes
        np.testing.assert_allclose(found[0][1], logprobs, rtol=1e-5)


def test_sampled_tokens_do_not_depend_on_the_steps_of_a_call(omni):
    sampling = Sampling(max_new_tokens=NEW, eos_token_id=OPEN, **SAMPLED)
    conversation = [{"role": "user", "content": "a"}]
    whole = omni.generate(conversation, thinker=sampling, seed=3)
    for steps in (1, 7, 32):
        *_, last = omni.stream(conversation, thinker=sampling, seed=3, steps=steps)
        assert last.reply == whole


def test_the_cache_grows_beyond_the_first_new_tokens(omni, monkeypatch):
    """Room for 512 new tokens is a bucket of 768 slots here; 1200 tokens need 1536. The shorter row ends earlier."""
    sizes, grow, rows, most = [], generation.grow, [prompt(16), prompt(5)], [1200, 40]
    monkeypatch.setattr(generation, "grow", lambda cache, slots: sizes.append(slots) or grow(cache, slots=slots))
    grown, _ = made(omni, rows, most=most, how=SAMPLED)  # greedy decoding would repeat one token
    assert sizes == [1536]
    monkeypatch.setattr(buckets, "INITIAL_NEW_SLOTS", 1200)
    large, _ = made(omni, rows, most=most, how=SAMPLED)
    assert sizes == [1536]
    assert [len(tokens) for tokens, _ in grown] == most
    for (tokens, logprobs), (others, expected) in zip(grown, large, strict=True):
        assert tokens == others
        np.testing.assert_allclose(logprobs, expected, rtol=1e-4)
    assert len(set(grown[0][0][-300:])) > 50


def test_the_cache_is_no_larger_than_the_limit_needs(omni, monkeypatch):
    """A call that could run past the last token does not grow the cache."""
    slots, thinker = set(), omni.parts.thinker
    empty = type(thinker).empty_cache
    monkeypatch.setattr(
        type(thinker), "empty_cache", lambda self, rows, size: slots.add(size) or empty(self, rows, size)
    )
    monkeypatch.setattr(generation, "grow", None)
    for length in (1, 9, 16):
        made(omni, [prompt(length)], most=[NEW])
    assert slots == {32, 48}  # for 1, 9 and 16 tokens and NEW more


# --- rows


@pytest.mark.parametrize("how", [GREEDY, SAMPLED])
def test_a_row_in_a_batch_equals_its_single_run(omni, how):
    """Three rows of unequal length, each with its own seed, in a program of four."""
    rows, seeds = [prompt(9), prompt(16), prompt(1)], [3, 4, 3]
    replies = answer(omni, rows, seed=seeds, **how)
    assert len(replies) == 3
    for row, seed, reply in zip(rows, seeds, replies, strict=True):
        (alone,) = answer(omni, [row], seed=seed, **how)
        assert reply.tokens == alone.tokens
        assert reply.text == alone.text
        np.testing.assert_allclose(reply.logprobs, alone.logprobs, rtol=1e-4)


def test_a_sampled_row_depends_on_its_seed(omni):
    replies = answer(omni, [prompt(9)] * 4, seed=[1, 2, 1, 3], **SAMPLED)
    assert replies[0] == replies[2]
    assert len({tuple(reply.tokens) for reply in replies}) == 3
    assert answer(omni, [prompt(9)], seed=2, **SAMPLED)[0].tokens == replies[1].tokens


def test_padding_on_either_side_changes_nothing(omni):
    rows = [prompt(9), prompt(16), prompt(12)]
    right = batch(*rows)
    tokens, mask = np.zeros((3, 16), int), np.zeros((3, 16), bool)
    for number, row in enumerate(rows):
        tokens[number, 16 - len(row) :], mask[number, 16 - len(row) :] = row, True
    left = Batch.from_tokens(tokens, mask)
    assert [r.tokens for r in answer(omni, left)] == [r.tokens for r in answer(omni, right)]


# --- ends


@pytest.fixture(scope="module")
def free(omni):
    """A sampled reply that ends only at its length; its tokens differ enough to choose stops from them."""
    (reply,) = answer(omni, [prompt(9)], seed=1, **SAMPLED)
    assert reply.finish_reason == "length"
    assert len(reply.tokens) == NEW
    return reply


def test_the_first_of_several_stop_ids_ends_the_reply(omni, free):
    early, late = free.tokens[6], free.tokens[12]
    first = min(free.tokens.index(early), free.tokens.index(late))
    for stops in ([early, late, 100000], [late, -1, early]):
        (reply,) = answer(omni, [prompt(9)], seed=1, eos_token_id=stops, **SAMPLED)
        assert reply.tokens == free.tokens[: first + 1]
        assert reply.logprobs == free.logprobs[: first + 1]
        assert reply.finish_reason == "stop"


def test_a_finished_row_does_not_change_while_others_continue(omni, free):
    rows = [prompt(9), prompt(16), prompt(16)]
    replies = answer(omni, rows, seed=[1, 1, 2], eos_token_id=free.tokens[3], **SAMPLED)
    assert replies[0].tokens == free.tokens[: free.tokens.index(free.tokens[3]) + 1]
    (other,) = answer(omni, [prompt(16)], seed=1, eos_token_id=free.tokens[3], **SAMPLED)
    assert replies[1].tokens == other.tokens
    assert len(replies[1].tokens) > len(replies[0].tokens)


def test_no_stop_before_the_minimum_length(omni):
    first = answer(omni, [prompt(9)], **GREEDY)[0].tokens[0]
    (late,) = answer(omni, [prompt(9)], eos_token_id=first, min_new_tokens=NEW, **GREEDY)
    assert first not in late.tokens
    assert (len(late.tokens), late.finish_reason) == (NEW, "length")
    at = next(at for at in range(5, NEW) if late.tokens[at] not in late.tokens[:5])
    stops = [late.tokens[at], first]
    (reply,) = answer(omni, [prompt(9)], eos_token_id=stops, min_new_tokens=5, **GREEDY)
    assert (reply.tokens, reply.finish_reason) == (late.tokens[: at + 1], "stop")
    (reply,) = answer(omni, [prompt(9)], eos_token_id=stops, **GREEDY)
    assert (reply.tokens, reply.finish_reason) == ([first], "stop")


@pytest.mark.parametrize("most", [1, 17, NEW - 1])
def test_a_reply_ends_at_its_maximum_length(omni, free, most):
    (reply,) = answer(omni, [prompt(9)], seed=1, max_new_tokens=most, **SAMPLED)
    assert reply.tokens == free.tokens[:most]
    assert reply.finish_reason == "length"


def test_a_stop_token_at_the_maximum_length_is_a_stop(omni, free):
    at = max(free.tokens.index(token) for token in free.tokens)
    (reply,) = answer(omni, [prompt(9)], seed=1, max_new_tokens=at + 1, eos_token_id=free.tokens[at], **SAMPLED)
    assert (reply.tokens, reply.finish_reason) == (free.tokens[: at + 1], "stop")


def test_stop_strings_cut_the_text_and_the_tokens(omni, free):
    text = free.text
    stop = next(text[at : at + 3] for at in range(4, len(text)) if text.index(text[at : at + 3]) == at)
    (reply,) = answer(omni, [prompt(9)], seed=1, stop_strings=["never said", stop], **SAMPLED)
    assert reply.text == text[: text.index(stop)]
    assert reply.finish_reason == "stop"
    assert reply.tokens == free.tokens[: len(reply.tokens)]
    assert len(reply.logprobs) == len(reply.tokens) < NEW
    said = [Transcript(omni.tokenizer).push(reply.tokens[:end]).text for end in (-1, None)]
    assert [stop in part for part in said] == [False, True]


def test_rows_end_at_the_end_of_the_context(omni):
    config = replace(omni.config, thinker=replace(omni.config.thinker, context=33))
    small, rows = Omni(omni.parts, config, omni.folder), [prompt(9), prompt(16), prompt(12)]
    replies = answer(small, rows, max_new_tokens=1000)
    assert [len(reply.tokens) for reply in replies] == [24, 17, 21]
    assert {reply.finish_reason for reply in replies} == {"length"}
    for reply, longer in zip(replies, answer(omni, rows), strict=True):
        assert reply.tokens == longer.tokens[: len(reply.tokens)]
    with pytest.raises(ValueError, match="the prompt has 33 tokens; the context holds 33 with the answer") as error:
        answer(small, [prompt(9), prompt(33)])
    assert "\n" not in str(error.value)


def test_only_the_requested_hidden_states_are_kept(omni):
    """The compiled program holds the prompt's states of one layer, not of all layers."""
    thinker, config = omni.parts.thinker, omni.config.thinker.decoder
    tokens = np.zeros((2, 256), np.int32)
    positions, lengths = np.zeros((3, 2, 256), np.float32), np.array([256, 200], np.int32)
    rows = SamplingRows.of([Sampling(do_sample=False)] * 2, [0, 0], [1, 1])
    embedded, cache = thinker.prompt(jnp.asarray(tokens)), thinker.empty_cache(2, 256)
    memory = [
        generation.prefill.lower(
            thinker, embedded, tokens, positions, lengths, cache, rows, candidates=0, hidden_layer=hidden_layer
        ).compile().memory_analysis()
        for hidden_layer in (None, 2)
    ]  # fmt: skip
    states = tokens.size * config.width * 4
    assert memory[1].output_size_in_bytes - memory[0].output_size_in_bytes == pytest.approx(states, rel=0.01)
    assert memory[1].temp_size_in_bytes - memory[0].temp_size_in_bytes <= 2 * states


@pytest.mark.parametrize("hidden_layer", [1, 2, 4])
def test_kept_states_are_those_of_the_requested_layer(omni, hidden_layer):
    """States after some layers; after the last layer the final-normed ones, which the head takes."""
    thinker, tokens = omni.parts.thinker, np.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    positions, lengths = np.broadcast_to(np.arange(8, dtype=np.float32), (3, 1, 8)), np.array([8])
    embedded = thinker.prompt(jnp.asarray(tokens))
    prefill = jax.jit(thinker.prefill, static_argnames=("fresh", "hidden_layer"))
    logits, _, hidden = prefill(
        embedded, positions, lengths, thinker.empty_cache(1, 16), fresh=True, hidden_layer=hidden_layer
    )
    assert hidden.shape == (1, 8, omni.config.thinker.decoder.width)
    same = np.allclose(thinker.head(hidden[:, -1]), logits, atol=1e-5)
    assert same == (hidden_layer == 4)


@pytest.mark.parametrize("deepstack", [False, True])
def test_a_long_prompt_is_prefilled_in_pieces(omni, monkeypatch, deepstack):
    """Rows that end in any piece, or are empty, have the same logits, states and cache, with less memory."""
    thinker, width = omni.parts.thinker, omni.config.thinker.decoder.width
    rng, lengths = np.random.default_rng(0), np.array([157, 64, 3, 0])
    embedded = thinker.prompt(jnp.asarray(rng.integers(0, 200, (4, 160))))
    if deepstack:
        embedded = replace(embedded, deepstack=jnp.asarray(rng.normal(size=(2, 4, 160, width)), jnp.float32))
    positions, cache = np.broadcast_to(np.arange(160, dtype=np.float32), (3, 4, 160)), thinker.empty_cache(4, 192)

    def program():
        return jax.jit(lambda *given: thinker.prefill(*given, fresh=True, hidden_layer=2))

    def memory(tokens=480):
        """Temporaries of ten pieces; with fewer tokens the pieces' copies would hold as much as attention saves."""
        shapes = (
            jax.eval_shape(thinker.prompt, jax.ShapeDtypeStruct((4, tokens), jnp.int32)),
            jax.ShapeDtypeStruct((3, 4, tokens), jnp.float32),
            jax.ShapeDtypeStruct((4,), jnp.int32),
            jax.eval_shape(lambda: thinker.empty_cache(4, tokens + 32)),
        )
        if deepstack:
            more = jax.ShapeDtypeStruct((2, 4, tokens, width), jnp.float32)
            shapes = (replace(shapes[0], deepstack=more), *shapes[1:])
        return program().lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    (logits, filled, hidden), most = program()(embedded, positions, lengths, cache), memory()
    monkeypatch.setattr(decoder, "PREFILL_CHUNK", 48)
    (in_pieces, filled_so, kept_so), less = program()(embedded, positions, lengths, cache), memory()
    np.testing.assert_array_equal(filled_so.length, lengths)
    for row, length in enumerate(lengths):
        own = (slice(None), row, slice(None), slice(length))
        for found, expected in ((filled_so.k[own], filled.k[own]), (filled_so.v[own], filled.v[own])):
            np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(kept_so[row, :length], hidden[row, :length], atol=1e-5)
    np.testing.assert_allclose(in_pieces[:3], logits[:3], atol=1e-5)
    assert less < most
    with pytest.raises(ValueError, match="cache: expected at least 160 slots for 160 tokens, got 128"):
        thinker.prefill(embedded, positions, lengths, thinker.empty_cache(4, 128), fresh=True)


@given(length=st.integers(1, 40_000), most=st.integers(1, 40_000))
def test_slots_suffice_and_do_not_exceed_the_conversation(length, most):
    slots, steps = buckets.first_slots(buckets.bucket(length), length, most), 0
    while slots < length + most:
        grown = buckets.more_slots(slots, length, most)
        assert slots + generation.CALL_STEPS <= grown or grown >= length + most
        slots, steps = grown, steps + 1
    assert slots <= buckets.bucket(length + most)
    assert steps <= 8
