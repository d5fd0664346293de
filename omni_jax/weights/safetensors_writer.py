"""Writing the published layout: safetensors shards, streamed piece by piece, and their index."""

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from omni_jax.errors import RetryableError
from omni_jax.weights import layerwise
from omni_jax.weights.safetensors_reader import INDEX, SINGLE
from omni_jax.weights.table import Binding, Shape

CODES = {"float32": "F32", "bfloat16": "BF16"}
SHARD_BYTES = 5_000_000_000


def write(
    source: layerwise.WeightSource,
    found: Mapping[str, layerwise.Leaf],
    bindings: Mapping[str, Binding],
    folder: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: layerwise.Progress | None = None,
    beside: Callable[[], None] | None = None,
) -> None:
    """Writes a source's weights into ``folder`` as safetensors in the published layout, each leaf in its dtype.

    Shards and their index are written under temporary names, and renamed when all are complete. The index comes last;
    readers ignore shards without it. After any error no weights are left in the folder, so that the same call can be
    repeated.

    Args:
        source: the weights.
        found: leaves by path.
        bindings: how each leaf is stored, by path.
        folder: the folder to write.
        shard_bytes: upper bound on the size of a file of several tensors.
        progress: called with (bytes done, bytes in all, path) after each piece.
        beside: called before the files are renamed, to write other files of the checkpoint.

    Raises:
        ValueError: the folder holds weights already.
        OSError: the folder cannot be written, for example because the disk is full; no temporary file is left. Errors
            of ``beside`` are raised too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if list(folder.glob("*.safetensors")) or (folder / INDEX).exists():
        raise ValueError(f"{folder}: already holds safetensors; choose an empty folder")
    shards = _plan(found, bindings, shard_bytes)
    total = sum(leaf.size for leaf in found.values())
    ensure_room(folder, total)
    files = (
        [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        if len(shards) > 1
        else [SINGLE]
    )
    where = {name: file for shard, file in zip(shards, files, strict=True) for name in shard}
    named = [*files, INDEX] if len(shards) > 1 else files
    partial = [folder / f"{file}.partial" for file in named]
    stream = _tensors(source, found, bindings, progress)
    try:
        with _told(folder):
            for path, shard in zip(partial, shards, strict=False):
                _write_shard(path, shard, stream)
            next(stream, None)  # so that the last piece's progress is reported
        if beside is not None:
            beside()
        if len(shards) > 1:
            write_json(partial[-1], {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})
        with _told(folder):
            for path, file in zip(partial, named, strict=True):
                path.rename(folder / file)
    except BaseException:
        for file in named:  # none existed before
            (folder / file).unlink(missing_ok=True)
        raise
    finally:
        for path in partial:
            path.unlink(missing_ok=True)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Raises an OSError with a message for weights that cannot be written."""
    try:
        yield
    except RetryableError:  # raised by the source
        raise
    except OSError as error:
        said = f"{folder}: cannot be written ({error.strerror}); no weights were left there, make room"
        raise OSError(error.errno, f"{said} and run the same command again") from error


def ensure_room(folder: Path, needed: int, *, advice: str = "make room or choose another disk") -> None:
    """Checks that the disk has room.

    Raises:
        OSError: fewer than ``needed`` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        sizes = f"{size(needed)} are needed, {size(free)} are free"
        raise OSError(errno.ENOSPC, f"{folder}: {sizes}; {advice}")


def size(count: int) -> str:
    """A number of bytes in readable form."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically: it is complete or absent, even after a crash.

    Raises:
        OSError: the file cannot be written.
    """
    with whole(path) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name for a small file, which the caller renames to ``path``. It is removed after an OSError.

    Raises:
        OSError: the file cannot be written; the message is one line.
    """
    temporary = path.with_name(f"{path.name}.partial")
    try:
        yield temporary
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        said = f"{path}: cannot be written ({error.strerror}); make room and run the same command again"
        raise OSError(error.errno, said) from error


def _plan(
    found: Mapping[str, layerwise.Leaf], bindings: Mapping[str, Binding], limit: int
) -> list[dict[str, tuple[Shape, np.dtype]]]:
    """The tensors of each shard, with their shapes and dtypes, in the order of writing."""
    shards: list[dict[str, tuple[Shape, np.dtype]]] = [{}]
    filled = 0
    for group in layerwise.groups(found):
        for path in group.paths:
            shape, dtype = bindings[path].shape, found[path].dtype
            size = math.prod(shape) * dtype.itemsize
            for name, _ in bindings[path].tensors(group.layer):
                if filled + size > limit and shards[-1]:
                    shards.append({})
                    filled = 0
                shards[-1][name] = shape, dtype
                filled += size
    return shards


def _tensors(
    source: layerwise.WeightSource,
    found: Mapping[str, layerwise.Leaf],
    bindings: Mapping[str, Binding],
    progress: layerwise.Progress | None,
) -> Iterator[np.ndarray]:
    for group, path, piece in layerwise.drain(found, source, progress):
        for _, index in bindings[path].tensors(group.layer):
            yield bindings[path].extract(piece, index)


def _write_shard(path: Path, shard: Mapping[str, tuple[Shape, np.dtype]], stream: Iterator[np.ndarray]) -> None:
    """Writes a safetensors file: the header's length in 8 bytes, the JSON header padded to align the data, the data."""
    start, entries = 0, dict[str, Any](__metadata__={"format": "pt"})  # Transformers refuses files without this
    for name, (shape, dtype) in shard.items():
        end = start + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": CODES[dtype.name], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for _ in shard:
            file.write(next(stream).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
