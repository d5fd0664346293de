"""Attention within segments or spans of a packed sequence. Softmax in float32."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jaxtyping import Array, Bool, Float, Int

from omni_jax.nn.causal_attention import differentiated_as, scaled_scores
from omni_jax.nn.kernels import packed_attention, packed_attention_cpu
from omni_jax.nn.softmax import MASKED, online_softmax

# Queries and keys in one block of attention inside spans.
SPAN_ROWS, SPAN_COLUMNS = 256, 512

# Arrays of a packed sequence: queries, keys or values; and a number a token.
Heads = Float[Array, "T N H"]
Tokens = Int[Array, "T"]
# What the backward pass needs: q, k, v, first, last, the output, and the logarithm of each query's sum by blocks.
Kept = tuple[Heads, Heads, Heads, Tokens, Tokens, Heads, Float[Array, "blocks N t"]]


def attend_segments(
    q: Heads,
    k: Heads,
    v: Heads,
    segments: Tokens,
    *,
    max_segment: int,
    mesh: AbstractMesh | None = None,
) -> Heads:
    """Attention inside the segments of a packed sequence: token i sees token j where their segment ids are equal.

    A segment is contiguous and has at most ``max_segment`` tokens. A negative id (padding) gives a finite output.

    Args:
        q: queries.
        k: keys.
        v: values.
        segments: segment id of each token.
        max_segment: upper bound on the tokens of a segment.
        mesh: the mesh that the arrays lie on; None for one device.
    """
    if len(q) <= max_segment:
        mask = segments[:, None] == segments[None, :]
        return _dense(q[None], k[None], v[None], mask[None])[0]

    def kernel(q, k, v, segments):
        return packed_attention.attend(q, k, v, *packed_attention.bounds(segments), mesh=mesh)

    return _by_platform(partial(_segments_in_blocks, max_segment=max_segment), {"tpu": kernel}, q, k, v, segments)


def attend_spans(
    q: Heads,
    k: Heads,
    v: Heads,
    first: Tokens,
    last: Tokens,
    *,
    mesh: AbstractMesh | None = None,
) -> Heads:
    """Attention inside the spans of a packed sequence, of any lengths: token i sees tokens first[i] .. last[i] - 1.

    Work grows with the squares of the spans' lengths; memory is one block of scores, forward and backward. A token
    whose span is empty (padding) gives zeros.

    Args:
        q: queries.
        k: keys.
        v: values.
        first: first token that each token sees.
        last: one past the last token that each token sees.
        mesh: the mesh that the arrays lie on; None for one device.
    """
    forms = {"tpu": partial(packed_attention.attend, mesh=mesh), "cpu": packed_attention_cpu.attend}
    return _by_platform(_spans_in_blocks, forms, q, k, v, first, last)


def _by_platform(form, forms, *arrays):
    """The platform's own form, or ``form`` where it has none. Under differentiation, ``form`` on every platform."""
    return differentiated_as(form, lambda *arrays: jax.lax.platform_dependent(*arrays, default=form, **forms))(*arrays)


