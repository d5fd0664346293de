"""Attention of many tokens on a CPU: head by head, in blocks of scores that stay in a core's L2 cache.

Keys are the leading axis of the scores. The maximum and the sum over keys then work on whole vectors of queries; over
an innermost axis the CPU's compiler would reduce number by number. The softmax is online (arXiv:1805.02867).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omni_jax.nn.softmax import MASKED, online_softmax

# Queries and keys of one block of scores: 256 KB in float32.
ROWS, COLUMNS = 256, 256
# With fewer queries, a whole pass is not cut into blocks.
FEW = 64


def attend(
    q: Float[Array, "T N H"],
    k: Float[Array, "T N H"],
    v: Float[Array, "T N H"],
    first: Int[Array, "T"],
    last: Int[Array, "T"],
) -> Float[Array, "T N H"]:
    """Token i sees tokens first[i] .. last[i] - 1. A token whose span is empty gives zeros."""
    length, heads, width = q.shape
    rows, columns = min(ROWS, length), min(COLUMNS, length)
    empty = first >= last
    # A block's bounds are its lowest first and its highest last. Empty spans get values that do not affect them.
    first, last = jnp.where(empty, length, first), jnp.where(empty, 0, last)

    def cut(x, fill=0):
        x = jnp.pad(x, [(0, -length % rows)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
        return x.reshape(-1, rows, *x.shape[1:])

    # Padded by one block, because the last block of keys may begin at any token.
    k_NSH = jnp.pad(jnp.swapaxes(k, 0, 1), [(0, 0), (0, columns), (0, 0)])
    v_NHS = jnp.pad(jnp.moveaxis(v, 0, 2), [(0, 0), (0, 0), (0, columns)])

    def block(own):
        low, high, q_NHT = own

        def head(arrays):
            q_HT, k_SH, v_HS = arrays
            return _attend_head(q_HT, k_SH, v_HS, low, high, columns)

        return jnp.moveaxis(jax.lax.map(head, (q_NHT, k_NSH, v_NHS)), 2, 0).astype(v.dtype)

    blocks = (cut(first, length), cut(last), jnp.moveaxis(cut(q), 1, 3))
    return jax.lax.map(block, blocks).reshape(-1, heads, width)[:length]


def attend_causal(
    q: Float[Array, "B T K G H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], *, window: int | None
) -> Float[Array, "B T K G H"]:
    """Token t sees the tokens up to itself, at most ``window`` of them. Blocks of later keys are not visited."""
    tokens = jnp.arange(q.shape[1])
    first = jnp.zeros_like(tokens) if window is None else jnp.maximum(tokens - window + 1, 0)

    def row(arrays):
        q, k, v = arrays
        groups = q.shape[2]
        keys, values = jnp.repeat(k, groups, axis=1), jnp.repeat(v, groups, axis=1)
        return attend(q.reshape(len(q), -1, q.shape[-1]), keys, values, first, tokens + 1).reshape(q.shape)

    return jax.lax.map(row, (q, k, v))


def attend_dense(
    q: Float[Array, "B T N H"], k: Float[Array, "B S N H"], v: Float[Array, "B S N H"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B T N H"]:
    """Attention with all scores of a head at once, for short rows."""

    def head(arrays):
        q_TH, k_SH, v_SH, mask_ST = arrays
        scores_ST = jnp.matmul(k_SH, q_TH.T, preferred_element_type=jnp.float32) * jnp.float32(q_TH.shape[-1] ** -0.5)
        weights_ST = jax.nn.softmax(jnp.where(mask_ST, scores_ST, MASKED), axis=0)
        return jnp.matmul(v_SH.T, weights_ST.astype(v_SH.dtype))

    def row(arrays):
        *arrays, mask_TS = arrays
        heads = tuple(jnp.swapaxes(x, 0, 1) for x in arrays)
        return jnp.moveaxis(jax.lax.map(lambda own: head((*own, mask_TS.T)), heads), 2, 0)

    return jax.lax.map(row, (q, k, v, mask))


def _attend_head(
    q_HT: Float[Array, "H T"],
    k_SH: Float[Array, "S H"],
    v_HS: Float[Array, "H S"],
    low: Int[Array, "T"],
    high: Int[Array, "T"],
    columns: int,
) -> Float[Array, "H T"]:
    """Attention of one head's block of queries to the keys that any of them sees, in float32."""
    start = jnp.min(low)
    count = jnp.maximum(jnp.max(high) - start + columns - 1, 0) // columns
    scale = jnp.float32(q_HT.shape[0] ** -0.5)

    def step(number, carry):
        out, most, total = carry
        at = start + number * columns
        keys = jax.lax.dynamic_slice_in_dim(k_SH, at, columns, axis=0)
        values = jax.lax.dynamic_slice_in_dim(v_HS, at, columns, axis=1)
        seen = (at + jnp.arange(columns))[:, None]
        mask = (seen >= low[None]) & (seen < high[None])
        scores_ST = jnp.matmul(keys, q_HT, preferred_element_type=jnp.float32) * scale
        weights_ST, kept, most, total = online_softmax(scores_ST, mask, most, total, axis=0)
        new = jnp.matmul(values, weights_ST.astype(v_HS.dtype), preferred_element_type=jnp.float32)
        return out * kept[None] + new, most, total

    nothing = jnp.zeros(q_HT.shape[1], jnp.float32)
    out, _, total = jax.lax.fori_loop(0, count, step, (jnp.zeros(q_HT.shape, jnp.float32), nothing + MASKED, nothing))
    return out / jnp.maximum(total, 1e-30)[None]
