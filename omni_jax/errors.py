"""The two kinds of errors, and how messages show values: in one short line."""

import errno
import os
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
# What the system says of a path that no later try can open: its name is too long, its links go in circles, ...
_PATH_FAULTS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO)
# Characters that a message has for its faults, so that the whole stays under 500.
REPORT = 400


class UserError(ValueError):
    """What was asked for is wrong, and another try would only fail again. A server answers 400.

    A plain ValueError is a user error too (``is_user_error``); this class is raised where both kinds are possible.
    """


class RetryableError(OSError):
    """The network, a store or a server did not answer; another try may succeed. A server answers 503.

    It is no ValueError, so that code which handles a user's errors does not take it for one.
    """


def is_user_error(error: BaseException) -> bool:
    """Whether an error is the user's, so that another try would repeat it."""
    return isinstance(error, USER_ERRORS) or (isinstance(error, OSError) and error.errno in _PATH_FAULTS)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had no memory for a program or its arrays, which JAX says only in the text of its error."""
    return isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def kind_of(error: BaseException) -> type[UserError] | type[RetryableError]:
    """Whether a library's error is raised again as a UserError or as a RetryableError.

    Packages for stores and networks raise many types: what is neither a user error nor a missing package is retryable.
    """
    return UserError if is_user_error(error) or isinstance(error, ImportError) else RetryableError


@contextmanager
def about(name: str) -> Iterator[None]:
    """Begins the messages of errors raised inside with ``name``, unless it is empty; their kind stays."""
    try:
        yield
    except (ValueError, RetryableError) as error:
        raise kind_of(error)(f"{name}: {error}" if name else str(error)) from None


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
