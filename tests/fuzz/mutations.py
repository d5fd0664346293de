"""Random values, and mutations of valid bytes, trees and JSON, all drawn from a ``random.Random``."""

import io
import json
import math
import random
import struct
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any

import numpy as np

# Numbers near the bounds of fields and options.
EDGES = [0, 1, 2, 7, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 10**400]
NUMBERS = [*EDGES, *(-edge for edge in EDGES), 0.5, -0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, 1e38]
TEXTS = [
    "", " ", "x", "4", "1e9", "null", "a\nb", "\0", "\ud800", "é😀", "x" * 300, "x\n" * 400, "y" * 100_000, "../..",
    "%s{0}", "{{ 7 * 7 }}", "{% for x in 5 %}", "<|im_end|>", "<|audio_pad|>", "</think>", "None", "true", "\u202e",
    "\uff41",
]  # fmt: skip
DEEP = (3, 50, 2000, 100_000)


def deep(draw: random.Random, most: int = DEEP[-1]) -> Any:
    """Nested lists or objects."""
    found: Any = 1
    level = draw.choice([depth for depth in DEEP if depth <= most])
    wrap = draw.choice([lambda held: [held], lambda held: {"a": held}, lambda held: (held,)])
    for _ in range(level):
        found = wrap(found)
    return found


def wild_json(draw: random.Random) -> Any:
    """A random value that JSON can express."""
    makers = [
        lambda: draw.choice(NUMBERS),
        lambda: draw.choice(NUMBERS),
        lambda: draw.choice(TEXTS),
        lambda: draw.choice([None, True, False]),
        lambda: draw.choice([[], {}, [[]], [{}], {"": 1}, {"url": 1}, {"a": {}}]),
        lambda: [draw.choice(NUMBERS) for _ in range(draw.randrange(5))],
        lambda: [draw.choice(TEXTS) for _ in range(draw.randrange(4))],
        lambda: {draw.choice(TEXTS[:12]): draw.choice(NUMBERS)},
        lambda: [draw.choice([0, "x", None])] * draw.choice([10, 100_000]),
        lambda: deep(draw, 2000),
    ]
    return draw.choice(makers)()


def wild(draw: random.Random) -> Any:
    """Any value that a Python caller may pass by mistake."""
    number = draw.choice([0, 1, 3, -1, 2.5, math.nan])
    makers = [
        lambda: wild_json(draw),
        lambda: wild_json(draw),
        lambda: wild_json(draw),
        lambda: draw.choice([b"", b"x", b"\xff" * 50, bytearray(b"ab"), memoryview(b"ab")]),
        lambda: (draw.choice(NUMBERS), draw.choice(TEXTS)),
        lambda: draw.choice([set(), {1, "x"}, frozenset(), range(3), range(10**12), iter([1]), ...]),
        lambda: draw.choice([object(), object, int, len, lambda *_: 1, Exception("x"), PurePosixPath("x")]),
        lambda: draw.choice([1j, Decimal("1.5"), Decimal("nan"), Fraction(1, 3), Decimal("1e400")]),
        lambda: np.array(number),
        lambda: np.array([number] * draw.randrange(4)),
        lambda: np.zeros(
            draw.choice([(0,), (2, 2), (1, 1, 1), (64, 64, 3), (0, 3, 3), (2, 64, 64, 3)]),
            draw.choice(["f4", "i4", "u1", "?"]),
        ),
        lambda: draw.choice(
            [np.float32(1), np.float64(math.nan), np.int64(3), np.uint8(3), np.bool_(True), np.str_("x")]
        ),
        lambda: draw.choice(
            [
                np.array(["x"]),
                np.array([None]),
                np.array([b"x"]),
                np.array([1, "x", None], object),
                np.datetime64("2020"),
            ]
        ),
        lambda: huge(draw),
        lambda: io.BytesIO(b"x" * draw.choice([0, 9])),
        lambda: io.StringIO("x"),
        lambda: deep(draw),
        lambda: {draw.choice([1, None, "x", (1,), b"x"]): draw.choice(NUMBERS)},
    ]
    return draw.choice(makers)()


def huge(draw: random.Random) -> np.ndarray:
    """An array of one number that states a size far larger than any memory."""
    shape = draw.choice([(10**10,), (2, 10**10), (10**5, 10**5), (10**5, 10**5, 3), (10**4, 2000, 2000, 3), (10**12,)])
    return np.broadcast_to(np.zeros((), draw.choice(["f4", "u1", "i2", "f8", "i4", "?"])), shape)


