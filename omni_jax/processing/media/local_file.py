"""A path opened as media: regular files, and pipes within a time limit; nothing that blocks for ever or has no end."""

import io
import os
import re
import selectors
import stat
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from omni_jax.errors import RetryableError, UserError, kind_of
from omni_jax.processing.options import MediaOptions

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_NO_WRITER = 5.0  # seconds to wait for a writer to open a pipe's other end
_CHUNK = 1 << 20


class RefusedError(Exception):
    """A source that cannot or may not be read; the message continues a sentence that begins with the source's name.

    Attributes:
        kind: what it is raised as, with the name: a user error, or a retryable one.
    """

    def __init__(self, words: str, kind: type[UserError] | type[RetryableError] = UserError):
        super().__init__(words)
        self.kind = kind

    def named(self, name: str) -> UserError | RetryableError:
        """The error to raise, with the name of the source."""
        return self.kind(f"{name}: {self}")


def open_path(path: Any, wanted: str, options: MediaOptions) -> BinaryIO:
    """Opens a path, links followed, as a seekable binary file; a pipe is read whole.

    Args:
        path: Of a file.
        wanted: What messages say that they expect.
        options: max_bytes and timeout, the bounds of a pipe.

    Raises:
        RefusedError: it is no regular file or pipe, is empty or cannot be opened; or a pipe's content is too large or
            too slow.
    """
    try:
        _require_readable(os.stat(path), wanted)  # before opening it, because opening alone starts some devices
        # Non-blocking, because opening a pipe would wait for a writer; for regular files it changes nothing.
        flags = getattr(os, "O_NONBLOCK", 0)
        file: Any = open(path, "rb", 0, opener=lambda at, how: os.open(at, how | flags))  # noqa: SIM115
    except FileNotFoundError:
        raise RefusedError(f"no such file; expected the path of {wanted}{_hint(path)}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        words = f"cannot be opened ({getattr(error, 'strerror', None) or error}){_hint(path)}"
        raise RefusedError(words, kind_of(error)) from None
    try:
        found = os.fstat(file.fileno())  # the file that is open now: the path may lead elsewhere since the first check
        _require_readable(found, wanted)
        if not stat.S_ISFIFO(found.st_mode):
            return io.BufferedReader(file)
        with file:
            return io.BytesIO(_piped(file, options))
    except BaseException:
        file.close()
        raise


def read_all(read: Callable[[int], bytes], options: MediaOptions) -> bytes:
    """All remaining bytes of a ``read`` function, which takes a number of bytes.

    Raises:
        RefusedError: they are more than max_bytes.
    """
    content = bytearray()
    while chunk := read(_CHUNK):
        content += chunk
        require_bytes(len(content), options)
    return bytes(content)


def require_bytes(count: int, options: MediaOptions) -> None:
    """Raises RefusedError where a copied source is larger than max_bytes."""
    if count > options.max_bytes:
        raise RefusedError(f"is larger than {options.max_bytes} bytes; download it first, or raise max_bytes")


def _require_readable(found: os.stat_result, wanted: str) -> None:
    if kind := _KINDS.get(stat.S_IFMT(found.st_mode)):
        raise RefusedError(f"is {kind}; expected {wanted}")
    if stat.S_ISREG(found.st_mode) and not found.st_size:  # files of /proc are empty too, and may never end
        raise RefusedError(f"is empty (0 bytes); expected {wanted}")


def _piped(file: Any, options: MediaOptions) -> bytes:
    """The content of a pipe, up to where its writers close it."""
    content, came, alone, end = bytearray(), False, False, time.monotonic() + options.timeout
    with selectors.DefaultSelector() as ready:
        ready.register(file, selectors.EVENT_READ)
        while True:
            chunk = file.read(_CHUNK)  # None: nothing yet; no bytes: the writers are gone, or none has opened it
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
    """Advice for a string that is not a path but looks like base64."""
    encoded = isinstance(path, str) and len(path) >= 100 and re.fullmatch(r"[A-Za-z0-9+/\s]+={0,2}\s*", path)
    return '; base64 stands in a data: URL, or under "base64" in its part' if encoded else ""
