"""Expert parallelism: tokens go to the devices that hold their experts, and the results come back.

A few tokens are computed on every device, each with its own experts, and the results are summed over the devices. Many
tokens are sharded over the devices, and each device sends its own to those that hold their experts, all to all (as in
GShard, arXiv:2006.16668, but without a capacity: nothing is dropped).
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from omni_jax.nn import grouped_matmul
from omni_jax.nn.grouped_matmul import Chosen, Kernels, Weights
from omni_jax.parallel.sharding import AXES

# Tokens a device from which on they are exchanged. With fewer, most of the buffers would be room for the worst case.
MIN_EXCHANGED_TOKENS = 128
# Room of a device in the usual case, as a multiple of its mean load.
EVEN = 2
# The named scope of branches that are hardly ever taken: plan/hlo.py counts the others.
RARELY = "rarely"


def mixture(
    x: Float[Array, "T D"],
    chosen: Chosen,
    weights: Weights,
    kernels: Kernels,
    layer: Int[Array, ""],
    *,
    mesh: AbstractMesh,
    axes: tuple[str, ...],
) -> Float[Array, "T D"]:
    """As ``moe.mixture``, for experts that are sharded over ``axes`` of a mesh."""
    devices, held = math.prod(mesh.shape[axis] for axis in axes), PartitionSpec(None, axes)
    spread = len(x) >= MIN_EXCHANGED_TOKENS * devices and not len(x) % (devices * -(-devices // EVEN))
    # Rows of a batch are sharded over the first axis already. In this order of axes they need not move.
    tokens = PartitionSpec(tuple(axis for axis in AXES if axis in axes)) if spread else PartitionSpec()
    run = partial(_exchanged if spread else _added, axes=axes)
    # Results differ between devices until they are summed; the checker (check_vma) cannot see that through the kernels.
    shared = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(tokens, tokens, tokens, (held, held), PartitionSpec()),
        out_specs=tokens,
        check_vma=False,
    )
    return shared(x, chosen, weights, kernels, layer)


def _added(
    x: Float[Array, "T D"], chosen: Chosen, weights: Weights, kernels: Kernels, layer: Int[Array, ""], *, axes
) -> Float[Array, "T D"]:
    count = kernels[0].shape[1]
    own = chosen - jax.lax.axis_index(axes) * count
    own = jnp.where((own >= 0) & (own < count), own, count)
    return jax.lax.psum(grouped_matmul.mixture(x, own, weights, kernels, layer), axes)


def _exchanged(
    x: Float[Array, "T D"], chosen: Chosen, weights: Weights, kernels: Kernels, layer: Int[Array, ""], *, axes
) -> Float[Array, "T D"]:
    """Exchanges tokens with room for EVEN times a device's mean load.

    In the worst case one device needs room for all slots, but such buffers would be mostly empty, and written and read
    all the same. When the load is less even than EVEN allows, the tokens are exchanged in several parts.
    """
    devices, count = jax.lax.axis_size(axes), kernels[0].shape[1]
    parts, room = -(-devices // EVEN), min(EVEN, devices) * chosen.size
    exchange = partial(_exchange, kernels=kernels, layer=layer, room=room, axes=axes)

    def in_parts(*tokens):
        split = [leaf.reshape(parts, -1, leaf.shape[1]) for leaf in tokens]
        with jax.named_scope(RARELY):
            return jax.lax.map(lambda part: exchange(*part), split).reshape(x.shape)

    loads = jax.lax.psum(jnp.bincount(chosen.reshape(-1) // count, length=devices), axes)
    return jax.lax.cond(jnp.max(loads) <= room, exchange, in_parts, x, chosen, weights)


def _exchange(
    x: Float[Array, "T D"],
    chosen: Chosen,
    weights: Weights,
    *,
    kernels: Kernels,
    layer: Int[Array, ""],
    room: int,
    axes,
) -> Float[Array, "T D"]:
    devices, count = jax.lax.axis_size(axes), kernels[0].shape[1]
    # Devices hold experts in order, so slots (t * R + r) sorted by expert are also sorted by receiver.
    order, loads = grouped_matmul.group(chosen, devices * count)
    loads = jax.lax.all_gather(loads, axes)  # [sender, expert]
    sizes = jnp.sum(loads.reshape(devices, devices, count), axis=-1)  # [sender, receiver]
    rows = _send(x[order // chosen.shape[1]], room, sizes, axes)
    # The rows of each sender arrive in the order of their experts.
    ends = jnp.cumsum(jax.lax.dynamic_slice_in_dim(loads, jax.lax.axis_index(axes) * count, count, axis=1))
    run = jnp.searchsorted(ends, jnp.arange(room), side="right", method="compare_all")
    own = jnp.where(run < len(ends), run % count, count)[:, None]
    made = grouped_matmul.mixture(rows, own, jnp.ones(own.shape, x.dtype), kernels, layer)
    y = _send(made.astype(x.dtype), chosen.size, sizes.T, axes)
    return grouped_matmul.combine(y, order, chosen, weights, devices * count)


def _send(rows: Float[Array, "S D"], room: int, sizes: Int[Array, "devices devices"], axes) -> Float[Array, "{room} D"]:
    """All to all: rows are sent in the order of receivers and arrive in the order of senders, padded with zeros.

    ``sizes`` are [sender, receiver].
    """
    starts, places, me = jnp.cumsum(sizes, 1) - sizes, jnp.cumsum(sizes, 0) - sizes, jax.lax.axis_index(axes)

    def sent(rows, starts, sizes, places):
        out = jnp.zeros((room, rows.shape[1]), rows.dtype)
        return jax.lax.ragged_all_to_all(rows, out, starts[me], sizes[me], places[me], sizes[:, me], axis_name=axes)

    def picked(rows, starts, sizes, places):
        """For a CPU, which lacks this collective: each device gathers all rows and picks its own."""
        ends = jnp.cumsum(sizes[:, me])
        sender = jnp.searchsorted(ends, jnp.arange(room), side="right")
        row = jnp.arange(room) - places[sender, me] + starts[sender, me]
        found = jax.lax.all_gather(rows, axes)[sender, row]
        return jnp.where((sender < len(ends))[:, None], found, 0)

    return jax.lax.platform_dependent(rows, starts, sizes, places, cpu=picked, default=sent)
