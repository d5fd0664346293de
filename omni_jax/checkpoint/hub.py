"""Where a checkpoint is: a folder on this machine, or a download from the Hugging Face hub."""

import re
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from omni_jax import checkpoint
from omni_jax.checkpoint.tensors import is_url
from omni_jax.config.foreign import refuse_file
from omni_jax.errors import UnreachedError, check_path
from omni_jax.weights.safetensors_writer import ensure_room
from omni_jax.weights.speakers import FILE as VOICES

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Beside texts, a checkpoint's small files are the voices of Qwen2.5-Omni.
SMALL, WEIGHTS = ("*.json", "*.txt", "*.jinja", VOICES), ("*.safetensors",)


def locate(path: str | Path, *, weights: bool = True) -> Path:
    """The folder of a checkpoint; a hub id is downloaded (or found in the hub's cache) first. Of a converted folder at an
    address (``gs://``), the small files are; its weights are read where they are.

    Args:
        weights: False leaves them out of the download.

    Raises:
        ValueError: neither a folder nor a hub id, or a hub that cannot be reached.
        OSError: the disk has no room for the download.
    """
    check_path("model", path)
    if is_url(path):
        return checkpoint.nearby(str(path))
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        refuse_file(folder)
    if isinstance(path, Path) or not HUB_ID.fullmatch(path) or path.startswith("."):
        raise ValueError(
            f"{path}: no such folder; expected a Hugging Face folder, a converted folder or a hub id (owner/name)"
        )
    if weights:
        advice = f"make room for {path}, or set HF_HOME to a folder of another disk"
        ensure_room(cache(), to_download(path), advice=advice)
    try:
        return Path(huggingface_hub.snapshot_download(path, allow_patterns=[*SMALL, *(WEIGHTS if weights else ())]))
    except Exception as error:  # The hub's client raises many kinds, from its own and from its network library.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        # A hub that knows no such name says so, and one that nobody is to ask never answers; all else may pass.
        final = huggingface_hub.constants.HF_HUB_OFFLINE or isinstance(
            error, HFValidationError | RepositoryNotFoundError
        )
        raise (ValueError if final else UnreachedError)(
            f"{path}: no such folder here, and the hub did not give it ({reason}); check the name and the network, or download "
            "it elsewhere and give the folder"
        ) from None


def cache() -> Path:
    """The folder that downloads go to, or the one above it that is there already."""
    folder = Path(huggingface_hub.constants.HF_HUB_CACHE)
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def to_download(path: str | Path) -> int:
    """Bytes of a checkpoint's files that the hub has and this machine has not; 0 for a folder, an address, and a hub that
    does not answer."""
    if is_url(path) or isinstance(path, Path) or Path(path).exists() or not HUB_ID.fullmatch(path):
        return 0
    try:
        files = huggingface_hub.snapshot_download(
            path, allow_patterns=[*SMALL, *WEIGHTS], dry_run=True, tqdm_class=_Silent
        )
    except Exception:  # What is wrong is said by the download itself.
        return 0
    return sum(file.file_size or 0 for file in files if file.will_download)


class _Silent(huggingface_hub.utils.tqdm):
    """No bar for a look that takes a second."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options | {"disable": True})
