"""Model configuration, read once from a published ``config.json``.

The published files and the library that reads them disagree in defaults (head width, experts per token, rope base, ...), so
nothing here has a default that a checkpoint should decide: a missing field is an error, and all faults come in one report.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omni_jax.config import qwen2_5_omni, qwen3_omni
from omni_jax.config.fields import read_json
from omni_jax.config.parts import (
    AudioEncoderConfig,
    Code2WavConfig,
    DecoderConfig,
    DualTrackTalkerConfig,
    ExpertsConfig,
    MelEncoderConfig,
    Omni3Config,
    Omni25Config,
    OmniConfig,
    PatchEncoderConfig,
    PooledAudioEncoderConfig,
    TalkerConfig,
    ThinkerConfig,
    VisionEncoderConfig,
    WindowedVisionEncoderConfig,
    halve,
)

FAMILIES = {"qwen3_omni_moe": qwen3_omni.read, "qwen2_5_omni": qwen2_5_omni.read}

__all__ = [
    "AudioEncoderConfig",
    "Code2WavConfig",
    "DecoderConfig",
    "DualTrackTalkerConfig",
    "ExpertsConfig",
    "MelEncoderConfig",
    "Omni3Config",
    "Omni25Config",
    "OmniConfig",
    "PatchEncoderConfig",
    "PooledAudioEncoderConfig",
    "TalkerConfig",
    "ThinkerConfig",
    "VisionEncoderConfig",
    "WindowedVisionEncoderConfig",
    "from_hf",
    "halve",
    "read_json",
]


def from_hf(config: Mapping[str, Any] | str | Path) -> OmniConfig:
    """Reads a published configuration.

    Args:
        config: the content of ``config.json``, or the path of the file or of its folder.

    Raises:
        ValueError: an unknown ``model_type``, or one report of every missing, mistyped or contradictory field.
    """
    if not isinstance(config, Mapping):
        path = Path(config)
        config = read_json(path / "config.json" if path.is_dir() else path)
    family, known = config.get("model_type"), " or ".join(FAMILIES)
    if family not in FAMILIES:
        raise ValueError(f"config.json: expected model_type {known}, got {family!r}; this is another model's folder")
    return FAMILIES[family](config)
