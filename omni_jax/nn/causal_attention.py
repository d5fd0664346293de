"""Causal attention of a row's new tokens to themselves and to its cache. Softmax in float32."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jaxtyping import Array, Float, Int

from omni_jax.nn.kernels import packed_attention_cpu, splash_attention
from omni_jax.nn.kernels.splash_attention import CachedPast
from omni_jax.nn.softmax import MASKED

# A block of queries has about this many scores, so that no T x T array is held for long prompts.
SCORES = 1 << 25


def scaled_scores(q: Float[Array, "B T K G H"], k: Float[Array, "B K S H"]) -> Float[Array, "B K T G S"]:
    # The product comes out in this order of axes; any other would transpose all scores.
    scores = jnp.einsum("BTKGH,BKSH->BKTGS", q, k, preferred_element_type=jnp.float32)
    return scores * jnp.float32(q.shape[-1] ** -0.5)


def attend_causal(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    past: CachedPast | None = None,
    *,
    window: int | None = None,
    mesh: AbstractMesh | None = None,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention of new tokens to themselves and to a cache that does not hold them yet.

    The new keys are kept beside the cache, so the cache is read-only inside the scan over layers, and one update then
    writes all layers. Query t of a row whose cache holds s entries sees cache slots 0 .. s-1 and new tokens 0 .. t.

    Args:
        q: queries of the new tokens.
        k: keys of the new tokens.
        v: values of the new tokens.
        past: cached keys and values, and the number of filled slots of each row.
        window: how many keys a query may see, itself included; None for all.
        mesh: the mesh that the arrays lie on; None for one device.
    """
    batch, new, heads, width = q.shape
    q = q.reshape(batch, new, k.shape[2], heads // k.shape[2], width)
    forms: dict[str, Callable[..., Any]] = {"default": partial(_in_blocks, window=window)}
    if window is None and splash_attention.fits(new, past[0].shape[2] if past else 0, width):
        forms["tpu"] = partial(splash_attention.attend, mesh=mesh)
    if past is None and new >= packed_attention_cpu.FEW:
        own = partial(packed_attention_cpu.attend_causal, window=window)
        forms["cpu"] = lambda q, k, v, _: differentiated_as(partial(_in_blocks, past=None, window=window), own)(q, k, v)
    return jax.lax.platform_dependent(q, k, v, past, **forms).reshape(batch, new, heads, width)


def _in_blocks(
    q: Float[Array, "B T K G H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    past: CachedPast | None,
    *,
    window: int | None,
) -> Float[Array, "B T K G H"]:
    """One block of queries at a time, so that no array of T x T scores is held."""
    batch, new, kv_heads, groups = q.shape[:4]
    heads, slots = kv_heads * groups, past[0].shape[2] if past else 0
    block = max(1, min(new, SCORES // max(1, batch * heads * (new + slots))))

    def attend(q_block: Float[Array, "B t K G H"], start: Int[Array, ""] | int) -> Float[Array, "B t K G H"]:
        rows = start + jnp.arange(q_block.shape[1])
        columns = jnp.arange(new)[None]
        mask = columns <= rows[:, None]
        if window is not None:
            mask &= columns > rows[:, None] - window
        scores = jnp.where(mask[:, None], scaled_scores(q_block, jnp.swapaxes(k, 1, 2)), MASKED)
        if past is not None:
            past_k, _, length = past
            places = jnp.arange(slots)[None, None]
            seen = places < length[:, None, None]
            if window is not None:
                seen &= places > length[:, None, None] + rows[None, :, None] - window
            past_scores = jnp.where(seen[:, None, :, None], scaled_scores(q_block, past_k), MASKED)
            scores = jnp.concatenate([past_scores, scores], axis=-1)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        out = jnp.einsum("BKTGS,BSKH->BTKGH", weights[..., slots:], v)
        if past is not None:
            out += jnp.einsum("BKTGS,BKSH->BTKGH", weights[..., :slots], past[1])
        return out

    if block >= new:
        out = attend(q, 0)
    else:
        blocks = -(-new // block)
        padded = jnp.pad(q, [(0, 0), (0, blocks * block - new), (0, 0), (0, 0), (0, 0)])
        padded = jnp.moveaxis(padded.reshape(batch, blocks, block, *q.shape[2:]), 1, 0)
        out = jax.lax.map(lambda item: attend(*item), (padded, jnp.arange(blocks) * block))
        out = jnp.moveaxis(out, 0, 1).reshape(batch, blocks * block, *q.shape[2:])[:, :new]
    return out


def differentiated_as(form, other):
    """``other``, differentiated as ``form``, which computes the same."""
    attend = jax.custom_vjp(other)
    attend.defvjp(lambda *arrays: jax.vjp(form, *arrays), lambda pullback, gradient: pullback(gradient))
    return attend
