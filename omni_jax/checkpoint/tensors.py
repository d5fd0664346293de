"""The pieces of a converted checkpoint, which Orbax writes: one Orbax checkpoint a group, a dict keyed by path in each.

Pieces are written in chunks that are no larger than a device's block, so that reading a block decodes little else.
Orbax can read only a whole array or a sharded one. Blocks on the host are needed here, so they are read with
TensorStore, which Orbax uses too. It reads from a local disk and from gs:// (and s3://, file://) alike.
"""

import errno
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from omni_jax.errors import RetryableError, UserError, is_user_error
from omni_jax.weights import layerwise, shards

PIECES = "weights"  # the folder of the groups
CHUNK_BYTES = 4 << 20
# Axes of which a device may hold very few indices: each index is a chunk of its own.
CHUNKED = ("expert", "heads", "kv_heads")
# Prefixes of TensorStore's errors where a store answered late or incompletely. TensorStore has already retried by then.
PASSING = ("ABORTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")


def is_url(folder: str | Path) -> bool:
    """Whether a folder is a URL, not a path on this machine."""
    return "://" in str(folder)


def download_small_files(folder: str, target: Path) -> None:
    """Copies the files of a folder at a URL, without its subfolders (such as the pieces).

    Raises:
        ValueError: the folder cannot be read.
        RetryableError: the store did not answer in time; another try may succeed.
    """
    try:
        store = ts.KvStore.open(f"{folder.rstrip('/')}/").result()
        names = [key.decode() for key in store.list().result()]
        reading = {name: store.read(name) for name in names if "/" not in name}
        for name, found in reading.items():
            (target / name).write_bytes(found.result().value)
    except (ValueError, OSError) as error:
        kind = RetryableError if _passing(error) else UserError
        raise kind(f"{folder}: cannot be read ({_reason(error)}); check the address and its permissions") from None


@dataclass(frozen=True, kw_only=True)
class Converted:
    """WeightSource: the pieces of a converted checkpoint.

    Attributes:
        folder: the folder that holds the pieces, or its URL.
        dtype: as in ``layerwise.WeightSource``.
        leaves: shapes and dtypes of the leaves, by path; pieces of other float dtypes are cast.
    """

    folder: str | Path
    dtype: np.dtype
    leaves: Mapping[str, layerwise.Leaf]

    def read(self, group: layerwise.Group) -> Iterator[tuple[str, np.ndarray]]:
        for path, found in self.blocks(group, {path: [shards.whole(self.leaves[path].piece)] for path in group.paths}):
            yield path, found.pop()

    def blocks(self, group: layerwise.Group, wanted: layerwise.Wanted) -> Iterator[tuple[str, list[np.ndarray]]]:
        where = self.folder if is_url(self.folder) else Path(self.folder).absolute().as_uri()
        base = f"{str(where).rstrip('/')}/{PIECES}/{group.name}/"
        try:
            # One context for all arrays: they share what was read of the checkpoint's index.
            context = ts.Context({"cache_pool": {"total_bytes_limit": 64 << 20}})
            opening = {path: ts.open(_spec(base, path), context=context) for path in group.paths}
            begun = {
                path: _begin(array.result(), self.leaves[path], wanted[path], path)
                for path, array in opening.items()
                if self.leaves[path].piece_size <= layerwise.SMALL_BYTES
            }
            # Small pieces are requested all at once, because a cloud store has a long latency; large ones in turn.
            for path in group.paths:
                leaf = self.leaves[path]
                reading = begun.pop(path, None) or _begin(opening[path].result(), leaf, wanted[path], path)
                yield path, [np.asarray(values.result()).astype(leaf.dtype, copy=False) for values in reading]
        except (ValueError, KeyError, OSError) as error:
            shown = f"{str(self.folder).rstrip('/')}/{PIECES}/{group.name}"
            if _passing(error):
                raise RetryableError(f"{shown}: cannot be read now ({_reason(error)}); try again") from None
            raise UserError(f"{shown}: damaged ({_reason(error)}); convert the checkpoint again") from None


def write_group(held: Mapping[str, Any], where: Path, leaves: Mapping[str, layerwise.Leaf]) -> None:
    """Writes the pieces of a group, NumPy or JAX arrays. The folder appears only when it is complete.

    In a job of several processes all must call it, and each writes the shards of its devices.

    Raises:
        OSError: the group cannot be written.
    """
    chunks = {path: _chunked(leaves[path]) for path in held}
    try:
        with quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
            writer.save(where.absolute(), args=ocp.args.PyTreeSave(dict(held), save_args=chunks))
    except (OSError, ValueError) as error:
        # TensorStore reports a full disk as a ValueError whose text says so.
        full = (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in str(error)
        reason = "the disk is full" if full else _reason(error)
        number = errno.ENOSPC if full else getattr(error, "errno", None) or errno.EIO
        kept = "make room and run the same command again, finished pieces are kept"
        raise OSError(number, f"{where}: cannot be written ({reason}); {kept}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses tracebacks that Orbax logs from its threads: the error itself is raised anyway.

    After an error, pending writes end after Orbax has closed the event loop that waited for them, and a thread of
    TensorStore's would print a traceback for each. From then on these tracebacks stay suppressed.
    """
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    before, logger.disabled = logger.disabled, True
    sys.unraisablehook = partial(_but_late_ends, hook)
    try:
        yield
        sys.unraisablehook = hook
    finally:
        logger.disabled = before


def _but_late_ends(hook: Callable[[Any], object], unraisable: Any) -> None:
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        hook(unraisable)


def size_of(folder: Path) -> int:
    """Size of all files under a folder in bytes; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _chunked(leaf: layerwise.Leaf) -> ocp.SaveArgs:
    if not leaf.piece:
        return ocp.SaveArgs()
    axes = tuple(axis for axis, name in enumerate(leaf.axes) if name in CHUNKED)
    return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=axes)


def _begin(array: Any, leaf: layerwise.Leaf, wanted: Sequence[shards.Block], path: str) -> list[Any]:
    """Starts to read blocks of an array."""
    if array.shape != leaf.piece:
        raise ValueError(f"{path} has shape {list(array.shape)}, not {list(leaf.piece)}")
    return [array[shards.slices(block)].read() for block in wanted]


def _spec(base: str, path: str) -> dict[str, Any]:
    return {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{path}/"}}


def _passing(error: Exception) -> bool:
    """Whether another try may succeed. TensorStore raises only ValueErrors, whose messages begin with the status."""
    return str(error).startswith(PASSING) or (isinstance(error, OSError) and not is_user_error(error))


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
