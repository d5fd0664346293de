"""Bytes that a compiled program moves to and from main memory, read off its HLO text.

XLA's own cost analysis is no measure of a program of loops: it counts a loop's body once, and a stack of weights whole wherever
one layer is taken of it. Here

- an instruction counts what it reads and writes in main memory, each operand once; arrays in a space of their own (a TPU's
  vector memory, S(1)) count nothing: the copies that bring them there do;
- a loop counts as often as it runs, by its condition; once where that is not known when it is compiled;
- of branches the one that moves most counts;
- a slice counts what it takes, also inside a fusion; an update in place what it puts;
- a kernel that is no HLO (Mosaic's grouped product) counts of a stack of experts as many as ``reads`` says.

A sum, not a speed: what overlaps, and what waits, is not known from it.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

BITS = {"pred": 8, "bf16": 16, "token": 0}
# Names for what is there already, and second halves of what was counted when it began.
FREE = re.compile(
    r"parameter|constant|iota|tuple|get-tuple-element|bitcast|after-all|opt-barrier|partition-id|.*-done|async-update"
)
# Custom calls that mark, and move nothing.
MARKS = re.compile(r"AllocateBuffer|AssumeGatherIndicesInBound|ConcatBitcast|GatherScatterIndices\w*|PrepareAsync\w*")
TAKES = ("dynamic-slice", "slice", "gather", "slice-start")
PUTS = {"dynamic-update-slice": 1, "scatter": 2}  # and which operand is put
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")


@dataclass
class Array:
    """Bytes and shape of an array, and whether it lies in main memory."""

    bytes: int
    shape: tuple[int, ...]
    main: bool


@dataclass
class Instruction:
    """One line: results (several of a tuple), operands by name, and the attributes behind them."""

    name: str
    results: list[Array]
    opcode: str
    operands: list[str]
    rest: str

    def attribute(self, name: str) -> str:
        found = re.search(rf'\b{name}=[%"]?([\w.\-]+)', self.rest)
        return found[1] if found else ""


@dataclass
class Computation:
    """Instructions by name, in order."""

    lines: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""

    def users(self, name: str) -> Iterator[tuple[Instruction, int]]:
        """Who reads ``name``, as which operand; a bitcast of it is it."""
        for user in self.lines.values():
            if name in user.operands:
                if user.opcode == "bitcast" and user.name != self.root:
                    yield from self.users(user.name)
                else:
                    yield user, user.operands.index(name)

    def made(self, name: str) -> Instruction:
        """The instruction that makes ``name``, behind bitcasts."""
        line = self.lines[name]
        return self.made(line.operands[0]) if line.opcode == "bitcast" else line


class Program:
    """A compiled program.

    Args:
        text: ``jax.jit(...).lower(...).compile().as_text()``.
        reads: of operands of a shape, how many entries of the first axis a kernel that is no HLO reads; else all.
    """

    def __init__(self, text: str, reads: Mapping[tuple[int, ...], int] | None = None):
        self.computations, self.entry, self.reads = {}, "", reads or {}
        self._known: dict[str, int] = {}
        current = Computation()
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            if head := HEAD.match(line):
                current = self.computations[head[2]] = Computation()
                self.entry = head[2] if head[1] else self.entry
            elif found := LINE.match(line):
                current.lines[found[2]] = _instruction(found[2], found[3])
                current.root = found[2] if found[1] else current.root

    def bytes(self, name: str = "") -> int:
        """Of one run of a computation; by default of the whole program."""
        name = name or self.entry
        if name not in self._known:
            self._known[name] = sum(self.parts(name).values())
        return self._known[name]

    def parts(self, name: str = "") -> dict[str, int]:
        """Of each instruction of a computation; of a loop all its runs together."""
        computation = self.computations[name or self.entry]
        return {name: self._moved(line, computation) for name, line in computation.lines.items()}

    def loops(self, name: str = "") -> list[Instruction]:
        """The loops of a computation itself."""
        return [line for line in self.computations[name or self.entry].lines.values() if line.opcode == "while"]

    def trips(self, loop: Instruction) -> int:
        """How often a loop runs: the constant that its counter, from zero, is compared with; 1 where there is none."""
        condition = self.computations[loop.attribute("condition")]
        root = condition.lines[condition.root]
        constants = [
            line for line in condition.lines.values() if line.opcode == "constant" and line.results[0].shape == ()
        ]
        inner = self.computations.get(root.attribute("calls"))
        compare = inner.lines[inner.root] if inner else root
        if compare.opcode != "compare" or compare.attribute("direction") != "LT" or len(constants) != 1:
            return 1
        return int(constants[0].rest)

    def _moved(self, line: Instruction, computation: Computation) -> int:
        if FREE.fullmatch(line.opcode) or MARKS.fullmatch(line.attribute("custom_call_target")):
            return 0
        if line.opcode == "while":
            return self.trips(line) * sum(self.bytes(line.attribute(part)) for part in ("body", "condition"))
        if line.opcode == "conditional":
            branches = re.findall(r"(?:computations=\{|_computation=|, )%([\w.\-]+)(?=[,}])", line.rest)
            return max(self.bytes(branch) for branch in branches)
        if called := line.opcode in ("call", "call-start", "async-start") and (
            line.attribute("to_apply") or line.attribute("calls")
        ):
            return self.bytes(called)
        arrays = [computation.lines[name].results[0] for name in line.operands]
        read = sum(self._taken(line, at, array) for at, array in enumerate(arrays) if array.main)
        return read + self._put(line, computation)

    def _taken(self, line: Instruction, at: int, array: Array) -> int:
        """What an instruction reads of an operand."""
        if line.opcode in TAKES and at == 0:
            return min(array.bytes, line.results[1 if line.opcode == "slice-start" else 0].bytes)
        if line.opcode in PUTS and at == 0:
            return 0
        if line.opcode == "custom-call" and array.shape in self.reads:
            return array.bytes // array.shape[0] * self.reads[array.shape]
        if line.opcode == "fusion":
            inside = self.computations[line.attribute("calls")]
            own = next(item for item in inside.lines.values() if item.opcode == "parameter" and int(item.rest) == at)
            return min(array.bytes, sum(self._taken(*user, array) for user in inside.users(own.name)))
        return array.bytes

    def _put(self, line: Instruction, computation: Computation) -> int:
        """What an instruction writes."""
        results = line.results
        if line.opcode.endswith("-start"):  # copy-start: (to, from, mark); slice-start: (from, to, mark)
            results = results[1:2] if line.opcode == "slice-start" else results[:1]
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


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at ``start`` closes."""
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
    return Array(math.prod(shape) * bits // 8, shape, "S(" not in layout)
