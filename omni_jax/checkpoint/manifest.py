"""The manifest of a converted checkpoint: its content, its source, and that it is complete."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from omni_jax.config import json_or_empty
from omni_jax.errors import shown
from omni_jax.weights import layerwise
from omni_jax.weights.published import float_dtype

FORMAT = 1
MANIFEST, UNFINISHED = "omni_jax.json", "omni_jax.partial.json"
ELSEWHERE = "pieces"  # key in the manifest of a folder whose pieces are at a URL


def read_manifest(folder: Path, *, name: str | None = None) -> dict[str, Any]:
    """The manifest of a folder.

    Args:
        folder: the folder that holds it.
        name: name of the folder in error messages; None for its path.

    Raises:
        ValueError: there is no manifest, it is damaged or of another format, or the conversion was not finished.
    """
    name = name or str(folder)
    if not (folder / MANIFEST).exists():
        if (folder / UNFINISHED).exists():
            raise ValueError(f"{name}: its conversion was not finished; run it again, and it goes on where it stopped")
        raise ValueError(f"{name}: expected a converted checkpoint, found no {MANIFEST} in it")
    manifest = json_or_empty(folder / MANIFEST)
    damaged = ValueError(f"{name.rstrip('/')}/{MANIFEST}: damaged; convert the checkpoint again")
    if not manifest:
        raise damaged
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{name}: converted in format {shown(manifest.get('format'))}, expected {FORMAT}; convert the checkpoint again"
        )
    if not _whole(manifest):
        raise damaged
    return manifest


def matches(plan: Mapping[str, Any], path: Path) -> bool:
    """Whether the manifest or plan at ``path`` is of this plan: the same unchanged source and the same leaves."""
    other = json_or_empty(path)
    keys = ("format", "dtype", "leaves", "origin")
    return plan["origin"] is not None and all(other.get(key) == plan[key] for key in keys)


def sizes(path: Path) -> dict[str, int]:
    """The sizes on the disk of the groups that a manifest or plan records as complete."""
    found = json_or_empty(path).get("bytes")
    return {name: size for name, size in found.items() if type(size) is int} if isinstance(found, dict) else {}


def leaves(manifest: Mapping[str, Any]) -> dict[str, layerwise.Leaf]:
    """The leaves that a manifest describes."""
    return {
        path: layerwise.Leaf(
            shape=tuple(leaf["shape"]),
            stacked=leaf["stacked"],
            dtype=float_dtype(leaf.get("dtype", manifest["dtype"])),
        )
        for path, leaf in manifest["leaves"].items()
    }


def described(found: Mapping[str, layerwise.Leaf], dtype: np.dtype) -> dict[str, dict[str, Any]]:
    """Leaves in a manifest's form; a leaf has a dtype of its own only where it differs from ``dtype``."""
    result: dict[str, dict[str, Any]] = {}
    for path, leaf in found.items():
        result[path] = {"shape": list(leaf.shape), "stacked": leaf.stacked}
        if leaf.dtype != dtype:
            result[path]["dtype"] = leaf.dtype.name
    return result


def _is_store(url: Any) -> bool:
    """Whether it is the URL of an object store. HTTP cannot list files, so no conversion is read from it."""
    return isinstance(url, str) and len(url) < 2000 and re.match(r"(?!https?:)[a-z0-9]+://", url) is not None


def _whole(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest has all fields that readers need, of the right types."""
    found, sizes = manifest.get("leaves"), manifest.get("bytes")
    return (
        manifest.get("dtype") in ("float32", "bfloat16")
        and (ELSEWHERE not in manifest or _is_store(manifest[ELSEWHERE]))
        and isinstance(sizes, dict)
        and isinstance(found, dict)
        and all(isinstance(leaf, dict) and {"shape", "stacked"} <= leaf.keys() for leaf in found.values())
        and all(isinstance(leaf["shape"], list) for leaf in found.values())
        and all(leaf.get("dtype", "float32") in ("float32", "bfloat16") for leaf in found.values())
    )
