"""The CPU forms of attention against the default forms, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.nn import causal_attention, packed_attention
from omni_jax.nn.kernels import packed_attention_cpu


def drawn(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape).astype(np.float32)) for shape in shapes]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(packed_attention_cpu, "ROWS", 16)
    monkeypatch.setattr(packed_attention_cpu, "COLUMNS", 12)


@pytest.mark.parametrize("window", [None, 1, 7, 200])
@pytest.mark.parametrize("tokens", [1, 16, 77])
def test_causal_attention_in_blocks_equals_all_scores_at_once(small_blocks, tokens, window):
    q, k, v = drawn((2, tokens, 2, 3, 8), (2, tokens, 2, 8), (2, tokens, 2, 8))
    expected = causal_attention._in_blocks(q, k, v, None, window=window)
    np.testing.assert_allclose(packed_attention_cpu.attend_causal(q, k, v, window=window), expected, atol=2e-6)


def test_spans_in_blocks_equal_the_default_form_and_empty_spans_give_zeros(small_blocks):
    q, k, v = drawn((50, 2, 8), (50, 2, 8), (50, 2, 8))
    first = jnp.array([0] * 20 + [20] * 25 + [0] * 5)
    last = jnp.array([20] * 20 + [45] * 25 + [0] * 5)
    made = packed_attention_cpu.attend(q, k, v, first, last)
    np.testing.assert_allclose(made, packed_attention._spans_in_blocks(q, k, v, first, last), atol=2e-6)
    np.testing.assert_array_equal(made[45:], 0)


def test_dense_attention_head_by_head_equals_all_heads_at_once():
    q, k, v = drawn((3, 9, 2, 8), (3, 14, 2, 8), (3, 14, 2, 8))
    mask = jnp.asarray(np.random.default_rng(1).random((3, 9, 14)) < 0.7)
    expected = packed_attention._queries_first(q, k, v, mask)
    np.testing.assert_allclose(packed_attention_cpu.attend_dense(q, k, v, mask), expected, atol=2e-6)


@pytest.mark.parametrize("window", [None, 30])
def test_gradients_of_a_causal_pass_equal_the_default_form(window):
    tokens = packed_attention_cpu.FEW + 3
    q, k, v, weights = drawn((1, tokens, 4, 8), (1, tokens, 2, 8), (1, tokens, 2, 8), (1, tokens, 4, 8))

    def total(q, k, v):
        return jnp.sum(causal_attention.attend_causal(q, k, v, window=window) * weights)

    def plain(q, k, v):
        out = causal_attention._in_blocks(q.reshape(1, tokens, 2, 2, 8), k, v, None, window=window)
        return jnp.sum(out.reshape(weights.shape) * weights)

    for made, expected in zip(jax.grad(total, (0, 1, 2))(q, k, v), jax.grad(plain, (0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_allclose(made, expected, atol=5e-6)
