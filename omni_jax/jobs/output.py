"""A job's output: answers in JSONL, and sound files beside them, on a local disk or at any URL that fsspec knows.

On a local disk a line is appended and synchronized: once ``write`` has returned, its lines are durable. A line that was
cut by a kill is removed by the next run. Where files cannot be appended to, lines go into parts, one object for each
flush, so that a kill costs the lines of some seconds. A sound file is complete, under its final name, before the line
that names it.

The text of lines stays on the disk. In memory there is an ``LineRecord`` of each, so that a job may have millions.

    answers.jsonl                         one process on a local disk writes here; finally all lines, in order
    answers.jsonl.parts/00001-of-00004    lines of one process of several, or of one that cannot append
    answers.sound/00000007.wav            the speech of the reply to line 7
    answers.how.json                      what lines are answered with: the model, its options
"""

import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from omni_jax.errors import cut, kind_of
from omni_jax.locks import hold

START = b'{"line": '
# Lines are written as an object when so many bytes wait, or so many seconds have passed.
FLUSH_BYTES, FLUSH_SECONDS = 4 << 20, 15.0
MOST_SECONDS = 1e9  # of speech in a reply; more means a damaged line


@dataclass(frozen=True, slots=True)
class LineRecord:
    """What is known of an answered line, in a few hundred bytes, however long the line is.

    Attributes:
        checksum: of the input line.
        fault: whether the line is an error instead of an answer.
        tokens: tokens of the reply.
        seconds: seconds of its speech.
        path: the file that held the line when files were last read.
        start: the line's first byte in it.
        size: the line's bytes, line break included.
    """

    checksum: str
    fault: bool
    tokens: int
    seconds: float
    path: str = ""
    start: int = 0
    size: int = 0

    @classmethod
    def about(cls, checksum: str, content: Mapping[str, Any], *place: Any) -> "LineRecord":
        """The record of a line with this content."""
        tokens, seconds = content.get("tokens", []), content.get("speech", {}).get("seconds", 0.0)
        sound = type(seconds) in (int, float) and 0 <= seconds < MOST_SECONDS
        if not (isinstance(checksum, str) and isinstance(tokens, list) and sound):
            raise ValueError("expected a checksum, a list of tokens and seconds of speech")
        return cls(checksum, "error" in content, len(tokens), float(seconds), *place)


