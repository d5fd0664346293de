"""The talker and the code predictor against Transformers: teacher-forced, whole and step by step, rows of unequal length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.parity.parity_close import assert_close


@pytest.fixture(scope="module")
def width(omni):
    return omni.config.talker.decoder.width


def states(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def theirs(reference, x, positions):
    """Final-normed states and logits of one row."""
    with torch.no_grad():
        out = reference.talker.model(
            inputs_embeds=torch.from_numpy(x[None]), position_ids=torch.from_numpy(positions[:, None]),
            attention_mask=torch.ones(1, len(x), dtype=torch.long),
        ).last_hidden_state  # fmt: skip
        return out[0].numpy(), reference.talker.codec_head(out)[0].numpy()


def rope(length, seed):
    """Positions as after an image: the three coordinates differ and are fractional."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.choice([0, 1, 1.5, 3], (3, length)), axis=1).astype(np.float32)


def test_projections_equal_the_reference(omni, reference):
    x = states(7, omni.config.thinker.decoder.width)
    for name in ("text_projection", "hidden_projection"):
        with torch.no_grad():
            expected = getattr(reference.talker, name)(torch.from_numpy(x)).numpy()
        assert_close(getattr(omni.parts.talker, name)(x), expected)


def test_prefill_and_steps_of_unequal_rows_equal_the_reference(omni, reference, width):
    """Prompts of 11 and 4 embeddings in one batch, then five steps of each: every state and all logits."""
    talker, prompts, steps = omni.parts.talker, [11, 4], 5
    rows = [states(length + steps, width, seed=row) for row, length in enumerate(prompts)]
    places = [rope(length + steps, row) for row, length in enumerate(prompts)]
    expected = [theirs(reference, x, at) for x, at in zip(rows, places, strict=True)]
    x, positions = np.zeros((2, 11, width), np.float32), np.zeros((3, 2, 11), np.float32)
    for row, length in enumerate(prompts):
        x[row, :length], positions[:, row, :length] = rows[row][:length], places[row][:, :length]
    extend = jax.jit(talker.extend, static_argnames="fresh")
    logits, last, cache = extend(x, positions, np.array(prompts), talker.empty_cache(2, 24), fresh=True)
    for step in range(steps + 1):
        for row, length in enumerate(prompts):
            assert_close(last[row], expected[row][0][length + step - 1])
            assert_close(logits[row], expected[row][1][length + step - 1])
        if step < steps:
            at = [length + step for length in prompts]
            x = np.stack([rows[row][n] for row, n in enumerate(at)])[:, None]
            positions = np.stack([places[row][:, n] for row, n in enumerate(at)], axis=1)[:, :, None]
            logits, last, cache = extend(x, positions, np.array([1, 1]), cache)


def residual_of_reference(reference, state, first):
    """Greedy codes of one frame and all logits, by whole passes without a cache."""
    predictor = reference.talker.code_predictor
    fed, codes, scores = [state, first], [], []
    with torch.no_grad():
        for number, head in enumerate(predictor.lm_head):
            out = predictor.model(inputs_embeds=torch.stack(fed)[None]).last_hidden_state
            scores.append(head(out[0, -1]).numpy())
            codes.append(int(scores[-1].argmax()))
            fed.append(predictor.model.codec_embedding[number](torch.tensor(codes[-1])))
        return codes, scores, sum(fed[2:]).numpy()


def test_residual_codes_equal_the_reference(omni, reference, width):
    """Greedy codes, and the sum of their embeddings, three rows at once."""
    predictor, batch = omni.parts.code_predictor, 3
    state, first = states(batch, width), states(batch, width, seed=1)

    run = jax.jit(lambda *a: predictor.residual(*a, lambda logits, _: jnp.argmax(logits, axis=-1)))
    codes, total = run(state, first)
    for row in range(batch):
        expected, _, embedded = residual_of_reference(reference, *map(torch.from_numpy, (state[row], first[row])))
        assert codes[row].tolist() == expected
        assert_close(total[row], embedded)


def test_logits_of_each_codebook_equal_the_reference(omni, reference, width):
    """Teacher forcing: the reference's own codes are chosen, and the logits compared one codebook after another."""
    predictor = omni.parts.code_predictor
    state, first = states(1, width, seed=2), states(1, width, seed=3)
    codes, scores, _ = residual_of_reference(reference, torch.from_numpy(state[0]), torch.from_numpy(first[0]))
    found = {}

    def choose(logits, number):
        jax.debug.callback(lambda logits, number: found.__setitem__(int(number), np.asarray(logits[0])), logits, number)
        return jnp.asarray(codes)[None, number - 1]

    jax.block_until_ready(predictor.residual(state, first, choose))
    jax.effects_barrier()
    assert sorted(found) == list(range(1, omni.config.talker.codebooks))
    for number, expected in enumerate(scores, start=1):
        assert_close(found[number], expected)
