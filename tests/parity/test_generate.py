"""Greedy tokens equal Transformers' generate: single and batched, text and audio, penalties, bounds and stops.

"Equal" is up to ties in float32; a random model has none in these prompts.
"""

import pytest
import torch

from omni_jax.processing.batch import Batch
from tests.parity.parity_inputs import clip, ids, pad, reference_inputs

NEW = 24


@pytest.fixture(scope="module")
def omni(writer):
    """Text only; speech is tested in test_speaks.py."""
    return writer


def theirs(reference, tokens, mask, clips=(), eos=None, **options):
    with torch.no_grad():
        out = reference.thinker.generate(
            **reference_inputs(tokens, mask, clips), do_sample=False, pad_token_id=0, eos_token_id=eos,
            max_new_tokens=NEW, **options,
        ).numpy()  # fmt: skip
    rows = []
    for row in out[:, tokens.shape[1] :].tolist():
        ends = [at for at, token in enumerate(row) if eos is not None and token in eos]
        rows.append(row[: ends[0] + 1] if ends else row)
    return rows


def ours(omni, tokens, mask, clips=(), eos=(-1,), **options):
    options = {f"thinker_{name}": value for name, value in options.items()}
    replies = omni.generate_batch(
        Batch.from_tokens(tokens, mask, clips),
        thinker_max_new_tokens=NEW,
        thinker_eos_token_id=eos,
        thinker_do_sample=False,
        **options,
    )
    return [reply.tokens for reply in replies]


@pytest.mark.parametrize("frames", [[], [237], [450, 101]])
def test_tokens_of_one_prompt_equal_the_reference(omni, reference, frames):
    tokens, mask = pad([ids(omni, *frames)], left=True)
    clips = [clip(n, seed) for seed, n in enumerate(frames)]
    assert ours(omni, tokens, mask, clips) == theirs(reference, tokens, mask, clips)


def test_tokens_of_unequal_prompts_equal_the_reference(omni, reference):
    frames = [[237], [], [120, 450], []]
    tokens, mask = pad([ids(omni, *row, words=3 + 9 * n, seed=n) for n, row in enumerate(frames)], left=True)
    clips = [clip(n, seed) for seed, n in enumerate(n for row in frames for n in row)]
    assert ours(omni, tokens, mask, clips) == theirs(reference, tokens, mask, clips)


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.3}, {"repetition_penalty": 0.8}])
def test_repetition_penalty_equals_the_reference(omni, reference, options):
    tokens, mask = pad([ids(omni, 237), ids(omni, words=30, seed=1)], left=True)
    found = ours(omni, tokens, mask, [clip(237)], **options)
    assert found == theirs(reference, tokens, mask, [clip(237)], **options)
    assert found != ours(omni, tokens, mask, [clip(237)])


def test_emitted_stop_tokens_end_the_reply(omni, reference):
    tokens, mask = pad([ids(omni, 237), ids(omni, words=30, seed=1)], left=True)
    free = ours(omni, tokens, mask, [clip(237)], repetition_penalty=1.5)
    stops = [free[0][5], free[1][9]]
    found = ours(omni, tokens, mask, [clip(237)], eos=stops, repetition_penalty=1.5)
    assert found == theirs(reference, tokens, mask, [clip(237)], eos=stops, repetition_penalty=1.5)
    assert len(found[0]) <= 6
    assert len(found[1]) <= 10


def test_no_stop_token_before_the_minimum_length(omni, reference):
    tokens, mask = pad([ids(omni, words=30, seed=1)], left=True)
    stops = ours(omni, tokens, mask)[0][:1]
    found = ours(omni, tokens, mask, eos=stops, min_new_tokens=7)
    assert found == theirs(reference, tokens, mask, eos=stops, min_new_tokens=7)
    assert len(found[0]) >= 7