class JobOutput:
    """The output of one process of a job."""

    def __init__(self, target: str, *, process: int = 0, processes: int = 1):
        """Opens the output and reads the lines that are there.

        Args:
            target: a local path, or a URL that fsspec knows.
            process: the number of this process of the job.
            processes: how many there are.

        Raises:
            ValueError: in one line, for a place that cannot be written, is in use, or holds something else.
            OSError: the place cannot be read or written now.
        """
        self.target = target
        self.files, self.path = _place(target)
        self.local = isinstance(self.files, LocalFileSystem)
        stem, _, suffix = self.path.rpartition(".")
        stem = stem if suffix == "jsonl" else self.path
        self.sounds, self.how = f"{stem}.sound", f"{stem}.how.json"
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
        try:
            self.entries = self._read()
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> "JobOutput":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Writes the lines that still wait, however the work ended."""
        try:
            self.flush()
        except Exception:
            if kind is None:  # otherwise the error that ended the work says more
                raise
        finally:
            self._close()

    def _close(self) -> None:
        if self.journal is not None:
            self.journal.close()

    def check_settings(self, how: Mapping[str, Any], *, write: bool) -> None:
        """Ensures that all lines are answered with the same settings: writes these beside the lines, or compares them.

        A job whose lines have no settings beside them (from earlier releases) continues with any.

        Args:
            how: names and values, as JSON has them.
            write: whether this process is the one that writes them.

        Raises:
            ValueError: there are lines that were answered with other settings.
        """
        if not self.entries:
            if write:
                text = json.dumps(how, ensure_ascii=True, indent=1).encode() + b"\n"
                _replace(self.how, [text]) if self.local else self.files.pipe_file(self.how, text)
            return
        try:
            before = json.loads(self.files.cat_file(self.how))
        except FileNotFoundError:
            return
        except (ValueError, RecursionError):
            before = None
        if not isinstance(before, dict):
            raise ValueError(
                f"{self.how}: expected a job's note of what it answers with; give another name for the output"
            )
        unlike = [name for name in [*before, *(how.keys() - before.keys())] if before.get(name) != how.get(name)]
        if unlike:
            said = (
                "another model" if name == "model" else f"{name} {_shown(before, name)} (now {_shown(how, name)})"
                for name in sorted(unlike)
            )
            raise ValueError(f"{self.target}: was answered with {', '.join(said)}; give another name for the output")

    def put(self, name: str, content: bytes) -> str:
        """Writes a sound file. Returns its path, relative to the folder of the answers."""
        path = f"{self.sounds}/{name}"
        if self.local:
            os.makedirs(self.sounds, exist_ok=True)
            _replace(path, [content])
        else:
            self.files.pipe_file(path, content)
        return f"{self.sounds.rsplit('/', 1)[-1]}/{name}"

    def write(self, lines: Iterable[tuple[int, str, Mapping[str, Any]]]) -> None:
        """Writes answers: each line's number, its checksum and its content.

        On a local disk they are durable on return. At a URL they are after the next ``flush``, which this method calls
        when FLUSH_BYTES wait or FLUSH_SECONDS have passed since the last one; so call it without lines too, as time
        goes by.
        """
        for number, of, content in lines:
            self.waiting.append(START + f"{number}, ".encode() + _encoded({**content, "of": of})[1:] + b"\n")
            self.entries[number] = LineRecord.about(of, content)
        late = time.monotonic() - self.flushed > FLUSH_SECONDS or sum(map(len, self.waiting)) > FLUSH_BYTES
        if self.journal is not None or late:
            self.flush()

    def flush(self) -> None:
        """Makes all lines durable."""
        lines, self.flushed = b"".join(self.waiting), time.monotonic()
        if lines and self.journal is not None:
            self.waiting = []  # tried once: a second try would append behind what the first one may have left
            self.journal.append(lines)
        elif lines:
            self.files.pipe_file(f"{self.parts}/{self.name}-{self.serial:06d}.jsonl", lines)
            self.serial += 1
        self.waiting = []

    def merge(self, numbers: Iterable[int]) -> None:
        """Joins all lines into one file, in order, and deletes the parts; call it after all processes have flushed.

        Raises:
            ValueError: lines that other processes have written cannot be seen from here.
        """
        wanted = list(numbers)
        with ExitStack() as stack:
            # Lines are read in random order, which would take a store far too long.
            copy = None if self.local else stack.enter_context(NamedTemporaryFile(prefix="omni_jax."))
            entries = self._read(copy)
            if missing := [number for number in wanted if number not in entries]:
                raise ValueError(
                    f"{self.target}: {len(missing)} lines of other processes are not to be seen from here, the first is line "
                    f"{missing[0]}; give a place that all hosts share"
                )
            self.entries = entries
            ordered = [entries[number] for number in wanted]
            if copy is not None:
                whole = stack.enter_context(NamedTemporaryFile(prefix="omni_jax."))
                whole.writelines(_texts(ordered))
                whole.flush()
                self.files.put_file(whole.name, self.path)
            elif not _is_all(self.path, ordered):
                _replace(self.path, _texts(ordered))
        if self.files.exists(self.parts):
            self.files.rm(self.parts, recursive=True)

    def _read(self, copy: Any = None) -> dict[int, LineRecord]:
        """Entries of all complete lines, of this run and earlier ones. An answer takes precedence over a fault, a later
        line over an earlier one.

        Args:
            copy: a local file that the lines are copied to; the entries then refer to it.
        """
        self.files.invalidate_cache()
        parts = sorted(self.files.find(self.parts)) if self.files.exists(self.parts) else []
        if not self.local:
            own = [int(Path(part).stem.rsplit("-", 1)[-1]) for part in parts if Path(part).name.startswith(self.name)]
            self.serial = max(own, default=-1) + 1
        entries: dict[int, LineRecord] = {}
        at = 0
        for path in [*([self.path] if self.files.exists(self.path) else []), *parts]:
            at = 0 if copy is None else at
            with self._open(path) as file:
                for text in file:
                    if not text.endswith(b"\n"):
                        break  # cut off, or another process is writing it
                    number, entry = _entry(text, path, path if copy is None else copy.name, at)
                    at += len(text)
                    if copy is not None:
                        copy.write(text)
                    before = entries.get(number)
                    if before is None or before.fault or not entry.fault:
                        entries[number] = entry
        if copy is not None:
            copy.flush()
        return entries

    def _open(self, path: str) -> Any:
        return open(path, "rb") if self.local else io.BufferedReader(self.files.open(path, "rb"), 1 << 20)


class _Journal:
    """A local file of lines that is only appended to, by one process."""

    def __init__(self, path: str, target: str):
        try:
            self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise kind_of(error)(f"{target}: cannot be written there ({error.strerror})") from None
        try:
            hold(self.file, f"{target}: another job is writing it; wait for its end, or give another name")
        except ValueError:
            os.close(self.file)
            raise
        try:
            _sync_folder(path)
            self._cut(path)
        except BaseException:
            self.close()  # otherwise nobody else could open it while this process lives
            raise

    def append(self, content: bytes) -> None:
        end = os.fstat(self.file).st_size
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(self.file, left) :]
            os.fsync(self.file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self.file, end)  # no half line remains when the disk is full
            raise

    def close(self) -> None:
        os.close(self.file)

    def _cut(self, path: str) -> None:
        """Cuts off an unfinished last line, if it is a job's."""
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


def _shown(how: Mapping[str, Any], name: str) -> str:
    return cut(json.dumps(how[name])) if name in how else "not given"


def _entry(text: bytes, name: str, path: str, start: int) -> tuple[int, LineRecord]:
    """The number of a line, and its entry."""
    try:
        content = json.loads(text)
        number = content["line"]
        if type(number) is not int:
            raise ValueError
        return number, LineRecord.about(content["of"], content, path, start, len(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(
            f"{name}: expected the answers of a job, got a line {text[:60]!r}; give another name for the output"
        ) from None


def _texts(entries: Sequence[LineRecord]) -> Iterator[bytes]:
    """The bytes of lines, from the files that hold them."""
    with ExitStack() as stack:
        files = {path: stack.enter_context(open(path, "rb")) for path in {entry.path for entry in entries}}
        for entry in entries:
            files[entry.path].seek(entry.start)
            yield files[entry.path].read(entry.size)


def _is_all(path: str, entries: Sequence[LineRecord]) -> bool:
    """Whether a file consists of these lines, in this order."""
    at = 0
    for entry in entries:
        if (entry.path, entry.start) != (path, at):
            return False
        at += entry.size
    return os.path.exists(path) and os.path.getsize(path) == at


def _encoded(content: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can express and UTF-8 cannot
        return json.dumps(content).encode()


def _place(target: str) -> tuple[Any, str]:
    try:
        return url_to_fs(target)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{target}: {' '.join(str(error).split())}") from None


def _replace(path: str, content: Iterable[bytes]) -> None:
    """Writes a local file under a temporary name, and renames it once its content is durable."""
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
