"""A folder's safetensors, read lazily: names, shapes and dtypes first, a tensor's data on request."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from safetensors import SafetensorError, safe_open

from omni_jax.config.foreign import other_weights
from omni_jax.errors import cut, shown
from omni_jax.weights import shards
from omni_jax.weights.shards import Span

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The file of a tensor, its shape, and its dtype in safetensors' spelling (BF16, F32, ...)."""

    file: str
    shape: tuple[int, ...]
    dtype: str


class Safetensors:
    """The tensors of a folder.

    Files are opened to read their headers, and again for each batch of reads. An open file is mapped into memory, and
    what was read of it counts as the process's memory until the file is closed. So use this as a context manager around
    reads that belong together.

    Args:
        folder: holds ``model.safetensors``, or the shards that ``model.safetensors.index.json`` names.
        wanted: selects tensors by name; shards without a wanted tensor are never opened and may be absent.

    Raises:
        ValueError: the folder has no safetensors, the index is broken, a file is absent, truncated or corrupt, or index
            and shards disagree. The message is one line.
    """

    def __init__(self, folder: str | Path, *, wanted: Callable[[str], bool] = lambda name: True):
        self.folder = Path(folder)
        self._open: dict[str, Any] = {}
        self._depth = 0
        self.tensors: dict[str, Stored] = {}
        index = _index(self.folder)
        if index is None:
            self._add(SINGLE, wanted)
            return
        index = {name: file for name, file in index.items() if wanted(name)}
        files = sorted(set(index.values()))
        absent = [file for file in files if not (self.folder / file).is_file()]
        if absent:
            raise ValueError(
                f"{self.folder}: {INDEX} names files that are not there: {_some(absent)}; download or copy them"
            )
        for file in files:
            self._add(file, wanted)
        stray = [name for name, file in index.items() if name not in self.tensors or self.tensors[name].file != file]
        stray += [name for name in self.tensors if name not in index]
        if stray:
            raise ValueError(
                f"{self.folder}: {INDEX} and the files disagree on where {_some(stray)} is; copy the whole folder anew"
            )

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return sorted({self.folder / stored.file for stored in self.tensors.values()})

    def read(self, name: str, spans: Sequence[Sequence[Span]] | None = None) -> np.ndarray:
        """One tensor's data, as stored.

        Args:
            name: the tensor's name.
            spans: the spans of each axis to read, which are joined in that order; None for the whole tensor.

        Raises:
            ValueError: the file cannot be read any more.
        """
        file = self.tensors[name].file
        try:
            if not self._depth:
                with safe_open(self.folder / file, "numpy") as opened:
                    return _read(opened, name, spans)
            if file not in self._open:
                self._open[file] = safe_open(self.folder / file, "numpy")
            return _read(self._open[file], name, spans)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{self.folder / file}: cannot read {cut(name)} ({shown(error)}); copy the file anew"
            ) from None

    def __enter__(self) -> "Safetensors":
        self._depth += 1
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._depth -= 1
        if not self._depth:
            self._open.clear()

    def _add(self, file: str, wanted: Callable[[str], bool]) -> None:
        path = self.folder / file
        try:
            with safe_open(path, "numpy") as opened:
                for name in opened.keys():  # noqa: SIM118  safe_open is no mapping
                    if wanted(name):
                        tensor = opened.get_slice(name)
                        self.tensors[name] = Stored(
                            file=file, shape=tuple(tensor.get_shape()), dtype=tensor.get_dtype()
                        )
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path}: not a whole safetensors file ({shown(error)}); it is truncated or corrupt, copy it anew"
            ) from None


def held_names(folder: str | Path) -> list[str]:
    """The names of a folder's tensors, from its index or its only file; empty where it has no weights.

    Raises:
        ValueError: as in ``Safetensors``, for the index or the only file.
    """
    folder = Path(folder)
    if not ((folder / INDEX).is_file() or (folder / SINGLE).is_file()):
        return []
    index = _index(folder)
    return list(Safetensors(folder).tensors if index is None else index)


def _read(opened: Any, name: str, spans: Sequence[Sequence[Span]] | None) -> np.ndarray:
    if spans is None:
        return opened.get_tensor(name)
    tensor = opened.get_slice(name)
    read = [(target, tensor[shards.slices(source)]) for source, target in shards.gathered(spans)]
    if len(read) == 1:
        return read[0][1]
    found = np.empty([sum(stop - start for start, stop in axis) for axis in spans], read[0][1].dtype)
    for target, values in read:
        found[shards.slices(target)] = values
    return found


def _index(folder: Path) -> dict[str, str] | None:
    """Tensor name to file name; None where one file holds everything."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a model folder, found {'a file' if folder.exists() else 'nothing'} there")
    if (folder / INDEX).is_file():
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            if not all(isinstance(item, str) for pair in index.items() for item in pair):
                raise TypeError("weight_map must map names to files")
            # Only files of the folder itself: an index must not point elsewhere on the disk.
            if any(Path(file).name != file or len(file) > 255 for file in index.values()):
                raise ValueError("weight_map names what is no file of the folder")
            return index
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {shown(error)}"
            raise ValueError(f"{folder / INDEX}: not a safetensors index ({reason}); copy it anew") from None
    if (folder / SINGLE).is_file():
        return None
    if list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder}: found shards but no {INDEX} to say what they hold; copy it from the checkpoint")
    if other := other_weights(folder):
        raise ValueError(f"{folder}: expected safetensors, found {other}")
    raise ValueError(f"{folder}: expected {SINGLE} or {INDEX} with its shards, found no weights")


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(cut(name) for name in names[:limit]) + (
        f" and {len(names) - limit} more" if len(names) > limit else ""
    )
