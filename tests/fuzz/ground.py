"""Shared inputs of several kinds of cases: tiny checkpoints, written once a run, and the models loaded from them."""

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

from omni_jax import Omni
from omni_jax.testing import tiny_config, tiny_qwen2_5_config, write_tiny

FAMILIES = {"qwen3": tiny_config, "qwen2_5": tiny_qwen2_5_config}


def checkpoint(folder: Path, family: str = "qwen3", *, context: int | None = None) -> Path:
    """A tiny checkpoint of a family.

    Args:
        context: tokens of the thinker's and the talker's context, if that of the tiny configuration is too long; it
        bounds the time of a reply without an end.
    """
    target = folder / f"{family}_{context or 'whole'}"
    if not (target / "done").exists():
        config = deepcopy(FAMILIES[family]())
        if context is not None:
            _bound(config, context)
        write_tiny(target, config=config)
        (target / "done").touch()
    return target


def model(folder: Path, family: str = "qwen3", **options: Any) -> Omni:
    return Omni.load(checkpoint(folder, family, context=options.pop("context", None)), **options)


def _bound(config: Any, context: int) -> None:
    for name, value in config.items():
        if name == "max_position_embeddings":
            config[name] = min(value, context)
        elif isinstance(value, dict):
            _bound(value, context)


def linked(source: Path, target: Path) -> Path:
    """A folder with links to the same files; ``replace`` replaces one, and none is written in place."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_dir():
            linked(path, target / path.name)
        else:
            os.link(path, target / path.name)
    return target


def replace(path: Path, content: bytes) -> None:
    """Replaces a file of a linked folder with own content."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
