"""A path opened as media: regular files, and pipes for as long as one may wait; nothing that waits for ever or has no end."""

import io
import os
import re
import selectors
import stat
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from omni_jax.processing.options import MediaOptions

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_NO_WRITER = 5.0  # seconds to wait for somebody who opens a pipe's other end
_CHUNK = 1 << 20


class RefusedError(Exception):
    """What cannot or may not be read, and why, in words for the user that go on from its name."""


def open_path(path: Any, wanted: str, options: MediaOptions) -> BinaryIO:
    """Opens a path, wherever its links lead, as a seekable binary file; a pipe is read whole.

    Args:
        path: Of a file.
        wanted: What messages say that they expect.
        options: max_bytes and timeout, the bounds of a pipe.

    Raises:
        RefusedError: it is no regular file or pipe, is empty or cannot be opened; or a pipe has too much to say, or too
            slowly.
    """
    try:
        _require_readable(os.stat(path), wanted)  # before it is opened, for that alone sets some devices going
        # Not blocking, or the opening of a pipe would wait for a writer; of regular files that changes nothing.
        flags = getattr(os, "O_NONBLOCK", 0)
        file: Any = open(path, "rb", 0, opener=lambda at, how: os.open(at, how | flags))  # noqa: SIM115
    except FileNotFoundError:
        raise RefusedError(f"no such file; expected the path of {wanted}{_hint(path)}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise RefusedError(f"cannot be opened ({getattr(error, 'strerror', None) or error}){_hint(path)}") from None
    try:
        found = os.fstat(file.fileno())  # of what is open now: a path may have come to lead elsewhere
        _require_readable(found, wanted)
        if not stat.S_ISFIFO(found.st_mode):
            return io.BufferedReader(file)
        with file:
            return io.BytesIO(_piped(file, options))
    except BaseException:
        file.close()
        raise


def read_all(read: Callable[[int], bytes], options: MediaOptions) -> bytes:
    """All that a function of a number of bytes still reads.

    Raises:
        RefusedError: it is more than max_bytes.
    """
    content = bytearray()
    while chunk := read(_CHUNK):
        content += chunk
        require_bytes(len(content), options)
    return bytes(content)


def require_bytes(count: int, options: MediaOptions) -> None:
    """Raises where something that is copied is larger than max_bytes."""
    if count > options.max_bytes:
        raise RefusedError(f"is larger than {options.max_bytes} bytes; download it first, or raise max_bytes")


def _require_readable(found: os.stat_result, wanted: str) -> None:
    if kind := _KINDS.get(stat.S_IFMT(found.st_mode)):
        raise RefusedError(f"is {kind}; expected {wanted}")
    if stat.S_ISREG(found.st_mode) and not found.st_size:  # as files of /proc are too, which may never end
        raise RefusedError(f"is empty (0 bytes); expected {wanted}")


def _piped(file: Any, options: MediaOptions) -> bytes:
    """What comes through a pipe until its writers have closed it."""
    content, came, alone, end = bytearray(), False, False, time.monotonic() + options.timeout
    with selectors.DefaultSelector() as ready:
        ready.register(file, selectors.EVENT_READ)
        while True:
            chunk = file.read(_CHUNK)  # None: nothing yet; no bytes: its writers are gone, or none has come
            if chunk:
                content += chunk
                require_bytes(len(content), options)
                continue
            if chunk is not None and (content or came):
                return bytes(content)
            left = max(end - time.monotonic(), 0.0)
            if chunk is None and not left:
                raise RefusedError(
                    f"is a pipe that was not closed in {options.timeout:g} s; give a file, or raise timeout"
                )
            if chunk is not None and alone:
                raise RefusedError("is a pipe that nobody writes to; start its writer first, or give a file")
            alone = chunk is not None
            came = bool(ready.select(min(left, _NO_WRITER) if alone else left))


def _hint(path: object) -> str:
    """What to do with a string that is no path but base64, as it seems."""
    encoded = isinstance(path, str) and len(path) >= 100 and re.fullmatch(r"[A-Za-z0-9+/\s]+={0,2}\s*", path)
    return '; base64 stands in a data: URL, or under "base64" in its part' if encoded else ""
