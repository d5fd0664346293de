"""Checks, loads and writes checkpoints in the published layout. All checks come before any weights are read."""

import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from omni_jax.config import OmniConfig, family_of, foreign, from_hf, speech
from omni_jax.errors import cut, shown
from omni_jax.locks import only_writer
from omni_jax.models import parts as model_parts
from omni_jax.models.parts import OmniParts
from omni_jax.weights import layerwise, safetensors_writer, speakers
from omni_jax.weights.layerwise import InMemory, Progress, Published, WeightSource
from omni_jax.weights.safetensors_reader import Safetensors, held_names
from omni_jax.weights.table import Binding, bind, report
from omni_jax.weights.tables import common
from omni_jax.weights.to_devices import Shardings, assemble

# A checkpoint's other files are small: configuration, tokenizer, templates, notes. Larger ones are not copied.
COPIED_BYTES = 64 << 20
NOT_COPIED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.bin.index.json",
    "*.pt",
    "*.pth",
    "*.gguf",
    "*.h5",
    "*.msgpack",
)
NOT_COPIED += ("*.onnx", "*.partial", "omni_jax*.json", ".*")


def _table(config: OmniConfig) -> ModuleType:
    """The table of a configuration's family."""
    return family_of(config).module("weights.tables")


def config_of(folder: str | Path) -> OmniConfig:
    """The configuration of a folder, without the parts that speak if the folder has no weights for them.

    A folder without tensors of these parts holds a model that only writes text, whatever config.json says: Transformers
    writes such folders after ``disable_talker``.

    Raises:
        ValueError: as in ``from_hf``, or the files that name the tensors are broken.
    """
    config = from_hf(folder)
    names = held_names(folder) if config.talker is not None else []
    return config.silent() if names and not any(map(_table(config).is_spoken, names)) else config


def load(
    folder: str | Path,
    config: OmniConfig,
    *,
    dtype: Any,
    speech: bool = True,
    shardings: Shardings | None = None,
    progress: Progress | None = None,
) -> OmniParts:
    """Reads a folder in the published layout into parts on the devices.

    Args:
        folder: holds safetensors, single or sharded.
        config: the folder's configuration.
        dtype: float32 or bfloat16; weights of other dtypes are cast. Qwen2.5-Omni's vocoder (DiT and BigVGAN) is always
            float32.
        speech: False skips the parts that only speech needs: their tensors are neither read nor checked, and shards
            that hold nothing else may be absent.
        shardings: sharding of each leaf, by path; a leaf without one goes to the default device.
        progress: called with (bytes done, bytes in all, path) after each piece.

    Raises:
        ValueError: the folder does not hold exactly this model; all faults in one report.
    """
    source, abstract = published(folder, config, dtype=dtype, speech=speech)
    return assemble(source, abstract, shardings=shardings, progress=progress)


def published(
    folder: str | Path, config: OmniConfig, *, dtype: Any = None, speech: bool = True
) -> tuple[Published, OmniParts]:
    """Checks a folder in the published layout against the model, by names, shapes and dtypes only.

    Args:
        folder: as in ``load``.
        config: as in ``load``.
        dtype: as in ``load``; None for the stored one: bfloat16 if all tensors whose dtype may be chosen are bfloat16,
            else float32.
        speech: as in ``load``.

    Returns:
        The folder as a source of pieces, and the abstract parts for its weights.

    Raises:
        ValueError: as in ``load``.
    """
    table = _table(config)
    speech = speech and config.talker is not None
    tensors = Safetensors(folder, wanted=lambda name: speech or not table.is_spoken(name))
    names, twice = _names(tensors, table)
    _refuse_quantized(tensors)
    _count(Path(folder), table.counted(config), names)
    given = float_dtype("bfloat16" if dtype is None else dtype)
    abstract = model_parts.abstract(config, given, speech=speech)
    found = layerwise.leaves(abstract)
    bound, faults = bind(table.rows(config), {path: leaf.shape for path, leaf in found.items()}, names)
    expected = {name: binding.shape for binding in bound.values() for name in binding.names()}
    missing = [(name, "missing") for name in expected if name not in names]
    unknown = [(theirs, "unknown tensor") for name, theirs in names.items() if name not in expected]
    for name in expected.keys() & names.keys():
        stored = tensors.tensors[names[name]]
        if stored.shape != expected[name]:
            faults.append((name, f"expected shape {list(expected[name])}, got {list(stored.shape)}"))
        if stored.dtype not in ("F32", "BF16", "F16"):
            faults.append((name, f"expected float32, bfloat16 or float16, got {stored.dtype}"))
    faults = twice + sorted(faults) + unknown + missing
    if faults:
        counts = f"{len(missing)} missing, {len(unknown)} unknown, {len(faults) - len(missing) - len(unknown)} wrong"
        raise ValueError(f"{folder}: tensors are not those of config.json's model ({counts}): {report(faults)}")
    if dtype is None:
        chosen = (binding for path, binding in bound.items() if found[path].dtype == given)
        if {tensors.tensors[names[name]].dtype for binding in chosen for name in binding.names()} != {"BF16"}:
            given = float_dtype("float32")
            abstract = model_parts.abstract(config, given, speech=speech)
            found = layerwise.leaves(abstract)
    return Published(tensors=tensors, bindings=bound, names=names, leaves=found, dtype=given), abstract


