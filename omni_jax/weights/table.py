"""The engine of the weight tables: rows of text that map our parameters to the tensors of published checkpoints.

A row is `our path | their name | pattern`. The pattern is in einops notation, from their axes to ours:

    thinker.decoder.layers.attention.q.kernel | thinker.model.layers.{l}.self_attn.q_proj.weight | l (n h) d -> l d n h

Slots in their name are the first axes of the pattern's left side, so that one leaf of ours may join many of their
tensors:

    {l}           the number of the layer; `l` is the first axis of a leaf that stacks its layers
    {e}           any other number, counted from 0 ({l+2}: from 2)
    {p:gate,up}   the names listed
    {i}           on both sides: the number of an entry of a list in our tree ({i+1} in theirs: one more)

A line that begins with `or` is another way to store the leaf above. The way that a checkpoint uses is read; the first
way is written. Sizes come from our leaf's shape, so a row works in both directions.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from omni_jax.errors import cut, listed
from omni_jax.weights import shards
from omni_jax.weights.shards import Block, Span

Shape = tuple[int, ...]
Groups = tuple[tuple[str, ...], ...]

_SLOT = re.compile(r"\{(\w+)(?:\+(\d+))?(?::([\w,]+))?\}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table.

    Attributes:
        ours: path of our leaf, with slots.
        theirs: name of their tensors, with slots.
        left: axes of their tensors, each a group of joined names (empty for ``1``).
        right: axes of our leaf, likewise.
        alternative: whether the row is another way to store the leaf of the row above.
    """

    ours: str
    theirs: str
    left: Groups
    right: Groups
    alternative: bool = False

    @property
    def stacked(self) -> bool:
        return self.right[0] == ("l",)


@dataclass(frozen=True, kw_only=True)
class Binding:
    """A row applied to its leaf: every name, shape and axis order is known.

    Attributes:
        path: path of our leaf.
        stacked: whether the leaf's first axis counts layers.
        layers: number of layers; 1 for a leaf that is not stacked.
        template: their name, a format string over the slots.
        slots: name of each slot and its text for each index, the layer's first.
        shape: shape of one tensor of theirs.
        atoms: sizes of the single axes of one piece of ours (a layer of a stacked leaf, or a whole leaf).
        order: position among the atoms of each slot (except the layer) and each single axis of their tensor.
        inner: shape of one tensor of theirs by single axes.
        ours: how many single axes each axis of a piece joins.
        theirs: how many single axes each axis of their tensor joins.
    """

    path: str
    stacked: bool
    layers: int
    template: str
    slots: tuple[tuple[str, tuple[str, ...]], ...]
    shape: Shape
    atoms: Shape
    order: Shape
    inner: Shape
    ours: Shape
    theirs: Shape

    def tensors(self, layer: int | None) -> Iterator[tuple[str, Shape]]:
        """Their tensors of one piece of ours: name, and index into the slots of ``view``."""
        fixed = {"l": self.slots[0][1][layer or 0]} if self.stacked else {}
        free = self.slots[len(fixed) :]
        for index in product(*(range(len(labels)) for _, labels in free)):
            chosen = {name: labels[i] for (name, labels), i in zip(free, index, strict=True)}
            yield self.template.format(**fixed, **chosen), index

    def names(self) -> Iterator[str]:
        """Names of all their tensors of the leaf."""
        for layer in range(self.layers):
            yield from (name for name, _ in self.tensors(layer))

    def spans(self, block: Block) -> Block | None:
        """A block of a piece as spans of single axes; None where it is no rectangle of them."""
        spans: list[Span] = []
        for sizes, span in zip(_split(self.atoms, self.ours), block, strict=True):
            found = shards.apart(sizes, span)
            if found is None:
                return None
            spans += found
        return tuple(spans)

    def within(
        self, layer: int | None, spans: Block
    ) -> Iterator[tuple[str, Shape, tuple[tuple[Span, ...], ...] | None]]:
        """The parts of their tensors that are in a block of a piece.

        Args:
            layer: the piece's layer; None for a leaf that is not stacked.
            spans: the block, by single axes.

        Returns:
            For each tensor its name, its index into the slots of ``view``, and the spans of each of its axes (None for
            all of it).
        """
        lying = [spans[place] for place in self.order]
        slots = lying[: len(lying) - len(self.inner)]
        axes = zip(_split(self.inner, self.theirs), _split(lying[len(slots) :], self.theirs), strict=True)
        runs: tuple[tuple[Span, ...], ...] | None = tuple(shards.runs(sizes, chosen) for sizes, chosen in axes)
        if runs == tuple(((0, size),) for size in self.shape):
            runs = None
        for name, index in self.tensors(layer):
            if all(start <= place < stop for place, (start, stop) in zip(index, slots, strict=True)):
                yield name, tuple(place - start for place, (start, _) in zip(index, slots, strict=True)), runs

    def view(self, piece: np.ndarray, spans: Block | None = None) -> np.ndarray:
        """A view of a C-ordered piece of ours, or of its block ``spans``, by single axes.

        The slots are its first axes; the single axes of their tensor follow.
        """
        return piece.reshape(shards.shape_of(spans) if spans else self.atoms).transpose(self.order)

    def extract(self, piece: np.ndarray, index: Shape) -> np.ndarray:
        """Their tensor out of a piece of ours."""
        return np.ascontiguousarray(self.view(piece)[index]).reshape(self.shape)

    def put(self, piece: np.ndarray, index: Shape, tensor: np.ndarray, spans: Block | None = None) -> None:
        """Writes their tensor directly into its place in a piece of ours, cast to the piece's dtype.

        Args:
            piece: the piece, or its block ``spans``.
            index: the tensor's index into the slots of ``view``.
            tensor: the tensor as it is stored, or the part of it that ``within`` names.
            spans: the block, by single axes; None for the whole piece.
        """
        target = self.view(piece, spans)[index]
        target[...] = tensor.reshape(target.shape)


