"""Where a checkpoint is: a folder on this machine, or a download from the Hugging Face hub."""

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from omni_jax import checkpoint
from omni_jax.mistakes import UnreachedError
from omni_jax.weights.converted import is_url
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
    """
    if is_url(path):
        return checkpoint.nearby(str(path))
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{path}: expected a model folder, got a file; give the folder that holds config.json")
    if isinstance(path, Path) or not HUB_ID.fullmatch(path) or path.startswith("."):
        raise ValueError(
            f"{path}: no such folder; expected a Hugging Face folder, a converted folder or a hub id (owner/name)"
        )
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
