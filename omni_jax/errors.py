"""Errors of the user, which a retry would repeat, and errors that may pass; values as messages show them, in one short line."""

import os
import reprlib
from collections.abc import Iterable
from typing import Any

USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
# Characters that a message has for its faults, so that the whole stays under 500.
REPORT = 400


class UnreachedError(OSError, ValueError):
    """A file, a store or a hub that cannot be reached or read now; a retry may succeed."""


def is_user_error(error: BaseException) -> bool:
    """Whether an error is the user's, so that a retry would repeat it."""
    return isinstance(error, USER_ERRORS) and not isinstance(error, UnreachedError)


def shown(value: Any, most: int = 80) -> str:
    """A value as a message shows it: one line of at most ``most`` characters, whatever the value is.

    Strings, numbers and their lists and dictionaries are written as Python does; arrays by dtype and shape; errors by
    their text; anything else by the name of its type, because its own ``repr`` may be long or fail.
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
    """A text in one line of at most ``most`` characters; a longer one loses its middle."""
    if len(text) > 2 * most:  # before the split into words, of which it may have millions
        text = f"{text[:most]}...{text[-most:]}"
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    last = (most - 3) // 3
    return f"{text[: most - 3 - last]}...{text[len(text) - last :]}"


def listed(faults: Iterable[str], most: int = REPORT) -> str:
    """Several faults in one line of about ``most`` characters: as many as fit, and the number of the rest."""
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
    """Raises ValueError unless the value is a path."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"{name}: expected a path, got {shown(path)}")


def check_progress(progress: object) -> None:
    """Raises ValueError unless the value can be called or is None."""
    if progress is not None and not callable(progress):
        raise ValueError(f"progress: expected a function of (done, total, name), got {shown(progress)}")


class _Short(reprlib.Repr):
    """Python's own short ``repr``, but without calling the ``repr`` of objects of other types."""

    def __init__(self, most: int):
        super().__init__()
        self.maxlevel, self.maxstring, self.maxlong = 3, most, 40

    def repr_bytes(self, x: bytes, level: int) -> str:
        del level
        return repr(x) if len(x) <= 16 else f"{x[:16]!r}... of {len(x):,} bytes"

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write integers of thousands of digits.
        return f"a number of {x.bit_length():,} bits" if x.bit_length() > 4096 else super().repr_int(x, level)

    def repr_instance(self, x: Any, level: int) -> str:
        del level
        if x is None or type(x) in (bool, float, complex):
            return repr(x)
        return f"a {type(x).__name__}"
