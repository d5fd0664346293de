"""Weights in pieces, so that a checkpoint larger than the memory can be read, written and compared.

A piece is one layer of a stacked leaf, or the whole of a leaf that is not stacked. Pieces are read and written in
groups: for each part first the leaves that are not stacked, then all stacked ones layer by layer. A WeightSource holds
weights: a Hugging Face folder, a converted one, or arrays in memory. Its groups are read in their order.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from omni_jax.models import parts
from omni_jax.weights import shards
from omni_jax.weights.safetensors_reader import Safetensors
from omni_jax.weights.shards import Block
from omni_jax.weights.table import Binding, report

# The blocks of each leaf's pieces that are to be read, by path.
Wanted = Mapping[str, Sequence[Block]]
Progress = Callable[[int, int, str], object]

# Stacked leaves up to this size are handled whole, which needs fewer compiled programs. In full-size models, no layer's
# tensors are smaller.
SMALL_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """A parameter.

    Attributes:
        shape: shape of the leaf, all layers included.
        stacked: whether the first axis counts layers.
        dtype: dtype; some leaves are float32 in any model.
        axes: logical names of a piece's axes, where they are known.
    """

    shape: tuple[int, ...]
    stacked: bool
    dtype: np.dtype
    axes: tuple[str | None, ...] = ()

    @property
    def piece(self) -> tuple[int, ...]:
        return self.shape[1:] if self.stacked else self.shape

    @property
    def size(self) -> int:
        """Size of the leaf in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def piece_size(self) -> int:
        """Size of a piece in bytes."""
        return math.prod(self.piece) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Group:
    """Pieces that are read and written together: the leaves ``paths`` of a part, whole or one layer of each."""

    part: str
    layer: int | None
    paths: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.part if self.layer is None else f"{self.part}.{self.layer:03d}"


class WeightSource(Protocol):
    """Anything that holds weights.

    Attributes:
        dtype: dtype of the parameters whose dtype may be chosen.
    """

    @property
    def dtype(self) -> np.dtype: ...

    def read(self, group: Group) -> Iterator[tuple[str, np.ndarray]]:
        """The group's pieces, one after another. The caller casts them to the dtype that it needs."""
        ...


class BlockSource(WeightSource, Protocol):
    """A source on a disk, which can read single blocks."""

    def blocks(self, group: Group, wanted: Wanted) -> Iterator[tuple[str, list[np.ndarray]]]:
        """The wanted blocks of each of the group's pieces, in their order and in their leaf's dtype."""
        ...


def leaves(tree: Mapping[str, nnx.Module]) -> dict[str, Leaf]:
    """The leaves of parts by path. Axes are named from the right, so a leaf with an axis more than names is stacked."""
    axes, found = parts.axes(tree), {}
    for path, leaf in parts.leaves(tree).items():
        stacked = len(leaf.shape) > len(axes[path])
        found[path] = Leaf(shape=tuple(leaf.shape), stacked=stacked, dtype=np.dtype(leaf.dtype), axes=axes[path])
    return found


def groups(found: Mapping[str, Leaf]) -> list[Group]:
    """All pieces in the order of reading and writing: parts that only speech needs come last."""
    by_part: dict[str, list[str]] = {}
    for path in found:
        by_part.setdefault(path.split(".")[0], []).append(path)
    result = []
    for part in sorted(by_part, key=lambda part: (parts.is_spoken(part), part)):
        paths = by_part[part]
        result.append(Group(part=part, layer=None, paths=tuple(path for path in paths if not found[path].stacked)))
        depth = max((found[path].shape[0] for path in paths if found[path].stacked), default=0)
        for layer in range(depth):
            chosen = tuple(path for path in paths if found[path].stacked and layer < found[path].shape[0])
            result.append(Group(part=part, layer=layer, paths=chosen))
    return [group for group in result if group.paths]


def check_leaves(wanted: Mapping[str, Leaf], held: Mapping[str, Leaf], what: str) -> None:
    """Compares leaves with the wanted ones, except for their dtypes.

    Raises:
        ValueError: leaves are missing, unknown or of another shape; all faults in one report.
    """
    faults = [(path, "missing") for path in wanted if path not in held]
    faults += [(path, "unknown") for path in held if path not in wanted]
    for path, leaf in wanted.items():
        if path in held and (leaf.shape, leaf.stacked) != (held[path].shape, held[path].stacked):
            faults.append((path, f"expected shape {list(leaf.shape)}, got {list(held[path].shape)}"))
    if faults:
        raise ValueError(f"{what}: not the model that config.json describes ({len(faults)} faults): {report(faults)}")


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Host memory, aligned so that the CPU backend uses it as an array without a copy."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


