"""Laws of Qwen2.5-Omni's talker: steps, padding and batches change nothing; its tracks and ids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.config import from_hf
from omni_jax.models.qwen2_5_omni.talker import Talker
from omni_jax.nn.layers import Init
from omni_jax.testing.qwen2_5_omni import three_b, tiny_qwen2_5_config

CONFIGS = {"7B": tiny_qwen2_5_config(), "3B": three_b(tiny_qwen2_5_config())}
extend = jax.jit(lambda talker, *given, fresh=False: talker.extend(*given, fresh=fresh), static_argnames="fresh")


def build(size, dtype=jnp.float32):
    """All parameters are random: an initial bias would be zero and hide a fault."""

    @jax.jit
    def make():
        talker = Talker(Init(jax.random.key(0), dtype), from_hf(CONFIGS[size]).talker)
        leaves, tree = jax.tree.flatten(talker)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        noise = [0.1 * jax.random.normal(key, leaf.shape, dtype) for key, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(tree, [leaf + part for leaf, part in zip(leaves, noise, strict=True)])

    return make()


@pytest.fixture(scope="module", params=CONFIGS)
def talker(request):
    return build(request.param)


def prompts(talker, *lengths, width=None, seed=0):
    """Rows of the given lengths, with padding that is not zero; positions as after media."""
    random, width = np.random.default_rng(seed), width or max(lengths)
    x = random.standard_normal((len(lengths), width, talker.config.embedding_width), np.float32)
    positions = np.cumsum(random.choice([0, 1, 2, 5], (3, len(lengths), width)), axis=2)
    return x, positions, np.array(lengths)


def run(talker, x, positions, lengths, slots=32):
    return extend(talker, x, positions, lengths, talker.empty_cache(len(x), slots), fresh=True)


def test_prefill_and_steps_equal_the_whole(talker):
    x, positions, _ = prompts(talker, 9, 9)
    logits, states, cache = run(talker, x[:, :5], positions[:, :, :5], np.array([5, 3]))
    for step in range(4):
        at = np.array([5, 3]) + step
        expected = run(talker, x, positions, at)
        np.testing.assert_allclose(logits, expected[0], atol=2e-5)
        np.testing.assert_allclose(states, expected[1], atol=2e-5)
        rows = np.arange(2)
        given = x[rows, at][:, None], positions[:, rows, at][:, :, None]
        logits, states, cache = extend(talker, *given, np.array([1, 1]), cache)


def test_a_row_does_not_depend_on_batch_and_padding(talker):
    x, positions, lengths = prompts(talker, 9, 1, 6)
    together = run(talker, x, positions, lengths)
    for row, length in enumerate(lengths):
        alone = run(talker, x[row : row + 1, :length], positions[:, row : row + 1, :length], lengths[row : row + 1])
        for found, expected in zip(together[:2], alone[:2], strict=True):
            np.testing.assert_allclose(found[row], expected[0], atol=2e-5)


def test_a_row_without_a_new_token_keeps_its_cache(talker):
    x, positions, lengths = prompts(talker, 4, 4)
    _, _, cache = run(talker, x, positions, lengths)
    step = x[:, :1], positions[:, :, -1:] + 1
    _, _, one = extend(talker, *step, np.array([1, 0]), cache)
    assert one.length.tolist() == [5, 4]
    logits, _, _ = extend(talker, *step, np.array([0, 1]), one)
    expected, _, _ = extend(talker, *step, np.array([1, 1]), cache)
    np.testing.assert_allclose(logits[1], expected[1], atol=2e-5)


@pytest.mark.parametrize(("size", "seen"), [("7B", [True, True, True]), ("3B", [True, True, False])])
def test_coordinates_that_affect_the_3bs_talker(size, seen):
    """The width coordinate rotates no frequency of the 3B's talker."""
    talker = build(size)
    x, positions, lengths = prompts(talker, 8)
    logits = run(talker, x, positions, lengths)[0]
    for axis in range(3):
        moved = positions.copy()
        moved[axis, :, 3:] += 9
        changed = np.abs(run(talker, x, moved, lengths)[0] - logits).max()
        assert changed > 1e-4 if seen[axis] else changed == 0


def test_negative_codes_are_embedded_as_zeros(talker):
    table = np.asarray(talker.table.table)
    codes = np.array([[0, -1, talker.config.codec_bos], [-1, 5, talker.config.vocabulary - 1]])
    found = np.asarray(talker.embedding(codes))
    np.testing.assert_array_equal(found[codes >= 0], table[codes[codes >= 0]])
    assert not found[codes < 0].any()


def test_only_codes_of_the_vocoder_may_be_chosen(talker):
    """All ids of the vocoder's table, and none of the control ids."""
    config = talker.config
    assert np.flatnonzero(talker.codes).tolist() == list(range(config.codes))
    assert talker.codes.shape == (config.vocabulary,)
    assert not talker.codes[[config.codec_pad, config.codec_bos, config.codec_eos, config.codec_mask]].any()


def test_a_bfloat16_talker_gives_float32_logits():
    talker = build("7B", jnp.bfloat16)
    x, positions, lengths = prompts(talker, 8, 5)
    logits, states, cache = run(talker, x.astype(jnp.bfloat16), positions, lengths)
    assert (logits.dtype, states.dtype, cache.k.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    assert talker.embedding(np.array([3])).dtype == jnp.bfloat16