def _segments_in_blocks(q: Heads, k: Heads, v: Heads, segments: Tokens, *, max_segment: int) -> Heads:
    """All keys of a block of ``max_segment`` queries are in its own block and the two beside it. So there are dense batches
    of [max_segment, 3 * max_segment] scores, never [T, T]."""
    length, heads, width = q.shape
    blocks = -(-length // max_segment)
    padding = blocks * max_segment - length

    def split(x, fill):
        return jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1), constant_values=fill).reshape(
            blocks, max_segment, *x.shape[1:]
        )

    def neighbours(x, fill):
        around = jnp.pad(x, [(1, 1)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
        return jnp.concatenate([around[:-2], around[1:-1], around[2:]], axis=1)

    q, k, v, ids = split(q, 0), split(k, 0), split(v, 0), split(segments, -1)
    mask = ids[:, :, None] == neighbours(ids, -2)[:, None, :]
    out = _dense(q, neighbours(k, 0), neighbours(v, 0), mask)
    return out.reshape(blocks * max_segment, heads, width)[:length]


@jax.custom_vjp
def _spans_in_blocks(q: Heads, k: Heads, v: Heads, first: Tokens, last: Tokens) -> Heads:
    """Each block of queries visits only the blocks of keys that one of its tokens sees, with an online softmax
    (arXiv:1805.02867; FlashAttention, arXiv:2205.14135)."""
    return _forward_spans(q, k, v, first, last)[0]


def _span_blocks(length: int, first: Tokens, last: Tokens, *rows: Heads) -> tuple[Array, ...]:
    """``first``, ``last`` and other arrays of a value a token, cut into blocks of queries: [blocks, t] and [blocks, N, t, H]."""
    size = min(SPAN_ROWS, length)
    padding = -length % size
    # A block's bounds are its lowest first and its highest last. Empty spans get values that do not affect them.
    empty = first >= last
    first, last = jnp.where(empty, length, first), jnp.where(empty, 0, last)

    def cut(x, fill=0):
        x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
        return x.reshape(-1, size, *x.shape[1:])

    return (cut(first, length), cut(last), *(jnp.swapaxes(cut(x), 1, 2) for x in rows))


def _span_keys(*arrays: Heads) -> Iterator[Float[Array, "N S H"]]:
    """Arrays [N, S, H], padded by one block because the last block may begin at any token."""
    return (jnp.pad(jnp.swapaxes(x, 0, 1), [(0, 0), (0, min(SPAN_COLUMNS, len(x))), (0, 0)]) for x in arrays)


def _span_scores(
    q_NTH: Float[Array, "N T H"], k_NSH: Float[Array, "N S H"], low: Tokens, high: Tokens, at: Int[Array, ""]
) -> tuple[Float[Array, "N T S"], Bool[Array, "T S"]]:
    """Scores of one block of queries with the keys from ``at`` on, and which of them count."""
    seen = at + jnp.arange(k_NSH.shape[1])[None]
    mask = (seen >= low[:, None]) & (seen < high[:, None])
    scores = jnp.einsum("NTH,NSH->NTS", q_NTH, k_NSH, preferred_element_type=jnp.float32)
    return scores * jnp.float32(q_NTH.shape[-1] ** -0.5), mask


def _over_spans(low: Tokens, high: Tokens, columns: int, step: Callable[..., Any], carry: Any) -> Any:
    """``carry = step(at, carry)`` over the blocks of keys that a block of queries sees."""
    start = jnp.min(low)
    count = jnp.maximum(jnp.max(high) - start + columns - 1, 0) // columns
    return jax.lax.fori_loop(0, count, lambda number, carry: step(start + number * columns, carry), carry)


def _forward_spans(q: Heads, k: Heads, v: Heads, first: Tokens, last: Tokens) -> tuple[Heads, Kept]:
    length, heads, width = q.shape
    columns = min(SPAN_COLUMNS, length)
    blocks = _span_blocks(length, first, last, q)
    k_NSH, v_NSH = _span_keys(k, v)

    def attend(block):
        low, high, q_NTH = block

        def step(at, carry):
            out, most, total = carry
            keys, values = (jax.lax.dynamic_slice_in_dim(x, at, columns, axis=1) for x in (k_NSH, v_NSH))
            scores, mask = _span_scores(q_NTH, keys, low, high, at)
            weights, kept, most, total = online_softmax(scores, mask, most, total, axis=-1)
            new = jnp.einsum("NTS,NSH->NTH", weights.astype(v.dtype), values, preferred_element_type=jnp.float32)
            return out * kept[..., None] + new, most, total

        nothing = jnp.zeros(q_NTH.shape[:2], jnp.float32)
        out, most, total = _over_spans(
            low, high, columns, step, (jnp.zeros(q_NTH.shape, jnp.float32), nothing + MASKED, nothing)
        )
        total = jnp.maximum(total, 1e-30)
        return jnp.swapaxes(out / total[..., None], 0, 1).astype(v.dtype), most + jnp.log(total)

    out, log_total = jax.lax.map(attend, blocks)
    out = out.reshape(-1, heads, width)[:length]
    return out, (q, k, v, first, last, out, log_total)


def _backward_spans(kept: Kept, gradient: Heads) -> tuple[Heads, Heads, Heads, None, None]:
    q, k, v, first, last, out, log_total = kept
    length, heads, width = q.shape
    columns = min(SPAN_COLUMNS, length)
    k_NSH, v_NSH = _span_keys(k, v)
    blocks = _span_blocks(length, first, last, q, out, gradient)

    def visit(carry, block):
        low, high, q_NTH, out_NTH, gradient_NTH, log_total = block
        mean = jnp.sum(out_NTH.astype(jnp.float32) * gradient_NTH.astype(jnp.float32), axis=-1)

        def step(at, carry):
            dq, dk, dv = carry
            keys, values = (jax.lax.dynamic_slice_in_dim(x, at, columns, axis=1) for x in (k_NSH, v_NSH))
            scores, mask = _span_scores(q_NTH, keys, low, high, at)
            weights = jnp.where(mask, jnp.exp(scores - log_total[..., None]), 0)
            of_weights = jnp.einsum("NTH,NSH->NTS", gradient_NTH, values, preferred_element_type=jnp.float32)
            of_scores = weights * (of_weights - mean[..., None]) * jnp.float32(width**-0.5)

            def add(total, new):
                old = jax.lax.dynamic_slice_in_dim(total, at, columns, axis=1)
                return jax.lax.dynamic_update_slice_in_dim(total, old + new, at, axis=1)

            return (
                dq + jnp.einsum("NTS,NSH->NTH", of_scores, keys.astype(jnp.float32)),
                add(dk, jnp.einsum("NTS,NTH->NSH", of_scores, q_NTH.astype(jnp.float32))),
                add(dv, jnp.einsum("NTS,NTH->NSH", weights, gradient_NTH.astype(jnp.float32))),
            )

        dq, *carry = _over_spans(low, high, columns, step, (jnp.zeros(q_NTH.shape, jnp.float32), *carry))
        return tuple(carry), jnp.swapaxes(dq, 0, 1)

    nothing = jnp.zeros(k_NSH.shape, jnp.float32)
    (dk, dv), dq = jax.lax.scan(visit, (nothing, nothing), (*blocks, log_total))
    dq = dq.reshape(-1, heads, width)[:length].astype(q.dtype)
    dk, dv = (jnp.swapaxes(x, 0, 1)[:length].astype(k.dtype) for x in (dk, dv))
    return dq, dk, dv, None, None


_spans_in_blocks.defvjp(_forward_spans, _backward_spans)


def _dense(
    q: Float[Array, "B T N H"], k: Float[Array, "B S N H"], v: Float[Array, "B S N H"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B T N H"]:
    return jax.lax.platform_dependent(q, k, v, mask, cpu=packed_attention_cpu.attend_dense, default=_queries_first)


def _queries_first(
    q: Float[Array, "B T N H"], k: Float[Array, "B S N H"], v: Float[Array, "B S N H"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B T N H"]:
    scores = jnp.where(mask[:, None, :, None], scaled_scores(q[:, :, :, None], jnp.swapaxes(k, 1, 2)), MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("BKTGS,BSKH->BTKGH", weights, v)[:, :, :, 0]
