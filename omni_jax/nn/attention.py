"""Attention: causal over a row and its cache, and within segments of a packed sequence. Softmax in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Finite, so that a query that may look nowhere (padding) gives finite garbage instead of NaN.
MASKED = -1e30
# Scores of one block of queries stay near this many elements, so that no T x T array is held for long prompts.
SCORES = 1 << 25


def _scores(q: Float[Array, "B T K G H"], k: Float[Array, "B S K H"]) -> Float[Array, "B K T G S"]:
    # This order of axes is the one in which the product comes out: any other costs a transposition of all scores.
    scores = jnp.einsum("BTKGH,BSKH->BKTGS", q, k, preferred_element_type=jnp.float32)
    return scores * jnp.float32(q.shape[-1] ** -0.5)


def attend_causal(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    past: tuple[Float[Array, "B S K H"], Float[Array, "B S K H"], Int[Array, "B"]] | None = None,
    *,
    window: int | None = None,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention of new tokens over themselves and over a cache that does not hold them yet.

    Keeping the new keys beside the cache leaves the cache read-only inside the scan over layers; all layers are then written
    in one update. Query t of a row whose cache holds s entries sees cache slots 0 .. s-1 and new tokens 0 .. t.

    Args:
        past: keys, values and the number of filled slots of each row.
        window: how many keys a query may see, itself included.
    """
    batch, new, heads, width = q.shape
    groups = heads // k.shape[2]
    q = q.reshape(batch, new, k.shape[2], groups, width)
    slots = past[0].shape[1] if past else 0
    block = max(1, min(new, SCORES // max(1, batch * heads * (new + slots))))

    def attend(q_block, start):
        rows = start + jnp.arange(q_block.shape[1])
        columns = jnp.arange(new)
        mask = columns <= rows[:, None]
        if window is not None:
            mask &= columns > rows[:, None] - window
        scores = jnp.where(mask[:, None], _scores(q_block, k), MASKED)
        if past is not None:
            past_k, _, length = past
            seen = jnp.arange(slots) < length[:, None, None]
            if window is not None:
                seen &= jnp.arange(slots) > length[:, None, None] + rows[:, None] - window
            past_scores = jnp.where(seen[:, None, :, None], _scores(q_block, past_k), MASKED)
            scores = jnp.concatenate([past_scores, scores], axis=-1)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        out = jnp.einsum("BKTGS,BSKH->BTKGH", weights[..., slots:], v)
        if past is not None:
            out += jnp.einsum("BKTGS,BSKH->BTKGH", weights[..., :slots], past[1])
        return out

    if block >= new:
        out = attend(q, 0)
    else:
        blocks = -(-new // block)
        padded = jnp.pad(q, [(0, 0), (0, blocks * block - new), (0, 0), (0, 0), (0, 0)])
        padded = jnp.moveaxis(padded.reshape(batch, blocks, block, *q.shape[2:]), 1, 0)
        out = jax.lax.map(lambda item: attend(*item), (padded, jnp.arange(blocks) * block))
        out = jnp.moveaxis(out, 0, 1).reshape(batch, blocks * block, *q.shape[2:])[:, :new]
    return out.reshape(batch, new, heads, width)


def attend_segments(
    q: Float[Array, "T N H"],
    k: Float[Array, "T N H"],
    v: Float[Array, "T N H"],
    segments: Int[Array, "T"],
    *,
    reach: int,
) -> Float[Array, "T N H"]:
    """Attention inside the segments of a packed sequence: token i sees token j where their segment ids are equal.

    A segment is contiguous and spans at most ``reach`` tokens, so a block of ``reach`` queries finds all its keys in its own
    block and the two beside it: dense batches of [reach, 3 * reach] scores, never [T, T].
    """
    length, heads, width = q.shape
    if length <= reach:
        mask = segments[:, None] == segments[None, :]
        return _dense(q[None], k[None], v[None], mask[None])[0]
    blocks = -(-length // reach)
    padding = blocks * reach - length

    def split(x, fill):
        return jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1), constant_values=fill).reshape(
            blocks, reach, *x.shape[1:]
        )

    def neighbours(x, fill):
        around = jnp.pad(x, [(1, 1)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
        return jnp.concatenate([around[:-2], around[1:-1], around[2:]], axis=1)

    q, k, v, ids = split(q, 0), split(k, 0), split(v, 0), split(segments, -1)
    mask = ids[:, :, None] == neighbours(ids, -2)[:, None, :]
    out = _dense(q, neighbours(k, 0), neighbours(v, 0), mask)
    return out.reshape(blocks * reach, heads, width)[:length]


def _dense(
    q: Float[Array, "B T N H"], k: Float[Array, "B S N H"], v: Float[Array, "B S N H"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B T N H"]:
    scores = jnp.where(mask[:, None, :, None], _scores(q[:, :, :, None], k), MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("BKTGS,BSKH->BTKGH", weights, v)[:, :, :, 0]
