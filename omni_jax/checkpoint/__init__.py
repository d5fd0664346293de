"""Converted checkpoints: our own layout, saved with Orbax, which loads onto any mesh without a table.

    config.json, tokenizer files, ...   copied from the Hugging Face folder
    spk_dict.pt                         the speakers of Qwen2.5-Omni, read from there and written anew
    weights/thinker                     one Orbax checkpoint a group of pieces: a part's leaves that are not stacked,
    weights/thinker.000, .001 ...       and each layer of those that are; in each, a dict keyed by path
    omni_jax.json                       the manifest: format, dtype, shapes, sizes on the disk
    omni_jax.partial.json               the plan, while the conversion runs

A converted checkpoint loads onto any mesh, from a disk or from a URL that TensorStore can read (gs://bucket/folder,
s3://bucket/folder). Each process reads the blocks of its own devices.

A folder is valid only with its manifest, which is written atomically after everything else is on the disk. The plan
records each complete group with its size. So a conversion that was stopped continues with the first group that is not
recorded, if its plan is still the same. Only one process writes at a time (``locks.py``). Run again over a finished
folder, a conversion rewrites the groups whose size has changed.
"""

import atexit
import errno
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

import omni_jax
from omni_jax import weights
from omni_jax.checkpoint import manifest as manifests
from omni_jax.checkpoint.manifest import ELSEWHERE, FORMAT, MANIFEST, UNFINISHED
from omni_jax.checkpoint.tensors import PIECES, Converted, download_small_files, is_url, size_of, write_group
from omni_jax.config import OmniConfig, from_hf, read_json
from omni_jax.errors import RetryableError, UserError, check_path, check_progress, is_user_error
from omni_jax.locks import only_writer
from omni_jax.models import parts as model_parts
from omni_jax.models.memory_layout import to_canonical
from omni_jax.weights import layerwise, speakers

T = TypeVar("T")


def is_converted(folder: str | Path) -> bool:
    """Whether a local folder is a converted checkpoint, finished or not."""
    return (Path(folder) / MANIFEST).exists() or (Path(folder) / UNFINISHED).exists()


@cache
def nearby(url: str) -> Path:
    """A local folder for a converted checkpoint at a URL: small files are copied, weights stay at the URL.

    ``load`` of the folder reads the weights from the URL. The folder is deleted when the process ends.

    Raises:
        ValueError: the URL cannot be read, or holds no converted checkpoint.
        RetryableError: the store did not answer; another try may succeed.
    """
    folder = Path(tempfile.mkdtemp(prefix="omni_jax."))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    download_small_files(url, folder)
    manifest = manifests.read_manifest(folder, name=url)
    weights.write_json(folder / MANIFEST, {**manifest, ELSEWHERE: url})
    return folder


def convert(
    source: str | Path, target: str | Path, *, dtype: Any = None, progress: layerwise.Progress | None = None
) -> Path:
    """Converts a folder in the published layout, group by group. Run again after a stop, it continues where it stopped.

    Args:
        source: a Hugging Face folder.
        target: the folder to write; created if it does not exist. A finished conversion of the same files is kept.
        dtype: float32 or bfloat16; None for the stored one.
        progress: called with (bytes done, bytes in all, name of the group) after each group.

    Returns:
        The target.

    Raises:
        ValueError: the source is not a complete checkpoint, speakers included, or the target holds another one, is
            inside the source or is a URL.
        OSError: the target cannot be written, for example because the disk is full; finished groups are kept for the
            next run.
    """
    if jax.process_count() > 1:
        raise ValueError("convert: expected one process, and this job has several; convert before it starts")
    target = room_for(target, source=source)
    source = _folder(source)
    if is_converted(source):
        raise ValueError(f"{source}: expected a Hugging Face folder, got a converted one; it needs no conversion")
    config = weights.config_of(source)
    reader, abstract = weights.published(source, config, dtype=dtype)
    known_speakers = weights.voices(source, config)
    origin: dict[str, Any] = {
        path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in reader.tensors.files
    }
    for name in ["config.json", *([speakers.FILE] if known_speakers else [])]:
        origin[name] = hashlib.sha256((source / name).read_bytes()).hexdigest()
    _write(
        reader,
        layerwise.leaves(abstract),
        target,
        reader.dtype,
        origin=origin,
        files_from=source,
        known_speakers=known_speakers,
        silent=config.talker is None and from_hf(source).talker is not None,
        progress=progress,
    )
    return target


