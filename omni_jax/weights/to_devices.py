"""Pieces on the host to arrays on the devices, with at most one layer's pieces on the host at a time."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding

from omni_jax.errors import check_progress
from omni_jax.models import parts
from omni_jax.weights import layerwise, shards

Shardings = Mapping[str, Sharding]
Parts = TypeVar("Parts", bound=Mapping[str, nnx.Module])


def assemble(
    source: layerwise.BlockSource,
    abstract: Parts,
    *,
    shardings: Shardings | None = None,
    progress: layerwise.Progress | None = None,
) -> Parts:
    """The parts with a source's weights. In a job of several processes, each reads the blocks of its own devices.

    A large stacked leaf is allocated on its devices at once and filled layer by layer in place (the buffer is donated),
    so peak memory is the weights and one layer. A small one is stacked on the host first, which saves compiling a
    program for its shape. So is every leaf where the host's memory is the device's, because the device then takes it
    over without a copy.

    Args:
        source: holds a piece for every leaf.
        abstract: the parts with ShapeDtypeStructs for leaves.
        shardings: sharding of each leaf, by path; a leaf without one goes to the default device.
        progress: called with (bytes done, bytes in all, path) after each piece. A piece of which a process reads only a
            part counts as a whole one.
    """
    check_progress(progress)
    found, shardings = layerwise.leaves(abstract), shardings or {}
    builders = {path: _LeafBuilder(leaf, shardings.get(path)) for path, leaf in found.items()}
    wanted = {path: builder.wanted for path, builder in builders.items()}
    total, done = sum(leaf.size for leaf in found.values()), 0
    for group in layerwise.groups(found):
        for path, arrays in source.blocks(group, wanted):
            builders[path].add_blocks(group.layer, arrays)
            done += found[path].piece_size
            if progress is not None:
                progress(done, total, path)
    return parts.replace(abstract, {path: builder.value for path, builder in builders.items()})


class _LeafBuilder:
    """Builds a leaf from its pieces.

    Attributes:
        wanted: the blocks of each piece that this process must read.
        value: the leaf; complete after the last piece.
    """

    def __init__(self, leaf: layerwise.Leaf, sharding: Sharding | None):
        self._leaf, self._sharding = leaf, sharding
        self._of_piece = shards.of_layer(sharding) if leaf.stacked else sharding
        self.wanted = shards.held(self._of_piece, leaf.piece)
        shared = sharding is None and jax.default_backend() == "cpu"
        self._on_host = leaf.stacked and (leaf.size <= layerwise.SMALL_BYTES or shared)
        self._stacks: list[np.ndarray] = []
        self.value: Any = None

    def add_blocks(self, layer: int | None, arrays: list[np.ndarray]) -> None:
        """Adds the wanted blocks of one layer, or of the whole leaf. Layers must come in order."""
        leaf = self._leaf
        if layer is None:
            self.value = self._put(arrays, leaf.shape, self._sharding)
        elif self._on_host:
            if layer == 0:
                self._stacks = [layerwise.empty((leaf.shape[0], *array.shape), leaf.dtype) for array in arrays]
            for stack, array in zip(self._stacks, arrays, strict=True):
                stack[layer] = array
            if layer == leaf.shape[0] - 1:
                self.value = self._put(self._stacks, leaf.shape, self._sharding, stacked=True)
                self._stacks = []
        else:
            zeros, insert = _programs(self._sharding)
            if layer == 0:
                self.value = zeros(leaf.shape, leaf.dtype)
            self.value = insert(self.value, self._put(arrays, leaf.piece, self._of_piece), layer)
        # Without this, reading would run ahead of the device, and layers would pile up on the host.
        jax.block_until_ready(self.value)

    def _put(
        self, arrays: list[np.ndarray], shape: tuple[int, ...], sharding: Sharding | None, *, stacked: bool = False
    ) -> jax.Array:
        return shards.put(dict(zip(self.wanted, arrays, strict=True)), shape, sharding, stacked=stacked)


@cache
def _programs(sharding: Sharding | None) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """Two programs: one allocates a stack, the other writes a layer into it in place."""

    @partial(jax.jit, static_argnums=(0, 1), out_shardings=sharding)
    def zeros(shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.zeros(shape, dtype)

    @partial(jax.jit, donate_argnums=0, out_shardings=sharding)
    def insert(stack: jax.Array, layer: jax.Array, index: int) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stack, layer, index, 0)

    return zeros, insert