def shown(value: Any) -> str:
    """A short description of any value."""
    try:
        text = repr(value)
    except (RecursionError, ValueError, MemoryError):
        text = f"a deep or long {type(value).__name__}"
    return text if len(text) < 160 else f"{text[:100]}... ({len(text):,} letters)"


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """The paths of the values of a tree of lists and objects, but not its own, nor of what lies deeper than files do."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found = []
    for key, value in list(items)[:500] if len(path) < 10 else ():
        found += [(*path, key), *places(value, (*path, key))]
    return found


def at(tree: Any, path: Sequence) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _copied(tree: Any, depth: int = 0) -> Any:
    """Copies lists and objects but not their other contents, so that a tree may contain itself."""
    if depth > 12 or not isinstance(tree, dict | list):
        return tree
    if isinstance(tree, list):
        return [_copied(value, depth + 1) for value in tree]
    return {key: _copied(value, depth + 1) for key, value in tree.items()}


def mutate(tree: Any, draw: random.Random, value: Any = wild_json, names: Sequence[str] = ()) -> tuple[Any, str]:
    """Changes a tree of lists and objects in one place.

    Args:
        value: makes the new value.
        names: new names for keys.

    Returns: the tree (itself, or its replacement), and a description.
    """
    found = places(tree)
    if not found or draw.random() < 0.03:
        new = value(draw)
        return new, f"all = {shown(new)}"
    path = draw.choice(found)
    held, key = at(tree, path[:-1]), path[-1]
    where = ".".join(map(str, path))[-80:]
    how = draw.choices(["value", "number", "drop", "add", "rename", "swap", "wrap", "text"], [8, 8, 3, 2, 2, 2, 2, 2])[
        0
    ]
    if how == "number" and isinstance(held[key], int | float) and not isinstance(held[key], bool):
        old = held[key]
        held[key] = draw.choice(
            [-old, old + 1, old * 2, old * 1000, old * 10**9, old / 3, 0, str(old), float(old), 2**31 - 1]
        )
    elif how == "drop":
        del held[key]
        return tree, f"no {where}"
    elif how == "add" and isinstance(held, list):
        held.insert(draw.randrange(len(held) + 1), draw.choice([value(draw), held[key]]))
        return tree, f"one more in {where}"
    elif how == "add":
        held[draw.choice([*names, "type", "url", "x"])] = value(draw)
        return tree, f"one more beside {where}"
    elif how == "rename" and isinstance(held, dict):
        new = draw.choice([f"{key}s", str(key).upper(), str(key)[:-1], f" {key}", *names])
        held[new] = held.pop(key)
        return tree, f"{where} named {shown(new)}"
    elif how == "swap":
        other = at(tree, draw.choice(found))
        held[key] = _copied(other)
    elif how == "wrap":
        held[key] = draw.choice([[held[key]], {"a": held[key]}, [held[key]] * 3])
    elif how == "text" and isinstance(held[key], str):
        old = held[key]
        held[key] = draw.choice([old[: len(old) // 2], old * 2, old[::-1], f"{old}\n", old.upper(), f" {old}"])
    else:
        held[key] = value(draw)
    return tree, f"{where} = {shown(held[key])}"


def written(tree: Any, draw: random.Random) -> bytes:
    """A tree as JSON; sometimes its bytes are damaged too, or replaced."""
    try:
        text = json.dumps(tree).encode()
    except (RecursionError, TypeError, ValueError):
        text = b"[" * 3000 + b"]" * 3000
    if draw.random() < 0.85:
        return text
    makers = [
        lambda: b"[" * 100_000,
        lambda: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        lambda: b"\xef\xbb\xbf" + text,
        lambda: text.decode().encode("utf-16"),
        lambda: text.replace(b'"', b"\xff", 1),
        lambda: text[: draw.randrange(len(text) + 1)],
        lambda: text + text,
        lambda: text[:-1] + b"," + text[1:],  # every key twice
        lambda: b"",
        lambda: b"\0" * 100,
        lambda: b"1" * 5000,
        lambda: b"NaN",
        lambda: damaged(text, draw)[0],
    ]
    return draw.choice(makers)()


def damaged(content: bytes, draw: random.Random, other: bytes = b"", head: int = 256) -> tuple[bytes, str]:
    """Changes bytes in one to four ways, most often near the beginning.

    Args:
        other: bytes of another file, parts of which are inserted.
        head: how many bytes at the beginning count as the head.
    """
    found, said = bytearray(content), []
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        size = len(found)
        spot = draw.randrange(min(size, head) if draw.random() < 0.6 else size) if size else 0
        how = draw.choice(["flip", "byte", "word", "cut", "drop", "insert", "repeat", "zero", "splice", "tail"])
        said.append(f"{how} at {spot} of {size}")
        if how == "flip" and size:
            found[spot] ^= 1 << draw.randrange(8)
        elif how == "byte" and size:
            found[spot] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
        elif how == "word" and size:
            form = draw.choice(["<H", ">H", "<I", ">I", "<Q", ">Q"])
            edge = draw.choice(EDGES[:-1]) % 2 ** (8 * struct.calcsize(form))
            found[spot : spot + struct.calcsize(form)] = struct.pack(form, edge)
        elif how == "cut":
            del found[spot:]
        elif how == "drop":
            del found[spot : spot + draw.choice([1, 2, 4, 16, 1000])]
        elif how == "insert":
            found[spot:spot] = draw.randbytes(draw.choice([1, 4, 64]))
        elif how == "repeat":
            found[spot:spot] = found[spot : spot + draw.choice([4, 64, 4096])] * draw.choice([1, 3, 50])
        elif how == "zero":
            length = draw.choice([4, 64, 4096])
            found[spot : spot + length] = bytes(len(found[spot : spot + length]))
        elif how == "splice" and other:
            start = draw.randrange(len(other))
            found[spot : spot + draw.choice([16, 500])] = other[start : start + draw.choice([16, 500, 100_000])]
        elif how == "tail":
            found += draw.choice([b"\0" * 100, draw.randbytes(50), bytes(found[:500])])
    return bytes(found), ", ".join(said)
