"""Converted checkpoints: our own layout, saved with Orbax, which load onto any mesh without a table.

    config.json, tokenizer files, ...   copied from the Hugging Face folder
    spk_dict.pt                         the voices of Qwen2.5-Omni, read from there and written anew
    weights/thinker                     one Orbax checkpoint a group of pieces: a part's leaves that are not stacked,
    weights/thinker.000, .001 ...       and each layer of those that are; in each, a dict keyed by path
    omni_jax.json                       the manifest: format, dtype, shapes, sizes on the disk
    omni_jax.partial.json               the plan, while the conversion runs

A folder counts only with its manifest, which is put there, atomically, when everything else is on the disk. Orbax
renames each group into place when it is whole, so a conversion that was stopped goes on with the first group that is
not there, if its plan is still the same.
"""

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

import omni_jax
from omni_jax import weights
from omni_jax.config import OmniConfig, from_hf, read_json
from omni_jax.models import parts as model_parts
from omni_jax.weights import pieces, speakers

FORMAT = 1
MANIFEST, UNFINISHED, PIECES = "omni_jax.json", "omni_jax.partial.json", "weights"
TEMPORARY = ".orbax-checkpoint-tmp"  # in the names of folders that Orbax has not finished


def is_converted(folder: str | Path) -> bool:
    """Whether a folder is a converted checkpoint, finished or not."""
    return (Path(folder) / MANIFEST).exists() or (Path(folder) / UNFINISHED).exists()


def convert(
    source: str | Path, target: str | Path, *, dtype: Any = None, progress: pieces.Progress | None = None
) -> Path:
    """Converts a folder in the published layout, layer by layer; run again after a stop, it goes on where it was.

    Args:
        source: a Hugging Face folder.
        target: made where it is not there. A finished conversion of the same files is left as it is.
        dtype: float32 or bfloat16; None for the stored one.
        progress: called with (bytes done, bytes in all, path) after each piece.

    Returns:
        The target.

    Raises:
        ValueError: the source is not a whole checkpoint, voices included, or the target holds another one.
        OSError: the target cannot be written, the disk is full say; what is finished stays for the next run.
    """
    source, target = _folder(source), Path(target)
    if is_converted(source):
        raise ValueError(f"{source}: expected a Hugging Face folder, got a converted one; it needs no conversion")
    config = from_hf(source)
    reader, abstract = weights.published(source, config, dtype=dtype)
    voices = weights.voices(source, config)
    origin: dict[str, Any] = {
        path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in reader.tensors.files
    }
    for name in ["config.json", *([speakers.FILE] if voices else [])]:
        origin[name] = hashlib.sha256((source / name).read_bytes()).hexdigest()
    _write(
        reader,
        pieces.leaves(abstract),
        target,
        reader.dtype,
        origin=origin,
        files_from=source,
        voices=voices,
        progress=progress,
    )
    return target


def save(
    parts: Mapping[str, nnx.Module],
    folder: str | Path,
    *,
    files_from: str | Path,
    progress: pieces.Progress | None = None,
) -> Path:
    """Saves parts as a converted checkpoint.

    Args:
        parts: of a whole model, or of one without its speaking parts, which config.json then says.
        folder: made where it is not there; must not hold a checkpoint yet.
        files_from: the folder whose config.json, tokenizer, voices and other small files belong to the parts.

    Raises:
        ValueError: the folder holds a checkpoint, the parts are not the model that config.json describes, or its voices
            are absent or none.
        OSError: the folder cannot be written.
    """
    folder, source, speech = Path(folder), weights.InMemory(parts), "talker" in parts
    config, dtype = from_hf(files_from), weights.float_dtype(source.dtype)
    found = pieces.leaves(model_parts.abstract(config, dtype, speech=speech))
    pieces.agree(found, pieces.leaves(parts), "the parts")
    _write(
        source,
        found,
        folder,
        dtype,
        origin=None,
        files_from=files_from,
        voices=weights.voices(files_from, config, speech=speech),
        silent=config.talker is not None and not speech,
        progress=progress,
    )
    return folder


def load(
    folder: str | Path,
    config: OmniConfig,
    *,
    dtype: Any = None,
    speech: bool = True,
    shardings: weights.Shardings | None = None,
    progress: pieces.Progress | None = None,
) -> dict[str, nnx.Module]:
    """Reads a converted folder; arguments, result and memory as in ``weights.load``.

    Raises:
        ValueError: the conversion was not finished, the folder is not this model's, or a piece is gone, cannot be
            read, or has another size on the disk than when it was written. Sizes are compared, not contents: bytes
            that changed in place may pass, and only a comparison with the source finds them.
    """
    source, abstract = converted(folder, config, dtype=dtype, speech=speech)
    return weights.assemble(source, abstract, shardings=shardings, progress=progress)


