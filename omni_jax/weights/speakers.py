"""The speakers of Qwen2.5-Omni, which are in spk_dict.pt beside the weights."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from omni_jax.config import OmniConfig, Qwen25OmniConfig
from omni_jax.config.speech import Speaker
from omni_jax.errors import kind_of, shown
from omni_jax.weights.torch_pickle import MAX_BYTES, read_torch, write_torch

FILE = "spk_dict.pt"


def read_speakers(path: str | Path, config: Qwen25OmniConfig | None = None) -> dict[str, Speaker]:
    """Reads the speakers of a checkpoint, without torch and without running code from the file.

    Args:
        path: spk_dict.pt, or the folder that holds it.
        config: configuration of the model that the speakers must fit; None for no such check.

    Raises:
        ValueError: the file is absent, damaged or too large, or it holds anything but speakers or those of another
            model. The message is one line.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        speakers = _speakers(read_torch(path))
    except FileNotFoundError:
        raise ValueError(
            f"{path}: expected the speakers of a Qwen2.5-Omni, found no such file; copy it there"
        ) from None
    except OSError as error:
        raise kind_of(error)(f"{path}: cannot be read ({shown(error)})") from None
    except ValueError as error:
        raise ValueError(
            f"{path}: expected speakers, saved by torch.save, and nothing else; refused, for {shown(error, 200)}"
        ) from None
    faults = _faults(speakers, config) if config else []
    if faults:
        raise ValueError(
            f"{path}: expected speakers of this model: {'; '.join(faults)}; copy it from the same checkpoint"
        )
    return speakers


def voices(folder: str | Path, config: OmniConfig, *, speech: bool = True) -> dict[str, Speaker]:
    """The speakers that a checkpoint has in a file: those of a Qwen2.5-Omni that speaks, else none.

    Args:
        folder: the checkpoint's folder.
        config: the checkpoint's configuration.
        speech: whether speech is wanted.

    Raises:
        ValueError: as in ``read_speakers``.
    """
    if speech and config.talker is not None and config.talker.speakers is None:
        return read_speakers(folder, cast(Qwen25OmniConfig, config))
    return {}


def write_speakers(path: str | Path, speakers: Mapping[str, Speaker]) -> Path:
    """Writes speakers in torch.save's format.

    Args:
        path: spk_dict.pt, or the folder for it.
        speakers: speakers by name.

    Returns:
        The file.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    write_torch(path, {name: asdict(speaker) for name, speaker in speakers.items()})
    return path


def _speakers(found: Any) -> dict[str, Speaker]:
    if type(found) is not dict or not found:
        raise ValueError(f"it holds {shown(found)}: expected a dictionary of speakers by their names")
    checked = {name: _checked(f"speaker {shown(name)}", fields) for name, fields in found.items()}
    # Tensors may share a storage, so a small file might need much memory.
    if 4 * sum(fields[part].size for fields in checked.values() for part in ("cond", "ref_mel")) > MAX_BYTES:
        raise ValueError(f"its speakers take more than {MAX_BYTES:,} bytes together")
    speakers = {}
    for name, fields in checked.items():
        cond, mel = (fields[part].astype(np.float32) for part in ("cond", "ref_mel"))
        if not (np.isfinite(cond).all() and np.isfinite(mel).all()):
            raise ValueError(f"speaker {shown(name)} has numbers that are not finite")
        speakers[name] = Speaker(bos_token=int(fields["bos_token"]), cond=cond, ref_mel=mel)
    return speakers


def _checked(name: str, fields: Any) -> dict[str, Any]:
    """A speaker's dictionary, with its fields, types and ranks checked."""
    if type(fields) is not dict:
        raise ValueError(f"{name} is {shown(fields)}: expected a dictionary of bos_token, cond and ref_mel")
    if fields.keys() != {"bos_token", "cond", "ref_mel"}:
        has = ", ".join(shown(key) for key in list(fields)[:5]) or "nothing"
        raise ValueError(f"{name} has {has}: expected bos_token, cond and ref_mel")
    token = fields["bos_token"]
    scalar = isinstance(token, np.ndarray) and token.size == 1 and token.dtype.kind == "i"
    if not (scalar or type(token) is int) or int(token) < 0:
        raise ValueError(f"{name}: bos_token is {shown(token)}: expected an id")
    for part, axes in (("cond", "[1, width]"), ("ref_mel", "[1, frames, mel bins]")):
        tensor = fields[part]
        floats = isinstance(tensor, np.ndarray) and tensor.dtype.kind != "i"
        if not floats or tensor.ndim != axes.count(",") + 1 or tensor.shape[0] != 1:
            raise ValueError(f"{name}: {part} is {shown(tensor)}: expected floats {axes}")
    return fields


def _faults(speakers: Mapping[str, Speaker], config: Qwen25OmniConfig) -> list[str]:
    """Reasons why these speakers do not fit a model."""
    if config.token2wav is None:
        return ["config.json has no audio output"]
    faults, vocabulary, dit = [], config.thinker.vocabulary, config.token2wav.dit
    fewest = dit.speaker_encoder.min_frames
    for name, speaker in speakers.items():
        (_, frames, bins), width, token = speaker.ref_mel.shape, speaker.cond.shape[1], speaker.bos_token
        if token >= vocabulary:
            faults.append(f"speaker {shown(name)}: bos_token {token} is outside the vocabulary of {vocabulary}")
        if width != dit.speaker_width:
            faults.append(
                f"speaker {shown(name)}: cond has {width} numbers, expected {dit.speaker_width} as in config.json"
            )
        if bins != dit.mel_bins:
            faults.append(
                f"speaker {shown(name)}: ref_mel has {bins} mel bins, expected {dit.mel_bins} as in config.json"
            )
        if frames < fewest:
            faults.append(f"speaker {shown(name)}: ref_mel has {frames} frames, expected {fewest} or more")
    return faults
