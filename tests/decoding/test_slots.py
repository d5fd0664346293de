"""Continuous batching: a row equals its single run whatever enters and leaves beside it, and waits for no other row."""

from dataclasses import replace

import numpy as np
import pytest

from omni_jax import Sampling
from omni_jax.decoding.slots import Slots
from omni_jax.engine import encode
from omni_jax.processing.batch import Batch

NEW = 24  # prompts of up to 16 tokens share their programs
GREEDY = Sampling(eos_token_id=-1, max_new_tokens=NEW, do_sample=False)
SAMPLED = replace(GREEDY, do_sample=True, temperature=1.5, top_k=20)


def prompt(length, seed=0):
    return Batch.from_tokens(np.random.default_rng([seed, length]).integers(0, 250, length))


def alone(omni, batch, sampling, seed=0):
    """The reply to one prompt; a shorter reply is the beginning of a longer one, so that all share a program."""
    reply = omni.generate(batch, thinker=replace(sampling, max_new_tokens=NEW), seed=seed)
    return reply.tokens[: sampling.max_new_tokens], reply.logprobs[: sampling.max_new_tokens]


class Running:
    """Slots and their replies: prompts are inserted as rows become free."""

    def __init__(self, omni, rows, *, steps=8):
        self.omni, self.slots, self.of, self.written = omni, Slots(omni.parts.thinker, rows, steps=steps), {}, {}
        self.ended, self.sizes = [], []

    def insert(self, number, batch, sampling, seed=0):
        config, placed = self.omni.config.thinker, encode.pad_and_index(batch, self.omni.config.thinker)
        row, padded = self.slots.free[0], placed.batch
        self.of[row], self.written[number] = number, ([], [], sampling.max_new_tokens)
        self.slots.insert(
            row, encode.embed(self.omni.parts, placed, config), padded.tokens, padded.positions, padded.lengths, sampling,
            seed, sampling.max_new_tokens, candidates=sampling.candidates(config.vocabulary),
        )  # fmt: skip

    def decode(self):
        for written in self.slots.decode():
            number = self.of[written.row]
            tokens, logprobs, most = self.written[number]
            tokens += written.tokens
            logprobs += written.logprobs
            if len(tokens) >= most:
                self.slots.release(written.row)
                self.ended.append(number)
        self.sizes.append(self.slots.state.cache.slots)

    def answer(self, asked):
        for number, item in enumerate(asked):
            while not self.slots.free:
                self.decode()
            self.insert(number, *item)
        while self.slots.taken.any():
            self.decode()
        return [self.written[number][:2] for number in range(len(asked))]


def assert_alike(found, expected):
    assert found[0] == expected[0]
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4)


def test_a_row_equals_its_single_run(writer):
    """Nine prompts through three rows: greedy beside sampled ones, with unequal lengths and seeds."""
    asked = [
        (prompt(5 + number), replace(SAMPLED if number % 2 else GREEDY, max_new_tokens=17 + 5 * number % 8), number)
        for number in range(9)
    ]
    found = Running(writer, 3).answer(asked)
    for own, item in zip(found, asked, strict=True):
        assert_alike(own, alone(writer, *item))


def test_short_replies_do_not_wait_for_long_ones(writer):
    """While one row writes 24 tokens, the other writes six replies, with one decode program."""
    asked = [(prompt(9), GREEDY), *((prompt(9, seed), replace(GREEDY, max_new_tokens=3)) for seed in range(1, 7))]
    running = Running(writer, 2, steps=3)
    found = running.answer(asked)
    assert running.ended == [1, 2, 3, 4, 5, 6, 0]
    for own, item in zip(found, asked, strict=True):
        assert_alike(own, alone(writer, *item))


def test_the_cache_grows_and_shrinks_with_its_rows(writer):
    """It grows for a long prompt and shrinks after it; no row loses entries."""
    short, long = replace(GREEDY, max_new_tokens=20), replace(GREEDY, max_new_tokens=6)
    asked = [(prompt(7), short), (prompt(60), long), (prompt(8), short), (prompt(9), short)]
    running = Running(writer, 2)
    found = running.answer(asked)
    assert max(running.sizes) == 96
    assert running.sizes[-1] == 32
    for own, item in zip(found, asked, strict=True):
        assert_alike(own, alone(writer, *item))


def test_the_cache_grows_for_a_reply_beyond_its_room(writer, monkeypatch):
    monkeypatch.setattr("omni_jax.buckets.INITIAL_NEW_SLOTS", 8)
    running = Running(writer, 2)
    (found,) = running.answer([(prompt(12), GREEDY)])
    assert running.sizes[0] < running.sizes[-1]
    assert_alike(found, alone(writer, prompt(12), GREEDY))


def test_a_row_that_is_released_early_is_free_at_once(writer):
    running = Running(writer, 1)
    running.insert(0, prompt(9), GREEDY)
    running.decode()
    running.slots.release(0)
    assert running.slots.free == [0]
    running.insert(1, prompt(10), GREEDY)
    while running.slots.taken.any():
        running.decode()
    assert_alike(running.written[1][:2], alone(writer, prompt(10), GREEDY))
    assert len(running.written[0][0]) == 9  # the first token and a call


def test_further_prompts_of_known_sizes_compile_nothing(writer, compiled):
    asked = [(prompt(5 + number % 4, number), GREEDY, number) for number in range(5)]
    Running(writer, 2).answer(asked)
    compiled.clear()
    Running(writer, 2).answer([(prompt(6, 9), replace(GREEDY, max_new_tokens=21), 3), *asked])
    assert not compiled


def test_impossible_slots_and_steps_are_refused(writer):
    for rows, steps in ((0, 8), (2, 0), (2, 33)):
        with pytest.raises(ValueError, match="slots, steps: expected at least 1 row and 1 to 32"):
            Slots(writer.parts.thinker, rows, steps=steps)
