"""Attention inside spans on a TPU: a Pallas kernel that multiplies only the keys that a block of queries sees.

Splash attention (nn/kernels/splash_attention.py) skips blocks by a mask that is fixed at compile time. The bounds of
frames and windows are known only at run time. So the kernel reads the bounds of each block of queries before it begins,
and loops over the blocks of keys between them. Scores and the online softmax (arXiv:1805.02867) never leave VMEM.

Queries lie along the lanes. So a query's maximum, sum and bounds are rows, and only the keys' width is padded to 128.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from omni_jax.nn.softmax import MASKED
from omni_jax.parallel.sharding import mesh_axes

# The kernel's name in a compiled program, by which plan/kernel_costs.py knows it.
KERNEL = "attend_spans"
# Queries in a block, and keys in a block.
BLOCK = 256
# Keys of one head that are in VMEM at once: all keys of a call, unless a picture has more.
PANEL = 4096
# The lower bound of a query's maximum: exp of the difference of MASKED and this is zero.
LOWEST_SCORE = -1e29


def attend(
    q: Float[Array, "T N H"],
    k: Float[Array, "T N H"],
    v: Float[Array, "T N H"],
    first: Int[Array, "T"],
    last: Int[Array, "T"],
    *,
    mesh: AbstractMesh | None = None,
    interpret: bool = False,
) -> Float[Array, "T N H"]:
    """As ``nn.packed_attention.attend_spans``. On a mesh, each device computes its own heads.

    Args:
        interpret: runs the kernel on any platform, for tests.
    """
    run = partial(_attend, interpret=interpret)
    if mesh is None:
        return run(q, k, v, first, last)
    heads = PartitionSpec(None, mesh_axes("heads", q.shape[1], mesh) or None)
    specs = (heads, heads, heads, PartitionSpec(), PartitionSpec())
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)(q, k, v, first, last)


def bounds(ids: Int[Array, "T"]) -> tuple[Int[Array, "T"], Int[Array, "T"]]:
    """Where each token's segment begins and ends; segments are contiguous. A negative id gets an empty span."""
    at = jnp.arange(len(ids))
    begins = jnp.concatenate([jnp.ones(1, bool), ids[1:] != ids[:-1]])
    first = jax.lax.cummax(jnp.where(begins, at, 0))
    last = jax.lax.cummin(jnp.where(jnp.roll(begins, -1), at + 1, len(ids)), reverse=True)
    return first, jnp.where(ids < 0, first, last)


def _attend(
    q: Float[Array, "T N H"],
    k: Float[Array, "T N H"],
    v: Float[Array, "T N H"],
    first: Int[Array, "T"],
    last: Int[Array, "T"],
    interpret: bool,
) -> Float[Array, "T N H"]:
    length, heads, width = q.shape
    blocks = -(-length // BLOCK)
    panels = -(-blocks * BLOCK // PANEL)
    each = -(-blocks // panels)  # blocks of a panel
    panel, padded = each * BLOCK, each * BLOCK * panels
    # A block's bounds are its lowest first and its highest last. Empty spans get values that do not affect them.
    empty, rest = first >= last, (0, padded - length)
    low = jnp.pad(jnp.where(empty, padded, first), rest, constant_values=padded).astype(jnp.int32)
    high = jnp.pad(jnp.where(empty, 0, last), rest).astype(jnp.int32)
    begin, end = jnp.min(low.reshape(-1, BLOCK), axis=1) // BLOCK, -(-jnp.max(high.reshape(-1, BLOCK), axis=1) // BLOCK)
    q, k, v = (jnp.pad(x, [rest, (0, 0), (0, 0)]) for x in (q, k, v))

    def needed(block, part, begin, end):
        """The panel to load: clipped to those that some query of the block sees, so that no other is fetched."""
        last = jax.lax.div(jnp.maximum(end[block] - 1, 0), each)
        return jnp.minimum(jnp.maximum(part, jax.lax.div(begin[block], each)), last)

    queries = pl.BlockSpec((1, width, BLOCK), lambda head, block, *_: (head, 0, block))
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(heads, padded // BLOCK, panels),
        in_specs=[
            pl.BlockSpec((2, BLOCK), lambda head, block, *_: (0, block)),
            queries,
            pl.BlockSpec((1, panel, width), lambda head, block, *at: (head, needed(block, *at), 0)),
            pl.BlockSpec((1, width, panel), lambda head, block, *at: (head, 0, needed(block, *at))),
        ],
        out_specs=queries,
        scratch_shapes=[pltpu.VMEM((rows, BLOCK), jnp.float32) for rows in (width, 1, 1)],
    )
    out = pl.pallas_call(
        partial(_kernel, each=each, scale=width**-0.5),
        out_shape=jax.ShapeDtypeStruct((heads, width, padded), v.dtype),
        grid_spec=grid,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        name=KERNEL,
        interpret=interpret,
    )(
        begin,
        end,
        jnp.stack([low, high]),
        jnp.transpose(q, (1, 2, 0)),
        jnp.swapaxes(k, 0, 1),
        jnp.transpose(v, (1, 2, 0)),
    )
    return jnp.transpose(out, (2, 0, 1))[:length]


def _kernel(begin, end, ends, q, k, v, out, sums, most, total, *, each: int, scale: float):
    """Attends one head's block of queries to one panel of keys; scores are [keys, queries]."""
    block, part = pl.program_id(1), pl.program_id(2)
    start = part * each
    # Products of bfloat16 are exact in one pass, and the compiler has no kernel that computes them in several.
    dot = partial(
        jnp.dot,
        precision=jax.lax.Precision.DEFAULT if q.dtype == jnp.bfloat16 else None,
        preferred_element_type=jnp.float32,
    )

    @pl.when(part == 0)
    def _():
        sums[...] = jnp.zeros_like(sums)
        most[...] = jnp.full_like(most, LOWEST_SCORE)
        total[...] = jnp.zeros_like(total)

    def step(number, _):
        at = pl.multiple_of(number * BLOCK, BLOCK)
        keys, values = k[0, pl.ds(at, BLOCK), :], v[0, :, pl.ds(at, BLOCK)]
        scores = dot(keys, q[0]) * scale
        seen = start * BLOCK + at + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        scores = jnp.where((seen >= ends[0:1]) & (seen < ends[1:2]), scores, MASKED)
        grown = jnp.maximum(most[...], jnp.max(scores, axis=0, keepdims=True))
        weights, kept = jnp.exp(scores - grown), jnp.exp(most[...] - grown)
        most[...] = grown
        total[...] = total[...] * kept + jnp.sum(weights, axis=0, keepdims=True)
        sums[...] = sums[...] * kept + dot(values, weights.astype(values.dtype))

    jax.lax.fori_loop(jnp.maximum(begin[block] - start, 0), jnp.minimum(end[block] - start, each), step, None)

    @pl.when(part == pl.num_programs(2) - 1)
    def _():
        out[0] = (sums[...] / jnp.maximum(total[...], 1e-30)).astype(out.dtype)
