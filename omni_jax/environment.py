"""Environment variables that are set for one call, and warnings that point at the user's own line."""

import contextlib
import inspect
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

# Files of this package, and the one that calls a context manager's code: neither is a user's.
_OURS = (f"{Path(__file__).parent}{os.sep}", contextlib.__file__)


@contextlib.contextmanager
def variables(values: dict[str, str], *, replace: bool = True) -> Iterator[None]:
    """Sets environment variables, and restores them at the end.

    Args:
        values: by name.
        replace: False keeps those that are set already.
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if replace or before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def warn(message: str) -> None:
    """Warns; the warning points at the line that called this package, however deep in it the warning is raised."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
