"""Causal attention of long prompts on a TPU: Pallas kernels that hold no scores in main memory.

JAX's splash attention (FlashAttention, arXiv:2205.14135, over the blocks that a mask leaves) needs its mask at compile
time. So one causal kernel computes the new tokens' attention to themselves, and another their attention to all cache
slots up to a row's length. The two results are joined by the logarithms of their softmax's sums.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from omni_jax.parallel.sharding import mesh_axes

# How JAX names the kernels in a compiled program, by which plan/kernel_costs.py knows them; and what it adds to the
# name of one with segment ids, as here over a cache.
KERNEL, SEGMENTED = "splash_mqa_fwd", "segmented"
# New tokens from which on a kernel is worth its padding. Shorter calls are steps or short turns.
MIN_SPLASH_TOKENS = 512
# Queries and keys of a block: the largest of these that divides their number.
BLOCKS = (512, 256, 128)
WIDTHS = (64, 128)

CachedPast = tuple[Float[Array, "B K S H"], Float[Array, "B K S H"], Int[Array, "B"]]


def fits(new: int, slots: int, width: int) -> bool:
    """Whether there are kernels for so many new tokens over so many cache slots, with heads of this width."""
    return new >= MIN_SPLASH_TOKENS and not new % BLOCKS[-1] and not slots % BLOCKS[-1] and width in WIDTHS


def attend(
    q: Float[Array, "B T K G H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    past: CachedPast | None = None,
    *,
    mesh: AbstractMesh | None = None,
    interpret: bool = False,
) -> Float[Array, "B T K G H"]:
    """As ``causal_attention.attend_causal`` without a window. On a mesh, each device computes its own rows and heads.

    Args:
        interpret: runs the kernels on any platform, for tests.
    """

    def run(q, k, v, past):
        return _attend(q, k, v, past, interpret)

    if mesh is None:
        return run(q, k, v, past)
    rows, heads = mesh_axes("batch", q.shape[0], mesh), mesh_axes("kv_heads", q.shape[2], mesh)
    # A lone row leaves the axis of rows to the query heads of each key head.
    groups = mesh_axes("group", q.shape[3], mesh, without=rows)
    of_q, of_new, of_past = (PartitionSpec(rows, *axes) for axes in ((None, heads, groups), (None, heads), (heads,)))
    specs = (of_q, of_new, of_new, None if past is None else (of_past, of_past, PartitionSpec(rows)))
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=of_q, check_vma=False)(q, k, v, past)


def _attend(
    q: Float[Array, "B T K G H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    past: CachedPast | None,
    interpret: bool,
) -> Float[Array, "B T K G H"]:
    width = q.shape[-1]
    # The kernels take no scale, so the queries are scaled beforehand. For heads of 128, whose scale is no power of two,
    # this rounds bfloat16 queries once more than plain attention does. With standard normal queries the error is no
    # larger than there; with four times larger ones it is 1.6 times that, or 1.08 times where rope has rounded before.
    # (Float32 queries would cost more, and a TPU's product rounds them by default.)
    q_BKGTH = (jnp.transpose(q, (0, 2, 3, 1, 4)).astype(jnp.float32) * width**-0.5).astype(q.dtype)
    k_BKTH, v_BKTH = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    if past is None:
        out = _kernel(q_BKGTH, k_BKTH, masks.CausalMask, interpret)(q_BKGTH, k_BKTH, v_BKTH, None)
    else:
        out = _joined(q_BKGTH, k_BKTH, v_BKTH, past, interpret)
    return jnp.transpose(out, (0, 3, 1, 2, 4)).astype(v.dtype)


def _joined(
    q: Float[Array, "B K G T H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
    past: CachedPast,
    interpret: bool,
) -> Float[Array, "B K G T H"]:
    """Attention to the new tokens and to the cache, each weighted by its share of the softmax's sum."""
    past_k, past_v, length = past
    new, slots = q.shape[3], past_k.shape[2]
    ids = splash.SegmentIds(
        jnp.ones((q.shape[0], new), jnp.int32), (jnp.arange(slots)[None] < length[:, None]).astype(jnp.int32)
    )
    own, (own_sum,) = _kernel(q, k, masks.CausalMask, interpret, sums=True)(q, k, v, None)
    others, (others_sum,) = _kernel(q, past_k, masks.FullMask, interpret, sums=True)(q, past_k, past_v, ids)
    # A row whose cache is empty sees no slot: the kernel's output may be NaN there, which no weight would remove.
    others = jnp.where((length > 0)[:, None, None, None, None], others, 0)
    others_sum = jnp.where((length > 0)[:, None, None, None], others_sum, -jnp.inf)
    total = jnp.logaddexp(own_sum, others_sum)
    return own * jnp.exp(own_sum - total)[..., None] + others * jnp.exp(others_sum - total)[..., None]


def _kernel(q, k, mask, interpret: bool, *, sums: bool = False) -> Callable[..., Any]:
    """A kernel mapped over rows and key heads; all query heads of a key head share its keys."""
    groups, new, slots = q.shape[2], q.shape[3], k.shape[2]
    rows, columns = (next(size for size in BLOCKS if not length % size) for length in (new, slots))
    sizes = splash.BlockSizes(
        block_q=rows, block_kv=columns, block_kv_compute=columns, block_q_dkv=rows, block_kv_dkv=columns,
        block_kv_dkv_compute=columns, block_q_dq=rows, block_kv_dq=columns,
    )  # fmt: skip
    kernel = splash.make_splash_mqa(
        masks.MultiHeadMask([mask((new, slots)) for _ in range(groups)]), block_sizes=sizes, save_residuals=sums,
        head_shards=1, q_seq_shards=1, interpret=interpret,
    )  # fmt: skip
    # Products of bfloat16 are exact in one pass, and the compiler has no kernel that computes them in several.
    exact = q.dtype == jnp.bfloat16

    def heads(q, k, v, ids):
        with jax.default_matmul_precision("default") if exact else nullcontext():
            return jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=ids))(q, k, v)

    return jax.vmap(heads)
