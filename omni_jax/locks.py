"""One writer at a time: a second process stops with a one-line error. The kernel frees a lock when its process ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from omni_jax.environment import warn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".omni_jax.lock"


def hold(file: int, said: str) -> bool:
    """Locks an open file until it is closed.

    Args:
        file: its descriptor.
        said: the error message if another process holds the lock.

    Returns:
        False on a file system without locks.

    Raises:
        ValueError: another process holds the lock.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(said) from None
    except OSError:
        return False
    return True


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder for writing, and makes the folder if needed; warns on a file system without locks.

    Raises:
        ValueError: another process is writing into it.
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    said = f"{folder}: another process is writing there; wait for its end, or choose another folder"
    path = folder / LOCK
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = hold(file, said)
            # The previous holder may have deleted the file after it was opened here: a lock on it would exclude nobody.
            if not locked or _is(path, file):
                break
        except BaseException:
            os.close(file)
            raise
        os.close(file)
    if not locked:
        warn(f"{folder}: its file system has no locks, so take care that nobody else writes there")
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(file)


def _is(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False