def save(
    weights: Mapping[str, nnx.Module] | WeightSource,
    folder: str | Path,
    config_json: Mapping[str, Any],
    *,
    dtype: Any = None,
    speech: bool = True,
    files_from: str | Path | None = None,
    shard_bytes: int = safetensors_writer.SHARD_BYTES,
    progress: Progress | None = None,
) -> Path:
    """Writes weights in the published layout: config.json, safetensors shards and their index.

    Args:
        weights: parts, or a source of their pieces.
        folder: the folder to write; created if it does not exist. It must not hold weights yet.
        config_json: the content of config.json.
        dtype: float32 or bfloat16; None for the weights' own.
        speech: whether the source holds the parts that speak; ignored for parts, where it is known. Without them, the
            config.json that is written says so.
        files_from: a folder whose small files (tokenizer, templates, ...) are copied. Where the model speaks and its
            speakers are in a file, they are read from there and written anew.
        shard_bytes: upper bound on the size of a file of several tensors.
        progress: called with (bytes done, bytes in all, path) after each piece.

    Returns:
        The folder.

    Raises:
        ValueError: the folder holds weights already, the parts are not the model that ``config_json`` describes, or the
            speakers' file is missing or broken.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    given = InMemory(weights) if isinstance(weights, Mapping) else weights
    dtype = float_dtype(given.dtype if dtype is None else dtype)
    config = from_hf(config_json)
    if isinstance(weights, Mapping):
        speech = "talker" in weights
    speech = speech and config.talker is not None
    abstract = model_parts.abstract(config, dtype, speech=speech)
    if isinstance(weights, Mapping):
        layerwise.check_leaves(layerwise.leaves(abstract), layerwise.leaves(weights), "the parts")
    known_speakers = {} if files_from is None else speakers.voices(files_from, config, speech=speech)
    described = _stored_as(config_json, dtype.name, _table(config).FLOAT32)
    if not speech and "thinker_config" in described:  # the config.json of a thinker alone has no such field
        described = {**described, "enable_audio_output": False}

    def beside() -> None:
        if files_from is not None:
            copy_files(files_from, folder, known_speakers)
        safetensors_writer.write_json(folder / "config.json", described)

    with only_writer(folder):
        safetensors_writer.write(
            given,
            layerwise.leaves(abstract),
            bindings(config, abstract),
            folder,
            shard_bytes=shard_bytes,
            progress=progress,
            beside=beside,
        )
    return folder


def bindings(config: OmniConfig, abstract: Mapping[str, nnx.Module]) -> dict[str, Binding]:
    """How each leaf of the abstract parts is stored in the published layout, by path."""
    bound, faults = bind(
        _table(config).rows(config),
        {path: leaf.shape for path, leaf in layerwise.leaves(abstract).items()},
    )
    if faults:
        raise ValueError(f"the weight table does not cover the model: {report(faults)}")
    return bound


def copy_files(
    source: str | Path, target: str | Path, known_speakers: Mapping[str, speech.Speaker], *, again: bool = True
) -> None:
    """Copies the small files of a checkpoint's folder: all but weights, hidden files and files over 64 MiB.

    The speakers' file could hold anything, so it is not copied: the speakers that were read from it are written.

    Args:
        source: the checkpoint's folder.
        target: the folder to copy to.
        known_speakers: the speakers to write.
        again: whether files that exist already are written again.

    Raises:
        OSError: a file cannot be written.
    """
    source, target = Path(source), Path(target)
    if source.resolve() == target.resolve():
        return
    for path in sorted(source.iterdir()):
        if not path.is_file() or any(fnmatch.fnmatch(path.name, pattern) for pattern in NOT_COPIED):
            continue
        if path.stat().st_size <= COPIED_BYTES and (again or not (target / path.name).exists()):
            content = path.read_bytes()
            with safetensors_writer.whole(target / path.name) as temporary:
                temporary.write_bytes(content)
                temporary.replace(target / path.name)
    if known_speakers and (again or not (target / speakers.FILE).exists()):
        with safetensors_writer.whole(target / speakers.FILE):
            speakers.write_speakers(target, known_speakers)


def float_dtype(dtype: Any) -> np.dtype:
    """float32 or bfloat16 as a NumPy dtype.

    Raises:
        ValueError: it is neither.
    """
    try:
        found = np.dtype(jnp.dtype(dtype))
    except TypeError:
        found = None
    if found is None or found.name not in safetensors_writer.CODES:
        raise ValueError(f"dtype: expected float32 or bfloat16, got {shown(dtype)}")
    return found


def _names(tensors: Safetensors, table: ModuleType) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The folder's name of each published name, without ignored tensors; and a fault for each duplicate."""
    names: dict[str, str] = {}
    faults = []
    for name in tensors.tensors:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in table.IGNORED):
            continue
        ours = next((new + name.removeprefix(old) for old, new in common.ALIASES if name.startswith(old)), name)
        if names.setdefault(ours, name) != name:
            faults.append((name, f"the same tensor as {names[ours]}"))
    return names, faults


