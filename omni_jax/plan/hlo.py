"""What a compiled program does, read off its HLO text: bytes to and from main memory, multiplications, collectives.

XLA's own cost analysis is unusable for programs of loops: it counts a loop's body once, and a whole stack of weights
wherever one layer is sliced from it. Here

- an instruction counts what it reads and writes in main memory, each operand once; arrays in a memory of their own (a
  TPU's vector memory, S(1)) count nothing, but the copies into it do;
- a loop counts as often as it runs, by its condition; if that is unknown at compile time, as often as the caller says;
- of branches the most expensive one counts, except those marked as rarely taken (``jax.named_scope(RARELY)``);
- a slice counts what it takes, also inside a fusion; an update in place what it writes;
- a grouped product that is not HLO (Mosaic's) counts the groups and rows that the caller says, an attention kernel what
  its shapes say (``kernel_costs``); any other kernel counts its operands and results, and the operations it declares.

Operations are those of products and sums, two for each multiplication that is added to another, whether the compiler
keeps a product whole (dot, convolution) or splits it (multiply, reduce). They are sums, not speeds: they do not show
what overlaps or waits.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from omni_jax.nn.expert_parallel import RARELY
from omni_jax.plan.kernel_costs import attention

BITS = {"pred": 8, "bf16": 16, "token": 0}
# Instructions that only name existing data, and second halves of those that were counted at their start.
FREE = re.compile(
    r"parameter|constant|iota|tuple|get-tuple-element|bitcast|after-all|opt-barrier|partition-id|replica-id|.*-done|async-update"
)
# Custom calls that are marks and move nothing.
MARKS = re.compile(r"AllocateBuffer|AssumeGatherIndicesInBound|ConcatBitcast|GatherScatterIndices\w*|PrepareAsync\w*")
TAKES = ("dynamic-slice", "slice", "gather", "slice-start")
PUTS = {"dynamic-update-slice": 1, "scatter": 2}  # and the index of the operand that is written
COLLECTIVE = re.compile(
    r"(all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute)(-start)?"
)
# Instructions whose results begin with an alias of their operands.
PAIRED = ("slice-start", "all-gather-start", "collective-permute-start")
CALLS = ("call", "call-start", "async-start")
HOST = re.compile(r"(infeed|outfeed|send|recv)(-done)?$")
HOST_CALL = re.compile(r"xla_(ffi_)?(python|partitioned_python)\w*callback|host_transfer=true")
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# The only attribute that is written in several lines.
METADATA = re.compile(r"kernel_metadata=\{\n(.*?)\n\}", re.DOTALL)
BRANCHES = re.compile(r"(?:computations=\{|_computation=|, )%([\w.\-]+)(?=[,}])")


@dataclass(frozen=True)
class Grouped:
    """What a grouped product over a stack of matrices does.

    Attributes:
        groups: matrices that it reads.
        rows: rows that it multiplies.
        room: size of its row buffer, as a multiple of the average number of rows.
    """

    groups: int
    rows: int
    room: int = 1


@dataclass(frozen=True)
class Collective:
    """Communication between devices: its kind, its result on one device, the result's bytes, and how often."""

    kind: str
    result: str
    bytes: int
    count: int = 1


@dataclass
class Array:
    """Type, bytes and shape of an array, and whether it is in main memory."""

    kind: str
    bytes: int
    shape: tuple[int, ...]
    main: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.kind}[{','.join(map(str, self.shape))}]"


@dataclass
class Instruction:
    """One line: results (several for a tuple), operands by name, and its attributes."""

    name: str
    results: list[Array]
    opcode: str
    operands: list[str]
    rest: str

    def attribute(self, name: str) -> str:
        found = re.search(rf'\b{name}=[%"]?([\w.\->]+)', self.rest)
        return found[1] if found else ""

    def numbers(self, name: str) -> tuple[int, ...]:
        """An attribute such as ``lhs_contracting_dims={1}``."""
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.rest)
        return tuple(int(number) for number in found[1].split(",") if number) if found else ()

    @property
    def called(self) -> str:
        """The computation that this instruction calls."""
        if self.opcode in (*CALLS, "fusion"):
            return self.attribute("to_apply") or self.attribute("calls")
        return ""


