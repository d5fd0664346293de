"""A job's output: answers in JSONL and sound files beside them, on a local disk or at any URL that fsspec knows.

What ``write`` has returned from is there whatever happens next. On a local disk a line is appended and synchronized; a line that
a kill tore is cut off by the next run. Where files cannot be appended to, lines go into parts, one object for each flush. A
sound file is there, whole and under its name, before the line that names it.

    answers.jsonl                         one process on a local disk writes here; in the end all lines stand here in order
    answers.jsonl.parts/00001-of-00004    lines of one process of several, or of one that cannot append
    answers.sound/00000007.wav            what is said in the reply to line 7
"""

import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

START = b'{"line": '
# An object of lines is written when so many bytes wait for it, or so many seconds have passed.
FLUSH_BYTES, FLUSH_SECONDS = 4 << 20, 15.0


@dataclass(frozen=True)
class Entry:
    """A line that is answered: its number, what it answers (a checksum), its JSON as it is written."""

    number: int
    of: str
    text: bytes
    content: Mapping[str, Any]

    @property
    def fault(self) -> bool:
        return "error" in self.content


class Ledger:
    """The output of one process of a job."""

    def __init__(self, target: str, *, process: int = 0, processes: int = 1):
        """Opens it and reads what is there already.

        Raises:
            ValueError: in one line, for a place that cannot be written, is in use, or holds something else.
        """
        self.target = target
        self.files, self.path = _place(target)
        self.local = isinstance(self.files, LocalFileSystem)
        stem, _, suffix = self.path.rpartition(".")
        self.sounds = f"{stem if suffix == 'jsonl' else self.path}.sound"
        self.parts = f"{self.path}.parts"
        self.name = f"{process:05d}-of-{processes:05d}"
        self.waiting: list[bytes] = []
        self.flushed, self.serial, self.journal = time.monotonic(), 0, None
        if self.local:
            if not Path(self.path).parent.is_dir():
                raise ValueError(f"{target}: there is no folder {Path(self.path).parent}; make it first")
            if Path(self.path).is_dir():
                raise ValueError(f"{target}: expected the name of a file to write, got a folder")
            alone = processes == 1
            if not alone:
                os.makedirs(self.parts, exist_ok=True)
            self.journal = _Journal(self.path if alone else f"{self.parts}/{self.name}.jsonl", target)
        self.entries = self._read()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        if self.journal is not None:
            self.journal.close()

    def put(self, name: str, content: bytes) -> str:
        """Writes a sound file. Returns its path, from the folder of the answers."""
        path = f"{self.sounds}/{name}"
        if self.local:
            os.makedirs(self.sounds, exist_ok=True)
            _replace(path, [content])
        else:
            self.files.pipe_file(path, content)
        return f"{self.sounds.rsplit('/', 1)[-1]}/{name}"

    def write(self, lines: Iterable[tuple[int, str, Mapping[str, Any]]]) -> None:
        """Writes answers: the line's number, its checksum, and what is said of it. On a local disk they are durable now, at a
        URL with ``flush``, which this calls from time to time."""
        for number, of, content in lines:
            text = START + f"{number}, ".encode() + json.dumps({**content, "of": of}, ensure_ascii=False).encode()[1:]
            self.waiting.append(text + b"\n")
            self.entries[number] = Entry(number, of, text, content)
        late = time.monotonic() - self.flushed > FLUSH_SECONDS or sum(map(len, self.waiting)) > FLUSH_BYTES
        if self.journal is not None or late:
            self.flush()

    def flush(self) -> None:
        """Makes all lines durable."""
        if self.waiting and self.journal is not None:
            self.journal.append(b"".join(self.waiting))
        elif self.waiting:
            self.files.pipe_file(f"{self.parts}/{self.name}-{self.serial:06d}.jsonl", b"".join(self.waiting))
            self.serial += 1
        self.waiting, self.flushed = [], time.monotonic()

    def merge(self, numbers: Iterable[int]) -> None:
        """Puts all lines in order into one file, after all processes have flushed; the parts go then.

        Raises:
            ValueError: lines that other processes have written are not to be seen from here.
        """
        entries = self._read()
        wanted = list(numbers)
        if missing := [number for number in wanted if number not in entries]:
            raise ValueError(
                f"{self.target}: {len(missing)} lines of other processes are not to be seen from here, the first is line "
                f"{missing[0]}; give a place that all hosts share"
            )
        self.entries = entries
        texts = [entries[number].text + b"\n" for number in wanted]
        if self.local:
            if not Path(self.path).exists() or Path(self.path).read_bytes() != b"".join(texts):
                _replace(self.path, texts)
        else:
            self.files.pipe_file(self.path, b"".join(texts))
        if self.files.exists(self.parts):
            self.files.rm(self.parts, recursive=True)

    def _read(self) -> dict[int, Entry]:
        """All lines that are whole, of this run and those before it. An answer goes before a fault, a later line before an
        earlier one."""
        self.files.invalidate_cache()
        parts = sorted(self.files.find(self.parts)) if self.files.exists(self.parts) else []
        if not self.local:
            own = [int(Path(part).stem.rsplit("-", 1)[-1]) for part in parts if Path(part).name.startswith(self.name)]
            self.serial = max(own, default=-1) + 1
        entries: dict[int, Entry] = {}
        for path in [*([self.path] if self.files.exists(self.path) else []), *parts]:
            for text in self.files.cat_file(path).split(b"\n")[:-1]:
                entry = _entry(text, path)
                before = entries.get(entry.number)
                if before is None or before.fault or not entry.fault:
                    entries[entry.number] = entry
        return entries


