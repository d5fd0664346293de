"""Masked softmax, and the online softmax of attention in blocks of keys (arXiv:1805.02867)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

# The score of a key that is not seen. Finite, so that a query that sees no key gives a finite number instead of NaN.
MASKED = -1e30


def online_softmax(
    scores: Float32[Array, "..."],
    mask: Bool[Array, "..."],
    most: Float32[Array, "..."],
    total: Float32[Array, "..."],
    *,
    axis: int,
) -> tuple[Float32[Array, "..."], Float32[Array, "..."], Float32[Array, "..."], Float32[Array, "..."]]:
    """Adds a block of keys to a softmax over the keys before it.

    Args:
        scores: of the block.
        mask: which of them count.
        most: the largest score of each query so far, MASKED at the beginning.
        total: the sum of each query's weights so far, 0 at the beginning.
        axis: of the keys.

    Returns:
        The block's weights, the factor by which earlier weights and results shrink, and the new ``most`` and ``total``.
    """
    grown = jnp.maximum(most, jnp.max(jnp.where(mask, scores, MASKED), axis=axis))
    # A query that has seen no key so far has MASKED as its maximum: its weights must not become exp(0).
    weights = jnp.where(mask, jnp.exp(scores - jnp.expand_dims(grown, axis)), 0)
    kept = jnp.exp(most - grown)
    return weights, kept, grown, total * kept + jnp.sum(weights, axis=axis)