@dataclass
class Computation:
    """Instructions by name, in order."""

    lines: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""

    def users(self, name: str) -> Iterator[tuple[Instruction, int]]:
        """The users of ``name`` and the index of the operand; users of a bitcast of it count as its users."""
        for user in self.lines.values():
            if name in user.operands:
                if user.opcode == "bitcast" and user.name != self.root:
                    yield from self.users(user.name)
                else:
                    yield user, user.operands.index(name)

    def made(self, name: str) -> Instruction:
        """The instruction that produces ``name``, looking through bitcasts."""
        line = self.lines[name]
        return self.made(line.operands[0]) if line.opcode == "bitcast" else line


class HloProgram:
    """A compiled program.

    Args:
        text: ``jax.jit(...).lower(...).compile().as_text()``.
        grouped: costs of grouped products, by the shape of their operands; for other shapes they read everything.
        runs: iterations of a loop whose length is unknown at compile time.
        seen: keys that a query attends to in a kernel whose spans are unknown at compile time.
    """

    def __init__(
        self, text: str, grouped: Mapping[tuple[int, ...], Grouped] | None = None, *, runs: int = 1, seen: int = 0
    ):
        self.computations, self.entry, self.grouped, self.runs, self.seen = {}, "", grouped or {}, runs, seen
        self._known: dict[tuple[str, str], int] = {}
        current = Computation()
        for line in METADATA.sub(r"\1", re.sub(r"/\*.*?\*/", "", text)).splitlines():
            if head := HEAD.match(line):
                current = self.computations[head[2]] = Computation()
                self.entry = head[2] if head[1] else self.entry
            elif found := LINE.match(line):
                current.lines[found[2]] = _instruction(found[2], found[3])
                current.root = found[2] if found[1] else current.root

    def bytes(self, name: str = "") -> int:
        """Bytes moved by one run of a computation; by default of the whole program."""
        return self._sum("bytes", name or self.entry, self._moved)

    def flops(self, name: str = "") -> int:
        """Operations of products and sums."""
        return self._sum("flops", name or self.entry, self._operations)

    def parts(self, name: str = "") -> dict[str, int]:
        """Bytes of each instruction of a computation; of a loop, of all its runs together."""
        computation = self.computations[name or self.entry]
        return {name: self._moved(line, computation) for name, line in computation.lines.items()}

    def collectives(self, name: str = "") -> list[Collective]:
        """Each kind and size, those with most bytes in all first; a loop's count as often as it runs."""
        counts: dict[tuple[str, str, int], int] = {}
        for kind, result, size, times in self._talk(name or self.entry):
            counts[kind, result, size] = counts.get((kind, result, size), 0) + times
        found = [Collective(*key, count) for key, count in counts.items()]
        return sorted(found, key=lambda each: -each.bytes * each.count)

    def arrays(self) -> dict[str, int]:
        """Bytes of all arrays that instructions name, the largest first; not all exist, because a fusion only makes
        what it needs."""
        lines = (line for computation in self.computations.values() for line in computation.lines.values())
        found = {str(array): array.bytes for line in lines for array in line.results}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @property
    def host_transfers(self) -> int:
        """The number of places where the program communicates with its host."""
        lines = (line for computation in self.computations.values() for line in computation.lines.values())
        return sum(bool(HOST.match(line.opcode) or HOST_CALL.search(line.rest)) for line in lines)

    def trips(self, loop: Instruction) -> int:
        """How often a loop runs: the constant that its counter, from 0, is compared with; else ``runs``."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1])
        condition = self.computations[loop.attribute("condition")]
        root = condition.lines[condition.root]
        constants = [
            line for line in condition.lines.values() if line.opcode == "constant" and line.results[0].shape == ()
        ]
        inner = self.computations.get(root.attribute("calls"))
        compare = inner.lines[inner.root] if inner else root
        if compare.opcode != "compare" or compare.attribute("direction") != "LT" or len(constants) != 1:
            return self.runs
        return int(constants[0].rest)

    def _branches(self, line: Instruction) -> list[str]:
        found = BRANCHES.findall(line.rest)
        rare = [any(RARELY in each.rest for each in self.computations[name].lines.values()) for name in found]
        return [name for name, seldom in zip(found, rare, strict=True) if not seldom] or found

    def _sum(self, what: str, name: str, of: Callable[[Instruction, Computation], int]) -> int:
        if (what, name) not in self._known:
            computation = self.computations[name]
            self._known[what, name] = sum(of(line, computation) for line in computation.lines.values())
        return self._known[what, name]

    def _talk(self, name: str) -> Iterator[tuple[str, str, int, int]]:
        for line in self.computations[name].lines.values():
            if line.opcode == "while":
                times = self.trips(line)
                for kind, result, size, count in self._talk(line.attribute("body")):
                    yield kind, result, size, times * count
            elif line.opcode == "conditional":
                branches = [list(self._talk(branch)) for branch in self._branches(line)]
                yield from max(branches, key=lambda branch: sum(size * count for *_, size, count in branch))
            elif line.called:
                yield from self._talk(line.called)
            elif kind := COLLECTIVE.fullmatch(line.opcode):
                made = (
                    line.results[len(line.operands) :][: len(line.operands)] if line.opcode in PAIRED else line.results
                )
                yield kind[1], " ".join(map(str, made)), sum(array.bytes for array in made), 1

    def _operations(self, line: Instruction, computation: Computation) -> int:
        if line.opcode == "while":
            return self.trips(line) * self.flops(line.attribute("body"))
        if line.opcode == "conditional":
            return max(self.flops(branch) for branch in self._branches(line))
        if line.called:
            return self.flops(line.called)
        if line.opcode in ("multiply", "reduce") and line.results[0].kind[0] in "su":  # indices
            return 0
        if line.opcode == "multiply":
            return line.results[0].size
        if line.opcode not in ("dot", "convolution", "reduce", "custom-call"):
            return 0
        arrays = [computation.lines[name].results[0] for name in line.operands]
        if line.opcode == "reduce":
            return arrays[0].size
        if line.opcode == "dot":
            contracted = (arrays[0].shape[axis] for axis in line.numbers("lhs_contracting_dims"))
            return 2 * line.results[0].size * math.prod(contracted)
        if line.opcode == "convolution":
            return _convolved(line, arrays[0], arrays[1])
        for array in arrays:
            if found := self.grouped.get(array.shape):
                rows = min(found.rows, line.results[0].shape[0] // found.room)
                return 2 * rows * math.prod(array.shape[1:])
        if found := attention(line.name, line.rest, arrays, self.seen):
            return found.flops
        declared = re.search(r'"cost_estimate":\{"flops":"(\d+)"', line.rest)
        return int(declared[1]) if declared else 0

    def _moved(self, line: Instruction, computation: Computation) -> int:
        if FREE.fullmatch(line.opcode) or MARKS.fullmatch(line.attribute("custom_call_target")):
            return 0
        if line.opcode == "while":
            return self.trips(line) * sum(self.bytes(line.attribute(part)) for part in ("body", "condition"))
        if line.opcode == "conditional":
            return max(self.bytes(branch) for branch in self._branches(line))
        if line.opcode in CALLS and line.called:
            return self.bytes(line.called)
        arrays = [computation.lines[name].results[0] for name in line.operands]
        kernel = attention(line.name, line.rest, arrays, self.seen) if line.opcode == "custom-call" else None
        read = 0
        for at, array in enumerate(arrays):
            if array.main:
                again = kernel.passes if kernel and at in kernel.keys else 1
                read += round(again * self._taken(line, at, array))
        return read + self._put(line, computation)

    def _taken(self, line: Instruction, at: int, array: Array) -> int:
        """Bytes that an instruction reads of an operand."""
        if line.opcode in TAKES and at == 0:
            return min(array.bytes, line.results[1 if line.opcode == "slice-start" else 0].bytes)
        if line.opcode in PUTS and at == 0:
            return 0
        if line.opcode == "custom-call" and array.shape in self.grouped:
            return array.bytes // array.shape[0] * self.grouped[array.shape].groups
        if line.opcode == "fusion":
            inside = self.computations[line.attribute("calls")]
            own = next(item for item in inside.lines.values() if item.opcode == "parameter" and int(item.rest) == at)
            return min(array.bytes, sum(self._taken(user, place, array) for user, place in inside.users(own.name)))
        return array.bytes

    def _put(self, line: Instruction, computation: Computation) -> int:
        """Bytes that an instruction writes."""
        results = line.results
        if line.opcode.endswith("-start"):  # copy-start: (to, from, mark); slice-start: (from, to, mark)
            results = results[1:2] if line.opcode in PAIRED else results[:1]
        makers, homes = [line] * len(results), computation
        if line.opcode == "fusion":
            homes = self.computations[line.attribute("calls")]
            root = homes.made(homes.root)
            makers = [homes.made(name) for name in root.operands] if root.opcode == "tuple" else [root] * len(results)
        moved = 0
        for array, maker in zip(results, makers, strict=True):
            put = (
                homes.lines[maker.operands[PUTS[maker.opcode]]].results[0].bytes
                if maker.opcode in PUTS
                else array.bytes
            )
            moved += min(array.bytes, put) if array.main else 0
        return moved


def _convolved(line: Instruction, base: Array, kernel: Array) -> int:
    """Operations of a convolution; positions on padding, or between the steps of a dilated base, cost none.

    A TPU's compiler writes matrix products as convolutions, the batch as an axis whose window meets one step each.
    """
    left, right, out = re.split(r"_|->", line.attribute("dim_labels"))
    axes = [label for label in left if label.isdigit()]
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", line.rest) or ["", ""])[1]))

    def sizes(name: str, default: str) -> list[str]:
        return window.get(name, "x".join([default] * len(axes))).split("x")

    met = 1
    for number, axis in enumerate(axes):
        one = [int(sizes(name, "1")[number]) for name in ("stride", "lhs_dilate", "rhs_dilate")]
        before = int(sizes("pad", "0_0")[number].split("_")[0])
        met *= _meetings(
            base.shape[left.index(axis)],
            kernel.shape[right.index(axis)],
            line.results[0].shape[out.index(axis)],
            before,
            *one,
        )
    rows, features = line.results[0].shape[out.index("b")], line.results[0].shape[out.index("f")]
    return 2 * met * rows * features * kernel.shape[right.index("i")]


@cache
def _meetings(base: int, window: int, out: int, before: int, stride: int, base_dilate: int, dilate: int) -> int:
    """Pairs of an output step and a window step that fall on a step of the base."""
    count = 0
    for step in range(window):
        # Outputs o with 0 <= o * stride + offset <= (base - 1) * base_dilate, the sum a multiple of base_dilate.
        offset, period = step * dilate - before, base_dilate // math.gcd(stride, base_dilate)
        first = max(0, -(offset // stride))
        last = min(out - 1, ((base - 1) * base_dilate - offset) // stride)
        start = next((at for at in range(first, first + period) if (at * stride + offset) % base_dilate == 0), last + 1)
        count += max(0, (last - start) // period + 1)
    return count


def _closing(text: str, start: int) -> int:
    """The index where the bracket opened at ``start`` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    raise ValueError(f"HLO: expected a closing bracket in {text[:80]!r}")


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    start = text.index("(", end)
    close = _closing(text, start)
    inside = text[start + 1 : close]
    results = [_array(*found) for found in ARRAY.findall(text[:end])]
    opcode = text[end:start].strip()
    plain = opcode in ("constant", "parameter")
    return Instruction(
        name, results, opcode, [] if plain else re.findall(r"%([\w.\-]+)", inside), inside if plain else text[close:]
    )


def _array(kind: str, sides: str, layout: str) -> Array:
    shape = tuple(int(side) for side in sides.split(",") if side)
    bits = BITS.get(kind) or int((re.search(r"\d+", kind) or ["0"])[0])
    return Array(kind, math.prod(shape) * bits // 8, shape, "S(" not in layout)