class _Journal:
    """A local file of lines that only grows, and that one process writes."""

    def __init__(self, path: str, target: str):
        try:
            self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise ValueError(f"{target}: cannot be written there ({error.strerror})") from None
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self.file)
            raise ValueError(f"{target}: another job is writing it; wait for its end, or give another name") from None
        except OSError:
            pass  # a file system without locks
        _sync_folder(path)
        self._cut(path)

    def append(self, content: bytes) -> None:
        end = os.fstat(self.file).st_size
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(self.file, left) :]
            os.fsync(self.file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self.file, end)  # no half a line where the disk is full
            raise

    def close(self) -> None:
        os.close(self.file)

    def _cut(self, path: str) -> None:
        """Cuts off a line that was not finished, if it is one of ours."""
        size = os.fstat(self.file).st_size
        with open(path, "rb") as file:
            at, tail = size, b""
            while at and b"\n" not in tail:
                step = min(at, 1 << 16)
                at -= step
                file.seek(at)
                tail = file.read(step) + tail
        tail = tail.rpartition(b"\n")[2]
        if tail and tail[: len(START)] != START[: len(tail)]:
            raise ValueError(
                f"{path}: its last line is none of a job's, which begin with {START.decode()}; give another name"
            )
        if tail:
            os.ftruncate(self.file, size - len(tail))
            os.fsync(self.file)


def _entry(text: bytes, path: str) -> Entry:
    try:
        content = json.loads(text)
        number, of = content["line"], content["of"]
        if not isinstance(number, int):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path}: expected the answers of a job, got a line {text[:60]!r}; give another name for the output"
        ) from None
    return Entry(number, of, text, content)


def _place(target: str) -> tuple[Any, str]:
    try:
        return url_to_fs(target)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{target}: {' '.join(str(error).split())}") from None


def lines_of(source: str) -> Any:
    """Numbers and contents of a JSONL file's lines, from 1; empty ones are passed over.

    Raises:
        ValueError: in one line, for a file that cannot be read.
    """
    try:
        with fsspec.open(source, "rb", compression="infer") as file:
            for number, text in enumerate(file, 1):  # pyright: ignore
                if content := text.strip().removeprefix(b"\xef\xbb\xbf"):
                    yield number, content
    except FileNotFoundError:
        raise ValueError(f"{source}: no such file; expected conversations in JSONL, one a line") from None
    except (ImportError, OSError) as error:
        raise ValueError(f"{source}: cannot be read ({' '.join(str(error).split())})") from None


def _replace(path: str, content: Iterable[bytes]) -> None:
    """Writes a local file under another name, and renames it when it is safe on the disk."""
    part = f"{path}.part"
    with open(part, "wb") as file:
        file.writelines(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    _sync_folder(path)


def _sync_folder(path: str) -> None:
    """Makes a new name durable."""
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