def parse(text: str, ours: str = "", theirs: str = "") -> list[Row]:
    """Parses the rows of a block of a table. Empty lines and lines that begin with ``#`` are ignored.

    Args:
        text: the block.
        ours: prefix of each path of ours.
        theirs: prefix of each name of theirs.
    """
    rows: list[Row] = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        path, name, pattern = (field.strip() for field in line.split("|"))
        left, right = (_groups(side) for side in pattern.split("->"))
        alternative = path == "or"
        path = rows[-1].ours if alternative else ours + path
        row = Row(ours=path, theirs=theirs + name, left=left, right=right, alternative=alternative)
        if sorted(_flat(left)) != sorted(_flat(right)):
            raise ValueError(f"weight table: both sides of {pattern!r} ({row.ours}) must name the same axes")
        rows.append(row)
    return rows


def bind(
    rows: Sequence[Row], shapes: Mapping[str, Shape], stored: Collection[str] = ()
) -> tuple[dict[str, Binding], list[tuple[str, str]]]:
    """Finds the row of each leaf.

    Args:
        rows: the table.
        shapes: shapes of our leaves, by path.
        stored: names of the tensors in the checkpoint, which decide between several ways to store a leaf.

    Returns:
        Bindings by path, and faults as (name, what is wrong): leaves without a row or with two, tensors that two
        leaves claim.
    """
    found: dict[str, list[Binding]] = {}
    faults = []
    for row in rows:
        pattern = re.compile(re.escape(row.ours).replace(r"\{i\}", r"(?P<i>\d+)"))
        for path, shape in shapes.items():
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if found.get(path) and not row.alternative:
                faults.append((path, "two rows of the weight table fill it"))
            entry = int(match["i"]) if "{i}" in row.ours else None
            found.setdefault(path, []).append(_bind(row, path, shape, entry))
    bindings: dict[str, Binding] = {}
    owner: dict[str, str] = {}
    for path in shapes:
        if path not in found:
            faults.append((path, "no row of the weight table fills it"))
            continue
        ways = found[path]
        # max keeps the first of equals, which is the published way.
        bindings[path] = (
            max(ways, key=lambda way: sum(name in stored for name in way.names())) if len(ways) > 1 else ways[0]
        )
        for name in bindings[path].names():
            if owner.setdefault(name, path) != path:
                faults.append((name, f"claimed by both {owner[name]} and {path}"))
    return bindings, faults