def export(
    source: str | Path,
    target: str | Path,
    *,
    dtype: Any = None,
    progress: pieces.Progress | None = None,
    **options: Any,
) -> Path:
    """Writes a converted folder back in the published layout.

    Args:
        source: a converted folder.
        target: made where it is not there; must not hold weights yet.
        dtype: float32 or bfloat16; None for the stored one.
        **options: of ``weights.save``.

    Raises:
        ValueError: as in ``load`` and ``weights.save``.
    """
    config_json = read_json(_folder(source) / "config.json")
    reader, abstract = converted(source, from_hf(config_json), dtype=dtype)
    speech = "talker" in abstract
    options |= {"files_from": source, "progress": progress}
    return weights.save(reader, target, config_json, dtype=reader.dtype, speech=speech, **options)


def converted(
    folder: str | Path, config: OmniConfig, *, dtype: Any = None, speech: bool = True
) -> tuple["Converted", dict[str, nnx.Module]]:
    """Checks a converted folder against the model, without reading weights.

    Args:
        dtype: as in ``load``; None for the stored one.

    Returns:
        The folder as a source of pieces, and the abstract parts that it fills.

    Raises:
        ValueError: as in ``load``.
    """
    folder = _folder(folder)
    manifest = _manifest(folder)
    dtype = weights.float_dtype(manifest["dtype"] if dtype is None else dtype)
    speech = speech and config.talker is not None
    abstract = model_parts.abstract(config, dtype, speech=speech)
    wanted, held = pieces.leaves(abstract), _leaves(manifest)
    if not speech:
        held = {path: leaf for path, leaf in held.items() if path.split(".")[0] not in model_parts.SPEECH}
    pieces.agree(wanted, held, str(folder))
    names = [group.name for group in pieces.groups(wanted)]
    damaged = [name for name in names if _bytes(folder / PIECES / name) != manifest["bytes"].get(name)]
    if damaged:
        raise ValueError(
            f"{folder}: {len(damaged)} of {len(names)} pieces are gone, truncated or changed, "
            f"the first is {PIECES}/{damaged[0]}; convert the checkpoint again"
        )
    return Converted(folder=folder, dtype=dtype, leaves=wanted), abstract


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Source: a converted folder, read a group at a time."""

    folder: Path
    dtype: np.dtype
    leaves: Mapping[str, pieces.Leaf]

    def read(self, group: pieces.Group) -> Iterator[tuple[str, np.ndarray]]:
        where = self.folder / PIECES / group.name
        try:
            with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                held = reader.restore(where.absolute())
            for path in group.paths:
                if held[path].shape != self.leaves[path].piece:
                    raise ValueError(f"{path} has shape {list(held[path].shape)}, not {list(self.leaves[path].piece)}")
        except (ValueError, KeyError, OSError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"{where}: damaged ({reason[:200]}); convert the checkpoint again") from None
        for path in group.paths:
            yield path, held.pop(path).astype(self.leaves[path].dtype, copy=False)


def _write(
    source: pieces.Source,
    found: Mapping[str, pieces.Leaf],
    target: Path,
    dtype: np.dtype,
    *,
    origin: Mapping[str, Any] | None,
    files_from: str | Path,
    voices: Mapping[str, weights.Speaker],
    silent: bool = False,
    progress: pieces.Progress | None,
) -> None:
    plan = {
        "format": FORMAT,
        "library": omni_jax.__version__,
        "dtype": dtype.name,
        "leaves": {path: _described(leaf, dtype) for path, leaf in found.items()},
        "origin": origin,
    }
    done = _prepare(target, plan)
    if done is None:
        return
    weights.copy_files(files_from, target, voices)
    if silent:
        weights.write_json(target / "config.json", {**read_json(target / "config.json"), "enable_audio_output": False})
    groups = pieces.groups(found)
    sizes = {group.name: sum(found[path].piece_size for path in group.paths) for group in groups}
    weights.ensure_room(target, sum(size for name, size in sizes.items() if name not in done))
    total, written = sum(sizes.values()), 0
    for group in groups:
        if group.name not in done:
            # Named nowhere, or it would stay beside the next group.
            _write_group(
                {path: piece.astype(found[path].dtype, copy=False) for path, piece in source.read(group)},
                target / PIECES / group.name,
            )
        written += sizes[group.name]
        if progress is not None:
            progress(written, total, group.name)
    size = {group.name: _bytes(target / PIECES / group.name) for group in groups}
    weights.write_json(target / MANIFEST, {**plan, "bytes": size})
    (target / UNFINISHED).unlink()


def _prepare(target: Path, plan: Mapping[str, Any]) -> set[str] | None:
    """Makes the target ready: the groups that a stopped run of the same plan left, None where nothing is to do."""
    if (target / MANIFEST).exists():
        if _is(plan, target / MANIFEST):
            return None
        raise ValueError(f"{target}: already holds a converted checkpoint; choose another folder, or delete it first")
    if list(target.glob("*.safetensors")):
        raise ValueError(f"{target}: holds a checkpoint in safetensors; choose another folder for the converted one")
    held, stale = target / PIECES, target / f"{PIECES}.stale"
    if held.exists() and not _is(plan, target / UNFINISHED):
        if not (target / UNFINISHED).exists():
            raise ValueError(f"{held}: already there, and not of a conversion; choose another folder")
        # Renamed first, or a stop while deleting would leave half a group to be taken for a whole one.
        shutil.rmtree(stale, ignore_errors=True)
        held.rename(stale)
    shutil.rmtree(stale, ignore_errors=True)
    target.mkdir(parents=True, exist_ok=True)
    weights.write_json(target / UNFINISHED, plan)
    held.mkdir(exist_ok=True)
    for path in held.iterdir():
        if TEMPORARY in path.name:
            shutil.rmtree(path)
    return {path.name for path in held.iterdir()}


def _write_group(held: Mapping[str, np.ndarray], where: Path) -> None:
    try:
        with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
            writer.save(where.absolute(), args=ocp.args.PyTreeSave(dict(held)))
    except (OSError, ValueError) as error:
        # TensorStore reports a full disk as a ValueError whose text says so.
        full = (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in str(error)
        reason = "the disk is full" if full else next(iter(str(error).splitlines()), type(error).__name__)
        number = errno.ENOSPC if full else getattr(error, "errno", None) or errno.EIO
        kept = "make room and run the same command again, finished pieces are kept"
        raise OSError(number, f"{where}: cannot be written ({reason}); {kept}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs the tracebacks of its threads; the error itself is raised, and said once."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _bytes(folder: Path) -> int:
    """Size of all files under a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _folder(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; give the folder that holds config.json and the weights")
    return path


def _manifest(folder: Path) -> dict[str, Any]:
    if not (folder / MANIFEST).exists():
        if (folder / UNFINISHED).exists():
            raise ValueError(
                f"{folder}: its conversion was not finished; run it again, and it goes on where it stopped"
            )
        raise ValueError(f"{folder}: expected a converted checkpoint, found no {MANIFEST} in it")
    manifest = _read_plan(folder / MANIFEST)
    damaged = ValueError(f"{folder / MANIFEST}: damaged; convert the checkpoint again")
    if manifest is None:
        raise damaged
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{folder}: converted in format {manifest.get('format')}, expected {FORMAT}; convert the checkpoint again"
        )
    if not _whole(manifest):
        raise damaged
    return manifest


