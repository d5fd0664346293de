"""A checkpoint in the published layout: checked as a whole before anything is read, loaded, and written."""

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
from omni_jax.weights import layerwise, safetensors_writer, speakers
from omni_jax.weights.layerwise import InMemory, Progress, Published, Source
from omni_jax.weights.safetensors_reader import Safetensors, held_names
from omni_jax.weights.table import Binding, bind, report
from omni_jax.weights.tables import common
from omni_jax.weights.to_devices import Shardings, assemble

# What a checkpoint's folder holds beside the weights is small: configuration, tokenizer, templates, notes.
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
    """The configuration of a folder, as far as its weights go.

    Where no tensor is of the parts that speak, it is that of a model that only writes, whatever config.json says: Transformers
    writes such folders after ``disable_talker``.

    Raises:
        ValueError: as of ``from_hf``, or for what names the tensors.
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
) -> dict[str, nnx.Module]:
    """Reads a folder in the published layout into parts on the devices.

    Args:
        folder: holds safetensors, single or sharded.
        config: of the same folder.
        dtype: float32 or bfloat16; what is stored otherwise is cast. What makes mel frames and samples of the codes of
            Qwen2.5-Omni is float32 whatever is given.
        speech: False leaves what only speaking needs on the disk: those tensors are neither read nor checked, and shards
            that hold nothing else may be absent.
        shardings: by path of the leaf; the default device where there is none.
        progress: called with (bytes done, bytes in all, path) after each piece.

    Raises:
        ValueError: the folder does not hold this model whole; one report of all faults.
    """
    source, abstract = published(folder, config, dtype=dtype, speech=speech)
    return assemble(source, abstract, shardings=shardings, progress=progress)


def published(
    folder: str | Path, config: OmniConfig, *, dtype: Any = None, speech: bool = True
) -> tuple[Published, dict[str, nnx.Module]]:
    """Checks a folder in the published layout against the model, by names, shapes and dtypes alone.

    Args:
        dtype: as in ``load``; None for the stored one: bfloat16 where every tensor is that may be, else float32.

    Returns:
        The folder as a source of pieces, and the abstract parts that it fills.

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
    weights: Mapping[str, nnx.Module] | Source,
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
        folder: made where it is not there; must not hold weights yet.
        config_json: the content of config.json.
        dtype: float32 or bfloat16; None for the weights' own.
        speech: whether the source holds the speaking parts too; known of parts. Without them config.json says so.
        files_from: a folder whose small files (tokenizer, templates, ...) are copied, and whose voices are read and
            written, where they are a file and the model speaks.
        shard_bytes: the largest size of a file of several tensors.

    Raises:
        ValueError: the folder holds weights already, the parts are not the model that ``config_json`` describes, or the
            file of voices is missing or is not one.
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
        layerwise.agree(layerwise.leaves(abstract), layerwise.leaves(weights), "the parts")
    voices = {} if files_from is None else speakers.voices(files_from, config, speech=speech)
    described = _stored_as(config_json, dtype.name, _table(config).FLOAT32)
    if not speech and "thinker_config" in described:  # that of a thinker alone has nothing to say of it
        described = {**described, "enable_audio_output": False}

    def beside() -> None:
        if files_from is not None:
            copy_files(files_from, folder, voices)
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
    """How each leaf of the abstract parts is stored in the published layout."""
    bound, faults = bind(
        _table(config).rows(config),
        {path: leaf.shape for path, leaf in layerwise.leaves(abstract).items()},
    )
    if faults:
        raise ValueError(f"the weight table does not cover the model: {report(faults)}")
    return bound


def copy_files(
    source: str | Path, target: str | Path, voices: Mapping[str, speech.Speaker], *, again: bool = True
) -> None:
    """Copies the small files of a checkpoint's folder: everything but weights, hidden files and what is over 64 MiB.

    Those that are there already are kept if not ``again``.

    Voices come in a file that could hold anything, so what was read of it is written, and it is not copied.

    Raises:
        OSError: one cannot be written.
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
    if voices and (again or not (target / speakers.FILE).exists()):
        with safetensors_writer.whole(target / speakers.FILE):
            speakers.write_speakers(target, voices)


def float_dtype(dtype: Any) -> np.dtype:
    """float32 or bfloat16 as NumPy knows it.

    Raises:
        ValueError: for anything else.
    """
    try:
        found = np.dtype(jnp.dtype(dtype))
    except TypeError:
        found = None
    if found is None or found.name not in safetensors_writer.CODES:
        raise ValueError(f"dtype: expected float32 or bfloat16, got {shown(dtype)}")
    return found


def _names(tensors: Safetensors, table: ModuleType) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The folder's name of each published name, without what is ignored; and faults where two are the same."""
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
    """Says that tensors are quantized, by the names that quantizers give and by dtypes of a byte (ValueError)."""
    for name, stored in tensors.tensors.items():
        if name.endswith(foreign.QUANTIZED) or stored.dtype.startswith(("F8", "F4")):
            raise ValueError(f"{tensors.folder}: {foreign.quantized(f'it holds {cut(name)} in {stored.dtype}')}")


def _count(folder: Path, counted: Iterable[tuple[str, str, int]], names: Collection[str]) -> None:
    """Compares how many layers config.json has with the tensors, before anything is made of so many (ValueError)."""
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
    """config.json with the dtype that is written, in the new spelling, for the whole and each object in it that names one.

    Args:
        fixed: names of objects that are float32 whatever is written.
        whole: this is the outermost object, which names a dtype even where it did not.
    """
    names = ("dtype", "torch_dtype")
    described = {name: value for name, value in config_json.items() if name not in names}
    for name, value in described.items():
        if isinstance(value, Mapping):
            inner = "float32" if name in fixed else dtype
            described[name] = _stored_as(value, inner, fixed, whole=False)
    return {**described, "dtype": dtype} if whole or any(name in config_json for name in names) else described