def report(faults: Sequence[tuple[str, str]]) -> str:
    """Faults in one line; those that differ only in numbers are one: ``layers.[0..47].weight: missing (48 times)``."""
    joined: dict[tuple[str, str], list[tuple[int, ...]]] = {}
    for name, message in faults:
        numbers = tuple(int(number) for number in re.findall(r"(?<=\.)\d+(?=\.|$)", name))
        joined.setdefault((re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name), message), []).append(numbers)
    kinds = []
    for (template, message), numbers in joined.items():
        name = template
        for column in zip(*numbers, strict=True):
            low, high = min(column), max(column)
            name = name.replace("*", str(low) if low == high else f"[{low}..{high}]", 1)
        kinds.append(f"{name}: {message}" + (f" ({len(numbers)} times)" if len(numbers) > 1 else ""))
    return listed(cut(kind, 160) for kind in kinds)


def _groups(side: str) -> Groups:
    groups: list[tuple[str, ...]] = []
    for joined, single in re.findall(r"\(([^)]*)\)|(\S+)", side):
        groups.append(tuple(joined.split()) if joined else () if single == "1" else (single,))
    return tuple(groups)


def _split(items: Sequence[Any], counts: Sequence[int]) -> Iterator[Sequence[Any]]:
    start = 0
    for count in counts:
        yield items[start : start + count]
        start += count


def _flat(groups: Groups) -> list[str]:
    return [name for group in groups for name in group]


def _bind(row: Row, path: str, shape: Shape, entry: int | None) -> Binding:
    labels: dict[str, tuple[int, tuple[str, ...] | None]] = {}  # slot -> first number, names
    template = row.theirs
    for name, first, names in _SLOT.findall(row.theirs):
        if name == "i" and entry is not None:
            template = _SLOT.sub(lambda slot: str(entry + int(slot[2] or 0)) if slot[1] == "i" else slot[0], template)
        else:
            labels[name] = int(first or 0), tuple(names.split(",")) if names else None
    template = _SLOT.sub(r"{\1}", template)
    sizes = _sizes(row, path, shape, {name: len(names) for name, (_, names) in labels.items() if names})
    ours, theirs = _flat(row.right)[row.stacked :], row.left[len(labels) :]
    if [group for group in row.left[: len(labels)] if group] != [(name,) for name in labels]:
        raise ValueError(
            f"weight table: the slots of {row.theirs} must be the first axes of its pattern, in their order"
        )
    slots = tuple(
        (name, names or tuple(str(first + i) for i in range(sizes[name]))) for name, (first, names) in labels.items()
    )
    axes = [name for name, _ in slots[row.stacked :]] + _flat(theirs)
    return Binding(
        path=path,
        stacked=row.stacked,
        layers=sizes["l"] if row.stacked else 1,
        template=template,
        slots=slots,
        shape=tuple(math.prod(sizes[name] for name in group) for group in theirs),
        atoms=tuple(sizes[name] for name in ours),
        order=tuple(ours.index(name) for name in axes),
        inner=tuple(sizes[name] for name in _flat(theirs)),
        ours=tuple(len(group) for group in row.right[row.stacked :]),
        theirs=tuple(len(group) for group in theirs),
    )


def _sizes(row: Row, path: str, shape: Shape, known: dict[str, int]) -> dict[str, int]:
    """The size of each axis, from our leaf's shape. Of joined axes, all but one must be known from a slot's names."""
    sizes = dict(known)
    if len(shape) != len(row.right):
        raise ValueError(f"weight table: the row of {path} has {len(row.right)} axes, the leaf has {len(shape)}")
    for group, size in zip(row.right, shape, strict=True):
        unknown = [name for name in group if name not in sizes]
        rest = math.prod(sizes[name] for name in group if name in sizes)
        if len(unknown) > 1 or size % rest or (not unknown and size != rest):
            raise ValueError(f"weight table: the row of {path} does not fit a leaf of shape {list(shape)}")
        sizes |= dict.fromkeys(unknown, size // rest)
    return sizes
