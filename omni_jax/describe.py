"""What a checkpoint holds: parts, parameters, stored dtypes, memory. Reads configuration and headers, no weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from omni_jax import checkpoint, weights
from omni_jax.config import OmniConfig, from_hf
from omni_jax.hub import locate
from omni_jax.models import parts

NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def describe(model: str | Path) -> dict[str, Any]:
    """Parts, parameters and sizes of a Hugging Face folder, a converted one or a hub id, ready for JSON.

    A hub id costs its small files alone. Where the folder holds weights, their names, shapes and dtypes are checked
    against the configuration on the way.

    Raises:
        ValueError: not a checkpoint, or one whose weights are not those of its config.json.
    """
    folder = locate(model, weights=False)
    config = from_hf(folder)
    stored = _stored(folder, config)
    abstract = parts.abstract(config, jnp.bfloat16)
    rows = [
        {
            "name": name,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(part)),
            "stored": stored.get(name, "not here"),
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
        "context": config.thinker.context,
        "cache_bytes_per_token": 2 * 2 * decoder.layers * decoder.kv_heads * decoder.head_width,
        "speakers": [name for name, _ in config.talker.speakers] if config.talker else [],
    }


def _stored(folder: Path, config: OmniConfig) -> Mapping[str, str]:
    """The dtypes in which each part lies on the disk."""
    if checkpoint.is_converted(folder):
        source, abstract = checkpoint.converted(folder, config)
        return dict.fromkeys(abstract, source.dtype.name)
    if not any(folder.glob("*.safetensors")):
        return {}
    source, _ = weights.published(folder, config)
    kinds: dict[str, set[str]] = {}
    for path, binding in source.bindings.items():
        found = {NAMES[source.tensors.tensors[source.names[name]].dtype] for name in binding.names()}
        kinds.setdefault(path.split(".")[0], set()).update(found)
    return {part: ", ".join(sorted(found)) for part, found in kinds.items()}