def _whole(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest says what a reader asks of it."""
    found, sizes = manifest.get("leaves"), manifest.get("bytes")
    return (
        manifest.get("dtype") in ("float32", "bfloat16")
        and isinstance(sizes, dict)
        and isinstance(found, dict)
        and all(isinstance(leaf, dict) and {"shape", "stacked"} <= leaf.keys() for leaf in found.values())
        and all(isinstance(leaf["shape"], list) for leaf in found.values())
        and all(leaf.get("dtype", "float32") in ("float32", "bfloat16") for leaf in found.values())
    )


def _read_plan(path: Path) -> dict[str, Any] | None:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return plan if isinstance(plan, dict) else None


def _is(plan: Mapping[str, Any], path: Path) -> bool:
    """Whether the manifest at ``path`` is of this plan: the same source, untouched since, into the same leaves."""
    other = _read_plan(path)
    keys = ("format", "dtype", "leaves", "origin")
    return other is not None and plan["origin"] is not None and all(other.get(key) == plan[key] for key in keys)


def _leaves(manifest: Mapping[str, Any]) -> dict[str, pieces.Leaf]:
    return {
        path: pieces.Leaf(
            shape=tuple(leaf["shape"]),
            stacked=leaf["stacked"],
            dtype=weights.float_dtype(leaf.get("dtype", manifest["dtype"])),
        )
        for path, leaf in manifest["leaves"].items()
    }


def _described(leaf: pieces.Leaf, dtype: np.dtype) -> dict[str, Any]:
    """A leaf in a manifest, which names its dtype where it is not that of the whole."""
    described: dict[str, Any] = {"shape": list(leaf.shape), "stacked": leaf.stacked}
    return described if leaf.dtype == dtype else {**described, "dtype": leaf.dtype.name}
