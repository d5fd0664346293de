"""Blocks: rectangles of a piece, each the shard of one device.

A host reads and sends only the blocks of its own devices. A block that several of them hold is read once.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

Span = tuple[int, int]  # first, and one past the last
Block = tuple[Span, ...]  # a span of each axis


def whole(shape: Sequence[int]) -> Block:
    """The block that covers the whole array."""
    return tuple((0, size) for size in shape)


def shape_of(block: Block) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in block)


def slices(block: Block, origin: Block | None = None) -> tuple[slice, ...]:
    """The block as an index into an array that begins where the block ``origin`` does."""
    starts = [start for start, _ in origin or ((0, 0),) * len(block)]
    return tuple(slice(start - zero, stop - zero) for (start, stop), zero in zip(block, starts, strict=True))


def from_index(index: Sequence[slice], shape: Sequence[int]) -> Block:
    """The block of an index in JAX's form, where None stands for an end of the axis."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def held(sharding: Sharding | None, shape: Sequence[int]) -> list[Block]:
    """The distinct blocks of an array that this process's devices hold. Without a sharding, one device holds it all."""
    if sharding is None:
        return [whole(shape)]
    indices = sharding.addressable_devices_indices_map(tuple(shape)).values()
    return list(dict.fromkeys(from_index(index or (slice(None),) * len(shape), shape) for index in indices))


def of_layer(sharding: Sharding | None) -> Sharding | None:
    """The sharding of one layer of a stack with this sharding."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]), memory_kind=sharding.memory_kind)
    return sharding


def put(
    found: Mapping[Block, np.ndarray], shape: Sequence[int], sharding: Sharding | None, *, stacked: bool = False
) -> jax.Array:
    """An array on its devices, from the blocks of this process's devices.

    Args:
        found: a host array for each block of ``held``.
        shape: shape of the whole array.
        sharding: sharding of the whole array; None for the default device.
        stacked: whether the blocks are those of one layer and the arrays hold all layers of them.
    """
    arrays = list(found.values())
    if sharding is None:
        return jax.device_put(arrays[0])

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or (slice(None),) * len(shape)
        if stacked:
            return found[from_index(index[1:], shape[1:])][index[0]]
        return found[from_index(index, shape)]

    return jax.make_array_from_callback(tuple(shape), sharding, part, dtype=arrays[0].dtype)


def apart(sizes: Sequence[int], span: Span) -> tuple[Span, ...] | None:
    """A span of joined axes as a span of each of them; None where it is no rectangle of them."""
    spans: list[Span] = []
    start, stop = span
    for axis in range(len(sizes)):
        inner = math.prod(sizes[axis + 1 :])
        if start % inner == 0 and stop % inner == 0:
            return (*spans, (start // inner, stop // inner), *whole(sizes[axis + 1 :]))
        row = start // inner
        if (stop - 1) // inner != row:
            return None
        spans.append((row, row + 1))
        start, stop = start - row * inner, stop - row * inner
    return tuple(spans)


def runs(sizes: Sequence[int], spans: Sequence[Span]) -> tuple[Span, ...]:
    """A rectangle of joined axes as spans of the joined axis, in their order."""
    found = [(0, 1)]
    for size, (start, stop) in zip(sizes, spans, strict=True):
        if stop - start == size:
            found = [(first * size, last * size) for first, last in found]
        else:
            found = [(row * size + start, row * size + stop) for first, last in found for row in range(first, last)]
    return tuple(found)


def gathered(axes: Sequence[Sequence[Span]]) -> Iterator[tuple[Block, Block]]:
    """Rectangles that some spans of each axis select: each one's block in the array and in the selection."""
    places = []
    for spans in axes:
        ends = np.cumsum([stop - start for start, stop in spans]).tolist()
        places.append([(span, (end - (span[1] - span[0]), end)) for span, end in zip(spans, ends, strict=True)])
    for chosen in product(*places):
        yield tuple(source for source, _ in chosen), tuple(target for _, target in chosen)