def save(
    parts: Mapping[str, nnx.Module],
    folder: str | Path,
    *,
    files_from: str | Path,
    progress: layerwise.Progress | None = None,
) -> Path:
    """Saves parts as a converted checkpoint.

    In a job of several processes all must call it, and each writes the shards of its devices.

    Args:
        parts: parts of a whole model, or of one without the parts that speak (the written config.json then says so); as
            they are declared, or as ``memory_layout.to_platform_layout`` returns them.
        folder: the folder to write; created if it does not exist. It must not hold a checkpoint yet, and all processes
            must share it.
        files_from: the folder whose config.json, tokenizer, speakers and other small files belong to the parts.
        progress: called with (bytes done, bytes in all, name of the group) after each group.

    Raises:
        ValueError: the folder is a URL or holds a checkpoint, the parts are not the model that config.json describes,
            or the speakers' file is missing or broken.
        OSError: the folder cannot be written.
    """
    folder, source, speech = room_for(folder), weights.InMemory(parts), "talker" in parts
    config, dtype = weights.config_of(files_from), weights.float_dtype(source.dtype)
    found = layerwise.leaves(model_parts.abstract(config, dtype, speech=speech))
    layerwise.check_leaves(found, layerwise.leaves(jax.eval_shape(to_canonical, parts)), "the parts")
    _write(
        source,
        found,
        folder,
        dtype,
        origin=None,
        files_from=files_from,
        known_speakers=weights.voices(files_from, config, speech=speech),
        silent=not speech and from_hf(files_from).talker is not None,
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
    progress: layerwise.Progress | None = None,
) -> model_parts.OmniParts:
    """Reads a converted folder or URL; arguments, result and memory as in ``weights.load``.

    The mesh need not be the one on which the parts were saved, if there was any.

    Raises:
        ValueError: the conversion was not finished, the folder is not this model's, or a piece is missing, cannot be
            read, or has another size on the disk than when it was written. Only sizes are compared, not contents: bytes
            that changed in place may go unnoticed, and only a comparison with the source finds them.
    """
    source, abstract = converted(folder, config, dtype=dtype, speech=speech)
    return weights.assemble(source, abstract, shardings=shardings, progress=progress)


def export(
    source: str | Path,
    target: str | Path,
    *,
    dtype: Any = None,
    progress: layerwise.Progress | None = None,
    **options: Any,
) -> Path:
    """Writes a converted folder back in the published layout.

    Args:
        source: a converted folder, or its URL.
        target: the folder to write; created if it does not exist. It must not hold weights yet.
        dtype: float32 or bfloat16; None for the stored one.
        **options: further arguments of ``weights.save``.

    Raises:
        ValueError: as in ``load`` and ``weights.save``, or the target is inside the source or is a URL.
    """
    target = room_for(target, source=source)
    folder = _folder(source)
    config_json = read_json(folder / "config.json")
    reader, abstract = converted(folder, from_hf(config_json), dtype=dtype)
    speech = abstract.talker is not None
    options |= {"files_from": folder, "progress": progress}
    return weights.save(reader, target, config_json, dtype=reader.dtype, speech=speech, **options)


def converted(
    folder: str | Path, config: OmniConfig, *, dtype: Any = None, speech: bool = True
) -> tuple["Converted", model_parts.OmniParts]:
    """Checks a converted folder against the model, without reading weights.

    Args:
        dtype: as in ``load``; None for the stored one.

    Returns:
        The folder as a source of pieces, and the abstract parts for its weights.

    Raises:
        ValueError: as in ``load``.
    """
    folder = _folder(folder)
    manifest = manifests.read_manifest(folder)
    dtype = weights.float_dtype(manifest["dtype"] if dtype is None else dtype)
    speech = speech and config.talker is not None
    abstract = model_parts.abstract(config, dtype, speech=speech)
    wanted, held = layerwise.leaves(abstract), manifests.leaves(manifest)
    if not speech:
        held = {path: leaf for path, leaf in held.items() if not model_parts.is_spoken(path.split(".")[0])}
    layerwise.check_leaves(wanted, held, str(folder))
    names = [group.name for group in layerwise.groups(wanted)]
    if ELSEWHERE in manifest:
        return Converted(folder=manifest[ELSEWHERE], dtype=dtype, leaves=wanted), abstract
    damaged = [name for name in names if size_of(folder / PIECES / name) != manifest["bytes"].get(name)]
    if damaged:
        raise ValueError(
            f"{folder}: {len(damaged)} of {len(names)} pieces are gone, truncated or changed, "
            f"the first is {PIECES}/{damaged[0]}; convert the checkpoint again"
        )
    return Converted(folder=folder, dtype=dtype, leaves=wanted), abstract


