"""Describes a checkpoint: parts, parameters, stored dtypes, memory. Reads configuration and headers, but no weights."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from omni_jax import checkpoint, weights
from omni_jax.checkpoint.hub import locate
from omni_jax.config import OmniConfig, read_json
from omni_jax.models import parts
from omni_jax.processing.processor_files import FLAT, NESTED

TOKENIZER = "tokenizer_config.json"
NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def describe(model: str | Path) -> dict[str, Any]:
    """Parts, parameters, sizes and speakers of a Hugging Face folder, a converted one or a hub id, ready for JSON.

    Of a hub id only the small files are downloaded. If the folder holds weights, their names, shapes and dtypes are
    checked against the configuration; so is the speakers' file, if the model needs one.

    Raises:
        ValueError: it is no checkpoint, or its weights or speakers are not those of its config.json.
    """
    folder = locate(model, weights=False)
    config = weights.config_of(folder)
    stored = _stored(folder, config)
    abstract = parts.abstract(config, jnp.bfloat16)
    rows = [
        {
            "name": name,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(part)),
            "stored": stored.get(name, "not here"),
            "bytes": {
                "bfloat16": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(part)),
                "float32": sum(leaf.size * 4 for leaf in jax.tree.leaves(part)),
            },
        }
        for name, part in abstract.items()
    ]
    decoder = config.thinker.decoder
    return {
        "folder": str(folder),
        "family": config.family,
        "converted": checkpoint.is_converted(folder),
        "parts": rows,
        "parameters": sum(row["parameters"] for row in rows),
        "bytes": {kind: sum(row["bytes"][kind] for row in rows) for kind in ("bfloat16", "float32")},
        "context": config.thinker.context,
        "cache_bytes_per_token": 2 * 2 * decoder.layers * decoder.kv_heads * decoder.head_width,
        "speakers": list(_speakers(folder, config)),
        "missing": missing(folder),
    }


def missing(folder: Path) -> list[str]:
    """Files that a folder lacks beside config.json and weights, each with what does not work or is used without it."""

    def lacks(*names: str) -> bool:
        return not any((folder / name).is_file() for name in names)

    found = []
    if (lacks("tokenizer.json") and (lacks("vocab.json") or lacks("merges.txt"))) or lacks(TOKENIZER):
        found.append(
            f"tokenizer ({TOKENIZER}, and tokenizer.json or vocab.json and merges.txt): cannot take conversations"
        )
    elif lacks("chat_template.jinja", "chat_template.json") and "chat_template" not in read_json(folder / TOKENIZER):
        found.append("chat template (chat_template.jinja or chat_template.json): cannot take conversations")
    if lacks(FLAT, NESTED):
        found.append(f"processor ({FLAT} or {NESTED}): cannot read audio, images or video")
    if lacks("generation_config.json"):
        found.append("generation_config.json: Transformers' default sampling options are used")
    return found


def _stored(folder: Path, config: OmniConfig) -> Mapping[str, str]:
    """The stored dtypes of each part."""
    if checkpoint.is_converted(folder):
        source, _ = checkpoint.converted(folder, config)
        found = {path: {leaf.dtype.name} for path, leaf in source.leaves.items()}
    elif any(folder.glob("*.safetensors")):
        source, _ = weights.published(folder, config)
        stored = {ours: NAMES[source.tensors.tensors[theirs].dtype] for ours, theirs in source.names.items()}
        found = {path: {stored[name] for name in binding.names()} for path, binding in source.bindings.items()}
    else:
        found = {}
    kinds: dict[str, set[str]] = {}
    for path, dtypes in found.items():
        kinds.setdefault(path.split(".")[0], set()).update(dtypes)
    return {part: ", ".join(sorted(dtypes)) for part, dtypes in kinds.items()}


def _speakers(folder: Path, config: OmniConfig) -> Iterable[str]:
    """The speakers' names, from the configuration or from the speakers' file."""
    if config.talker and config.talker.speakers is not None:
        return [name for name, _ in config.talker.speakers]
    return weights.voices(folder, config)
