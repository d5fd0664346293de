"""What is a mistake of whoever asked, which another try would only say again, and what another try may mend; and how a
message repeats what came: in one line, and short however large it is."""

import os
import reprlib
from collections.abc import Iterable
from typing import Any

MISTAKES = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
# A message has room for this much of its faults, so that the whole stays under 500 characters.
REPORT = 400


class UnreachedError(OSError, ValueError):
    """A file, a store or a hub that does not do now what it is asked for, and may later."""


def is_mistake(error: BaseException) -> bool:
    """Whether it is one of whoever asked; any other error may be gone the next time."""
    return isinstance(error, MISTAKES) and not isinstance(error, UnreachedError)


def shown(value: Any, most: int = 80) -> str:
    """A value as a message repeats it: one line of at most ``most`` characters, whatever it holds, itself included.

    Strings, numbers and their lists and dictionaries are written as Python does; arrays by dtype and shape; errors by their
    text; anything else by the name of its type, for its own words may be long or fail.
    """
    if isinstance(value, BaseException):
        return cut(str(value), most) or type(value).__name__
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return cut(f"{dtype} {list(shape)}" if shape else f"{dtype} {value}", most)
    if isinstance(value, type):
        return cut(value.__name__, most)
    return cut(_Short(most).repr(value), most)


def cut(text: str, most: int = 80) -> str:
    """A text in one line of at most ``most`` characters; what is longer lacks its middle."""
    if len(text) > 2 * most:  # before it is split into words, for it may have millions
        text = f"{text[:most]}...{text[-most:]}"
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    last = (most - 3) // 3
    return f"{text[: most - 3 - last]}...{text[len(text) - last :]}"


def listed(faults: Iterable[str], most: int = REPORT) -> str:
    """Several faults in one line of about ``most`` characters: as many as it has room for, and how many more there are."""
    faults = [cut(fault, most) for fault in faults]
    said, room = [], most
    for fault in faults:
        room -= len(fault) + 2
        if said and room < 0:
            break
        said.append(fault)
    left = len(faults) - len(said)
    return "; ".join(said) + (f"; and {left} more" if left else "")


def check_path(name: str, path: object) -> None:
    """Raises for what names no file or folder."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"{name}: expected a path, got {shown(path)}")


def check_progress(progress: object) -> None:
    """Raises for what cannot be called."""
    if progress is not None and not callable(progress):
        raise ValueError(f"progress: expected a function of (done, total, name), got {shown(progress)}")


class _Short(reprlib.Repr):
    """Python's own way to write a part of a value, without asking objects of other kinds for their words."""

    def __init__(self, most: int):
        super().__init__()
        self.maxlevel, self.maxstring, self.maxlong = 3, most, 40

    def repr_bytes(self, x: bytes, level: int) -> str:
        del level
        return repr(x) if len(x) <= 16 else f"{x[:16]!r}... of {len(x):,} bytes"

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write numbers of thousands of digits.
        return f"a number of {x.bit_length():,} bits" if x.bit_length() > 4096 else super().repr_int(x, level)

    def repr_instance(self, x: Any, level: int) -> str:
        del level
        if x is None or type(x) in (bool, float, complex):
            return repr(x)
        return f"a {type(x).__name__}"
