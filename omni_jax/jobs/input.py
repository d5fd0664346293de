"""A job's input: the lines of a JSONL file, each a conversation, with an optional name and options of its own."""

import errno
import gzip
import json
import struct
import zipfile
import zlib
from typing import Any

import fsspec

from omni_jax.engine.options import json_options
from omni_jax.errors import cut, kind_of, shown

# What decompressors raise for damaged bytes; the second are of modules that not every Python has.
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile, struct.error)
_DAMAGE_ELSEWHERE = ("LZMAError", "ZstdError", "IsalError")
# What is raised for a zip file that is whole, but has nothing that can be read.
_UNREADABLE_ZIP = (
    NotImplementedError,  # zipfile raises it for a compression method that it lacks; nothing in this file is unfinished
    IndexError,  # fsspec raises it for an archive without files
)


def lines_of(source: str) -> Any:
    """Numbers, from 1, and contents of a JSONL file's lines; empty lines are skipped.

    Raises:
        ValueError: in one line, for a file that is absent, damaged or not ours to read.
        RetryableError: in one line, for a file that cannot be read now.
    """
    try:
        with fsspec.open(source, "rb", compression="infer") as file:
            for number, text in enumerate(file, 1):  # pyright: ignore
                if content := text.strip().removeprefix(b"\xef\xbb\xbf"):
                    yield number, content
    except FileNotFoundError:
        raise ValueError(f"{source}: no such file; expected conversations in JSONL, one a line") from None
    except Exception as error:
        said = cut(str(error), 200)
        if _is_damage(error, source):
            raise ValueError(f"{source}: is cut off or damaged ({said})") from None
        known = isinstance(error, ImportError | ValueError | OSError)
        if not known and type(error).__module__ == "builtins":  # no memory, or a bug here
            raise
        raise kind_of(error)(f"{source}: cannot be read ({said})") from None


def _is_damage(error: Exception, source: str) -> bool:
    """Whether an error is a decompressor's for damaged bytes; each decompressor raises its own."""
    said, zipped = str(error), source.lower().endswith(".zip")
    if isinstance(error, _DAMAGE) or type(error).__name__ in _DAMAGE_ELSEWHERE:
        return True
    if type(error) is OSError:  # bz2's has no errno, and a zip's table may point outside the file
        return said == "Invalid data stream" or (zipped and error.errno == errno.EINVAL)
    if type(error) is RuntimeError:  # if it is a zip, it has a password
        return zipped or said.startswith("LZ4F_")
    return zipped and isinstance(error, _UNREADABLE_ZIP)


def parsed(text: bytes) -> tuple[Any, list[Any], dict[str, Any]]:
    """The id of a line (None if it has none), its conversation, and its own options without those that are null.

    Raises:
        ValueError: in one line.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON ({shown(error, 200)})") from None
    if isinstance(found, list):
        return None, found, {}
    if not isinstance(found, dict) or not isinstance(found.get("messages"), list):
        got = type(found).__name__
        if isinstance(found, dict):
            got = (
                f"messages of type {type(found['messages']).__name__}"
                if "messages" in found
                else f"only {cut(', '.join(found))}"
                if found
                else "an empty object"
            )
        raise ValueError(f"expected a list of messages, or an object with such a list as messages, got {got}")
    name, messages = found.pop("id", None), found.pop("messages")
    return name, messages, json_options(found)