def _write(
    source: layerwise.WeightSource,
    found: Mapping[str, layerwise.Leaf],
    target: Path,
    dtype: np.dtype,
    *,
    origin: Mapping[str, Any] | None,
    files_from: str | Path,
    known_speakers: Mapping[str, weights.Speaker],
    silent: bool = False,
    progress: layerwise.Progress | None,
) -> None:
    check_progress(progress)
    plan = {
        "format": FORMAT,
        "library": omni_jax.__version__,
        "dtype": dtype.name,
        "leaves": manifests.described(found, dtype),
        "origin": origin,
    }
    groups = layerwise.groups(found)
    sizes = {group.name: sum(found[path].piece_size for path in group.paths) for group in groups}
    whole: dict[str, int] = {}  # the groups that are on the disk, and their sizes when they were written

    def begin() -> list[str] | None:
        lock.enter_context(only_writer(target))
        kept = _prepare(target, plan, [group.name for group in groups])
        if kept is not None:
            whole.update(kept)
            weights.write_json(target / UNFINISHED, {**plan, "bytes": whole})
            weights.ensure_room(target, sum(size for name, size in sizes.items() if name not in whole))
        weights.copy_files(files_from, target, known_speakers, again=kept is not None)
        if silent:
            described = {**read_json(target / "config.json"), "enable_audio_output": False}
            weights.write_json(target / "config.json", described)
        return None if kept is None else list(whole)

    def note(name: str) -> None:
        whole[name] = size_of(target / PIECES / name)
        weights.write_json(target / UNFINISHED, {**plan, "bytes": whole})

    def end() -> None:
        if changed := [name for name, size in whole.items() if size_of(target / PIECES / name) != size]:
            raise OSError(
                errno.EIO,
                f"{target}: {PIECES}/{changed[0]} changed while the others were written; see that nobody else writes "
                "there, and run the same command again",
            )
        weights.write_json(target / MANIFEST, {**plan, "bytes": whole})
        (target / UNFINISHED).unlink()

    with ExitStack() as lock:
        done = _by_one(begin, [])
        if done is None:
            return
        total, written = sum(sizes.values()), 0
        for group in groups:
            if group.name not in done:
                # Not bound to a name, because the group would then stay in memory beside the next one.
                write_group(
                    {path: piece.astype(found[path].dtype, copy=False) for path, piece in source.read(group)},
                    target / PIECES / group.name,
                    found,
                )
                if jax.process_index() == 0:
                    note(group.name)
            written += sizes[group.name]
            if progress is not None:
                progress(written, total, group.name)
        _by_one(end, None)


def _by_one(action: Callable[[], T], others: T) -> T:
    """Runs an action on the first of several processes. The others wait for it; they return ``others`` or fail too."""
    if jax.process_count() == 1:
        return action()
    result, error, kind = others, None, 0
    if jax.process_index() == 0:
        try:
            result = action()
        except (ValueError, OSError) as raised:
            error, kind = raised, 1 if is_user_error(raised) else 2
    kind = multihost_utils.broadcast_one_to_all(np.asarray(kind))
    if error is not None:
        raise error
    if kind:
        raise (UserError if kind == 1 else RetryableError)(
            "the first process could not write the checkpoint; its message says why"
        )
    return result


def _prepare(target: Path, plan: Mapping[str, Any], names: Sequence[str]) -> dict[str, int] | None:
    """Prepares the target and returns the groups to keep from an earlier run of the same plan, with their sizes.

    None means that the target is finished. A group is kept if its size is that recorded when it was written; others are
    written anew, in a finished folder too.
    """
    held, finished = target / PIECES, (target / MANIFEST).exists()
    noted = target / MANIFEST if finished else target / UNFINISHED
    known = manifests.sizes(noted)
    kept = {name: known[name] for name in names if known.get(name) and size_of(held / name) == known[name]}
    if finished and not manifests.matches(plan, noted):
        raise ValueError(f"{target}: already holds a converted checkpoint; choose another folder, or delete it first")
    if finished and len(kept) == len(names):
        (target / UNFINISHED).unlink(missing_ok=True)
        return None
    if list(target.glob("*.safetensors")):
        raise ValueError(f"{target}: holds a checkpoint in safetensors; choose another folder for the converted one")
    if held.exists() and not manifests.matches(plan, noted):
        if not (target / UNFINISHED).exists():
            raise ValueError(f"{held}: already there, and not of a conversion; choose another folder")
        kept = {}
    weights.write_json(target / UNFINISHED, {**plan, "bytes": kept})
    (target / MANIFEST).unlink(missing_ok=True)
    held.mkdir(exist_ok=True)
    for path in held.iterdir():
        if path.name not in kept:
            shutil.rmtree(path)
    return kept


def room_for(target: str | Path, *, source: str | Path | None = None) -> Path:
    """Checks a folder to write a checkpoint to, as far as is possible before the source is read.

    Args:
        source: the source of ``target``, which must not contain the target.

    Raises:
        ValueError: the target is a URL or a file, or is inside ``source``.
    """
    check_path("folder", target)
    if is_url(target):
        raise ValueError(
            f"{target}: expected a local folder to write, got an address; write to a local folder, then copy it: "
            f"gcloud storage cp -r FOLDER {target}"
        )
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target}: expected a folder to write, got a file; choose another name")
    if source is not None and not is_url(source) and Path(source).resolve() in target.resolve().parents:
        raise ValueError(f"{target}: lies in {source}, which it is made from; choose a folder outside of it")
    return target


def _folder(path: str | Path) -> Path:
    check_path("folder", path)
    if is_url(path):
        return nearby(str(path))
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; give the folder that holds config.json and the weights")
    return path
