"""From pieces on the host to arrays on the devices, with never more than one layer's pieces beside them."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from omni_jax.models import parts
from omni_jax.weights import pieces

Shardings = Mapping[str, Sharding]


def assemble(
    source: pieces.Source,
    abstract: Mapping[str, nnx.Module],
    *,
    shardings: Shardings | None = None,
    progress: pieces.Progress | None = None,
) -> dict[str, nnx.Module]:
    """The parts with a source's weights.

    A large stacked leaf is allocated on its devices at once and filled layer by layer in place (the buffer is
    donated), so the peak is the weights and one layer. A small one is stacked on the host first, which spares
    compiling a program for its shape; so is each where the host's memory is the device's, which takes it over.

    Args:
        source: holds a piece for every leaf.
        abstract: the parts with ShapeDtypeStructs for leaves.
        shardings: by path; a leaf that is not there goes to the default device.
        progress: called with (bytes done, bytes in all, path) after each piece.
    """
    wanted, found = parts.leaves(abstract), pieces.leaves(abstract)
    values: dict[str, jax.Array] = {}
    stacks: dict[str, np.ndarray] = {}
    shared = jax.default_backend() == "cpu"
    for group, path, piece in pieces.drain(found, source, progress):
        leaf, sharding = wanted[path], (shardings or {}).get(path)
        if group.layer is None:
            values[path] = put(piece, sharding)
        elif found[path].size <= pieces.SMALL_BYTES or (shared and sharding is None):
            if group.layer == 0:
                stacks[path] = pieces.empty(leaf.shape, leaf.dtype)
            stacks[path][group.layer] = piece
            if group.layer == leaf.shape[0] - 1:
                values[path] = put(stacks.pop(path), sharding)
        else:
            zeros, insert = _programs(sharding)
            if group.layer == 0:
                values[path] = zeros(leaf.shape, leaf.dtype)
            values[path] = insert(values[path], put(piece, _of_layer(sharding)), group.layer)
            # Without this, reading would run ahead of the device and pile up layers on the host.
            jax.block_until_ready(values[path])
    return dict(parts.replace(dict(abstract), values))


def put(array: np.ndarray, sharding: Sharding | None) -> jax.Array:
    """Places a host array; in a job of several hosts, each gives its own devices their shards."""
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _of_layer(sharding: Sharding | None) -> Sharding | None:
    """How one layer lies where the stack lies as ``sharding`` says."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]), memory_kind=sharding.memory_kind)
    return sharding


@cache
def _programs(sharding: Sharding | None) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """Allocates a stack; puts a layer into it in place."""

    @partial(jax.jit, static_argnums=(0, 1), out_shardings=sharding)
    def zeros(shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.zeros(shape, dtype)

    @partial(jax.jit, donate_argnums=0, out_shardings=sharding)
    def insert(stack: jax.Array, layer: jax.Array, index: int) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stack, layer, index, 0)

    return zeros, insert