def _refuse_quantized(tensors: Safetensors) -> None:
    """Refuses quantized tensors, which have a quantizer's suffix in their name or an 8-bit or 4-bit float dtype.

    Raises:
        ValueError: a tensor is quantized.
    """
    for name, stored in tensors.tensors.items():
        if name.endswith(foreign.QUANTIZED) or stored.dtype.startswith(("F8", "F4")):
            raise ValueError(f"{tensors.folder}: {foreign.quantized(f'it holds {cut(name)} in {stored.dtype}')}")


def _count(folder: Path, counted: Iterable[tuple[str, str, int]], names: Collection[str]) -> None:
    """Compares config.json's numbers of layers with the tensors, before anything of that size is built.

    Raises:
        ValueError: config.json has more layers than the tensors.
    """
    for field, prefix, count in counted:
        numbers = re.compile(rf"{re.escape(prefix)}\.(\d{{1,9}})\.")
        held = max((int(found[1]) + 1 for name in names if (found := numbers.match(name))), default=0)
        if held and count > held:
            raise ValueError(
                f"{folder}: config.json has {field} = {count}, but the tensors {prefix}.* end at {held - 1}; one of them is "
                "another model's, or files of weights are missing"
            )


def _stored_as(
    config_json: Mapping[str, Any], dtype: str, fixed: Collection[str], *, whole: bool = True
) -> dict[str, Any]:
    """config.json with the written dtype, in the new spelling: in the outermost object and each that has a dtype.

    Args:
        config_json: the object.
        dtype: name of the dtype that is written.
        fixed: names of objects that are always float32.
        whole: this is the outermost object, which gets a dtype even if it had none.
    """
    names = ("dtype", "torch_dtype")
    described = {name: value for name, value in config_json.items() if name not in names}
    for name, value in described.items():
        if isinstance(value, Mapping):
            inner = "float32" if name in fixed else dtype
            described[name] = _stored_as(value, inner, fixed, whole=False)
    return {**described, "dtype": dtype} if whole or any(name in config_json for name in names) else described