@dataclass(frozen=True, kw_only=True)
class Published:
    """WeightSource: tensors in the published layout, joined into leaves by the table.

    Attributes:
        tensors: the folder's tensors.
        bindings: the tensors of each leaf, by path.
        names: the folder's name of each published name.
        leaves: shapes and dtypes of the leaves, by path; tensors of other float dtypes are cast.
        dtype: as in ``WeightSource``.
    """

    tensors: Safetensors
    bindings: Mapping[str, Binding]
    names: Mapping[str, str]
    leaves: Mapping[str, Leaf]
    dtype: np.dtype

    def read(self, group: Group) -> Iterator[tuple[str, np.ndarray]]:
        wanted = {path: [shards.whole(self.leaves[path].piece)] for path in group.paths}
        for path, found in self.blocks(group, wanted):
            yield path, found.pop()

    def blocks(self, group: Group, wanted: Wanted) -> Iterator[tuple[str, list[np.ndarray]]]:
        with self.tensors:
            for path in group.paths:
                yield path, [self._block(path, group.layer, block) for block in wanted[path]]

    def _block(self, path: str, layer: int | None, block: Block) -> np.ndarray:
        binding, leaf = self.bindings[path], self.leaves[path]
        spans = binding.spans(block)
        if spans is None:
            # Devices divide a joined axis so that the block is no rectangle: the whole piece is read and cut.
            piece = self._block(path, layer, shards.whole(leaf.piece))
            return piece[shards.slices(block)].copy()
        values = empty(shards.shape_of(block), leaf.dtype)
        for name, index, runs in binding.within(layer, spans):
            binding.put(values, index, self.tensors.read(self.names[name], runs), spans)
        return values


@dataclass(frozen=True)
class InMemory:
    """WeightSource: parts as JAX or NumPy arrays.

    The pieces of an array on devices of several processes are JAX arrays, because no process holds them whole. A
    decoder's layers may be arrays of their own (``memory_layout.to_platform_layout``), which then are the pieces.
    """

    parts: Mapping[str, nnx.Module]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(jax.tree.leaves(self.parts.get("thinker", self.parts))[0].dtype)

    def read(self, group: Group) -> Iterator[tuple[str, Any]]:
        held = parts.leaves({group.part: self.parts[group.part]})
        for path in group.paths:
            own = path.replace(".decoder.layers.", f".decoder.layers.{group.layer}.", 1)
            if own != path and own in held:
                yield path, np.asarray(held[own])
                continue
            array = held[path]
            if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
                yield path, array if group.layer is None else _layer(array, group.layer)
            elif group.layer is None:
                yield path, np.asarray(array)
            elif isinstance(array, np.ndarray) or array.nbytes <= SMALL_BYTES:
                yield path, np.asarray(array)[group.layer]
            else:
                yield path, np.asarray(_layer(array, group.layer))


def drain(
    found: Mapping[str, Leaf], source: WeightSource, progress: Progress | None
) -> Iterator[tuple[Group, str, np.ndarray]]:
    """Every piece of a source, in order and in its leaf's dtype.

    After each piece, ``progress`` is called with (bytes done, bytes in all, path).
    """
    total, done = sum(leaf.size for leaf in found.values()), 0
    for group in groups(found):
        for path, piece in source.read(group):
            yield group, path, piece.astype(found[path].dtype, copy=False)
            done += found[path].piece_size
            if progress is not None:
                progress(done, total, path)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The result of comparing one piece.

    Attributes:
        path: path of its leaf.
        layer: its layer; None for a leaf that is not stacked.
        values: number of values.
        differing: number of values that differ.
        largest: largest absolute difference; NaN if a difference is NaN.
    """

    path: str
    layer: int | None
    values: int
    differing: int
    largest: float


def compare(left: Published, right: WeightSource, *, progress: Progress | None = None) -> Iterator[Difference]:
    """Compares two sources of the same leaves, piece by piece and bit by bit."""
    pairs = drain(left.leaves, left, progress)
    for group in groups(left.leaves):
        for path, theirs in right.read(group):
            ours = next(pairs)[2]
            differing = _bits(ours) != _bits(theirs)
            gap = np.abs(ours[differing].astype(np.float64) - theirs[differing].astype(np.float64)).max(initial=0.0)
            yield Difference(
                path=path, layer=group.layer, values=ours.size, differing=int(differing.sum()), largest=float(gap)
            )
    next(pairs, None)  # so that the last piece's progress is reported


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")


@jax.jit
def _layer(array: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(array, layer, 0, keepdims=False)
