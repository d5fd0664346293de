"""Locates a checkpoint: a local folder, a URL, or a download from the Hugging Face hub."""

import re
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from omni_jax import checkpoint
from omni_jax.checkpoint.tensors import is_url
from omni_jax.config.foreign import refuse_file
from omni_jax.errors import RetryableError, UserError, check_path
from omni_jax.weights.safetensors_writer import ensure_room
from omni_jax.weights.speakers import FILE as VOICES

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# A checkpoint's small files are texts and the speakers of Qwen2.5-Omni.
SMALL, WEIGHTS = ("*.json", "*.txt", "*.jinja", VOICES), ("*.safetensors",)


def locate(path: str | Path, *, weights: bool = True) -> Path:
    """The folder of a checkpoint.

    A hub id is first downloaded, or found in the hub's cache. Of a converted folder at a URL (``gs://``) only the small
    files are downloaded; its weights are read from the URL.

    Args:
        path: a folder, a URL or a hub id.
        weights: False leaves the weights out of the download.

    Raises:
        ValueError: the path is neither a folder nor a hub id, or the hub does not have it.
        RetryableError: the hub or the store did not answer; another try may succeed.
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
        # An unknown name and offline mode are final. Any other error may be temporary.
        final = huggingface_hub.constants.HF_HUB_OFFLINE or isinstance(
            error, HFValidationError | RepositoryNotFoundError
        )
        raise (UserError if final else RetryableError)(
            f"{path}: no such folder here, and the hub did not give it ({reason}); check the name and the network, or download "
            "it elsewhere and give the folder"
        ) from None


def cache() -> Path:
    """The folder that downloads go to, or its nearest parent that exists."""
    folder = Path(huggingface_hub.constants.HF_HUB_CACHE)
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def to_download(path: str | Path) -> int:
    """Bytes of a hub id that are still to be downloaded; 0 for a folder, a URL, or a hub that does not answer."""
    if is_url(path) or isinstance(path, Path) or Path(path).exists() or not HUB_ID.fullmatch(path):
        return 0
    try:
        files = huggingface_hub.snapshot_download(
            path, allow_patterns=[*SMALL, *WEIGHTS], dry_run=True, tqdm_class=_Silent
        )
    except Exception:  # The download itself reports what is wrong.
        return 0
    return sum(file.file_size or 0 for file in files if file.will_download)


class _Silent(huggingface_hub.utils.tqdm):
    """Shows no progress bar: the dry run takes about a second."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options | {"disable": True})
