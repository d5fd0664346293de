"""What a library reads of the process, set for a while; and warnings with the place of the user's own call."""

import contextlib
import inspect
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

# Files of this package, and the one that calls a context manager's code: neither is a user's.
_OURS = (f"{Path(__file__).parent}{os.sep}", contextlib.__file__)


@contextlib.contextmanager
def variables(values: dict[str, str], *, over: bool = True) -> Iterator[None]:
    """Sets environment variables, and restores them at the end.

    Args:
        values: by name.
        over: False keeps those that are set already.
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if over or before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def warn(message: str) -> None:
    """Warns with the place of the call that entered this package, however many of our own calls lie between."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
