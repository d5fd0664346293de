"""Attention in blocks, over a cache and in segments equals plain masked attention."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.nn import cache as cache_module
from omni_jax.nn import causal_attention, layers, packed_attention
from omni_jax.nn.cache import KVCache


def qkv(batch, length, heads=4, kv_heads=2, width=6, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(batch, length, n, width)), jnp.float32) for n in (heads, kv_heads, kv_heads)]


def plain(q, k, v, mask):
    """Plain softmax attention with a [B, T, S] mask."""
    k, v = (np.repeat(np.asarray(x), q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(mask[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)


def causal(length, window=None):
    at = np.arange(length)
    mask = at[None] <= at[:, None]
    return mask & (at[None] > at[:, None] - window) if window else mask


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("scores", [1 << 25, 100, 1])
def test_blocks_of_queries_equal_the_whole(monkeypatch, window, scores):
    monkeypatch.setattr(causal_attention, "SCORES", scores)
    q, k, v = qkv(2, 11)
    mask = np.broadcast_to(causal(11, window), (2, 11, 11))
    np.testing.assert_allclose(causal_attention.attend_causal(q, k, v, window=window), plain(q, k, v, mask), atol=2e-6)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("cut", [1, 5, 10])
def test_cache_then_new_tokens_equal_the_whole(window, cut):
    q, k, v = qkv(2, 11)
    cache = KVCache.empty(layers=1, batch=2, slots=16, kv_heads=2, head_width=6, dtype=jnp.float32)
    cache = cache.append(k[None, :, :cut], v[None, :, :cut], jnp.array([cut, cut]))
    past = (cache.k[0], cache.v[0], cache.length)
    out = causal_attention.attend_causal(q[:, cut:], k[:, cut:], v[:, cut:], past, window=window)
    mask = np.broadcast_to(causal(11, window), (2, 11, 11))
    np.testing.assert_allclose(out, plain(q, k, v, mask)[:, cut:], atol=2e-6)


def test_rows_of_unequal_length_are_written_at_their_own_slots():
    cache = KVCache.empty(layers=1, batch=2, slots=8, kv_heads=1, head_width=1, dtype=jnp.float32)
    first = jnp.arange(1.0, 7.0).reshape(1, 2, 3, 1, 1)
    cache = cache.append(first, -first, jnp.array([1, 3]))
    cache = cache.append(jnp.full((1, 2, 1, 1, 1), 9.0), jnp.full((1, 2, 1, 1, 1), 9.0), jnp.array([1, 1]))
    np.testing.assert_array_equal(cache.length, [2, 4])
    np.testing.assert_array_equal(cache.k[0, 0, 0, :2, 0], [1, 9])
    np.testing.assert_array_equal(cache.k[0, 1, 0, :4, 0], [4, 5, 6, 9])


@given(lengths=st.lists(st.integers(1, 8), min_size=1, max_size=9), seed=st.integers(0, 3))
@settings(max_examples=12, deadline=None)
def test_segments_attend_only_to_themselves(lengths, seed):
    total = sum(lengths)
    q, k, v = (x[0] for x in qkv(1, total, kv_heads=4, seed=seed))
    ids = np.repeat(np.arange(len(lengths)), lengths)
    mask = (ids[:, None] == ids[None])[None]
    out = packed_attention.attend_segments(q, k, v, jnp.asarray(ids), max_segment=8)
    np.testing.assert_allclose(out, plain(q[None], k[None], v[None], mask)[0], atol=2e-6)


def test_segments_have_no_array_quadratic_in_the_length():
    """The compiled program for 832 tokens in windows of 104 has no array of 832 x 832 or more scores."""
    shapes = [jax.ShapeDtypeStruct((832, 2, 8), jnp.float32)] * 3 + [jax.ShapeDtypeStruct((832,), jnp.int32)]
    text = jax.jit(lambda *a: packed_attention.attend_segments(*a, max_segment=104)).lower(*shapes).compile().as_text()
    assert "104,312]" in text
    assert "832,832]" not in text


SPANS = st.lists(st.integers(1, 40), min_size=1, max_size=7)


def spans(lengths, padding=0):
    """Bounds of consecutive spans, and of padding after them."""
    starts = np.cumsum([0, *lengths[:-1]])
    first, last = np.repeat(starts, lengths), np.repeat(starts + lengths, lengths)
    return jnp.asarray(np.pad(first, (0, padding))), jnp.asarray(np.pad(last, (0, padding)))


@given(lengths=SPANS, padding=st.integers(0, 9), rows=st.integers(1, 16), columns=st.integers(1, 24))
@settings(max_examples=15, deadline=None)
def test_spans_of_any_length_attend_only_to_themselves(lengths, padding, rows, columns):
    """In blocks of any size, with spans that straddle them; padding gives zeros."""
    total = sum(lengths)
    q, k, v = (x[0] for x in qkv(1, total + padding, kv_heads=4, seed=rows))
    ids = np.repeat(np.arange(len(lengths)), lengths)
    expected = plain(*(x[None, :total] for x in (q, k, v)), (ids[:, None] == ids[None])[None])[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_attention, "SPAN_ROWS", rows)
        patch.setattr(packed_attention, "SPAN_COLUMNS", columns)
        out = np.asarray(packed_attention.attend_spans(q, k, v, *spans(lengths, padding)))
    np.testing.assert_allclose(out[:total], expected, atol=3e-6)
    np.testing.assert_array_equal(out[total:], 0)


def test_gradients_of_spans_equal_plain_attention(monkeypatch):
    """The backward pass in blocks equals that of plain attention."""
    monkeypatch.setattr(packed_attention, "SPAN_ROWS", 8)
    monkeypatch.setattr(packed_attention, "SPAN_COLUMNS", 12)
    lengths, total = [13, 1, 30, 6], 50
    q, k, v = (x[0] for x in qkv(1, total + 3, kv_heads=4))
    ids = jnp.asarray(np.repeat(np.arange(5), [*lengths, 3]))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32) * (ids < 4)[:, None, None]
    first, last = spans(lengths, 3)

    def by_the_book(q, k, v):
        scores = jnp.einsum("tnh,snh->nts", q, k) / np.sqrt(q.shape[-1])
        scores = jnp.where(ids[:, None] == ids[None], scores, -jnp.inf)
        return jnp.sum(jnp.einsum("nts,snh->tnh", jax.nn.softmax(scores), v) * weights)

    ours = jax.grad(lambda *a: jnp.sum(packed_attention.attend_spans(*a, first, last) * weights), argnums=(0, 1, 2))(
        q, k, v
    )
    for mine, expected in zip(ours, jax.grad(by_the_book, argnums=(0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_allclose(mine, expected, atol=3e-6)


def test_spans_have_no_array_quadratic_in_the_length():
    """The program for 4,096 patches, forward and backward, has scores of one block only: 256 queries on 512 keys."""
    arrays = [jax.ShapeDtypeStruct((4096, 2, 8), jnp.float32)] * 3 + [jax.ShapeDtypeStruct((4096,), jnp.int32)] * 2
    whole = jax.jit(jax.grad(lambda *a: jnp.sum(packed_attention.attend_spans(*a)), argnums=(0, 1, 2)))
    compiled = whole.lower(*arrays).compile()
    assert "256,512]" in compiled.as_text()
    assert "4096,4096" not in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes < 16 << 20


@pytest.mark.parametrize("count", [1, 3])
def test_the_tpu_form_of_a_cache_write_is_equal(count):
    """Row by row; a full row keeps its entries."""
    rng = np.random.default_rng(count)
    old = tuple(jnp.asarray(rng.normal(size=(2, 4, 2, 8, 3)), jnp.float32) for _ in "kv")
    new = tuple(jnp.asarray(rng.normal(size=(2, 4, 2, count, 3)), jnp.float32) for _ in "kv")
    at = jnp.array([0, 5, 2, 8])
    for found, expected in zip(
        cache_module._write_row_by_row(old, new, at), cache_module._write_at_once(old, new, at), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("write", [cache_module._write_row_by_row, cache_module._write_at_once])
def test_new_entries_that_do_not_fit_keep_the_older_ones(write):
    old, new = (jnp.arange(12.0).reshape(1, 2, 1, 6, 1),), (jnp.full((1, 2, 1, 3, 1), -1.0),)
    (found,) = write(old, new, jnp.array([4, 3]))
    np.testing.assert_array_equal(found[0, 0, 0, :4], old[0][0, 0, 0, :4])
    np.testing.assert_array_equal(found[0, 1, 0, :, 0], [6, 7, 8, -1, -1, -1])


def test_the_tpu_form_of_a_product_with_one_row_is_equal():
    x, kernel = jnp.ones((1, 1, 5)), jnp.arange(30.0).reshape(5, 2, 3)
    multiply = partial(jnp.tensordot, axes=1)
    np.testing.assert_array_equal(layers._doubled(multiply, x, kernel), multiply(x, kernel))
