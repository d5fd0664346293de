"""Model configuration, read once from a published ``config.json``.

The published files and the library that reads them disagree in defaults (head width, experts per token, rope base, ...). A field
that is there counts; one that is left out is what that library has (``defaults.py``), for its writers leave out what equals
their default. All faults come in one report.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omni_jax.config import qwen2_5_omni, qwen3_omni
from omni_jax.config.decoder import DecoderConfig, ExpertsConfig
from omni_jax.config.encoders import (
    AudioEncoderConfig,
    MelEncoderConfig,
    PatchEncoderConfig,
    Qwen25AudioEncoderConfig,
    Qwen25VisionEncoderConfig,
    VisionEncoderConfig,
    halve,
)
from omni_jax.config.fields import read_json
from omni_jax.config.foreign import refuse_foreign, refuse_quantized
from omni_jax.config.parts import OmniConfig, Qwen3OmniConfig, Qwen25OmniConfig, ThinkerConfig
from omni_jax.config.speech import Code2WavConfig, Qwen25TalkerConfig, TalkerConfig
from omni_jax.config.words import TokenizerFiles, no_words
from omni_jax.errors import shown

FAMILIES = {"qwen3_omni_moe": qwen3_omni.read, "qwen2_5_omni": qwen2_5_omni.read}
# What a thinker saved without the rest calls itself, and its family.
THINKERS = {f"{family}_thinker": family for family in FAMILIES}

__all__ = [
    "AudioEncoderConfig",
    "Code2WavConfig",
    "DecoderConfig",
    "ExpertsConfig",
    "MelEncoderConfig",
    "OmniConfig",
    "PatchEncoderConfig",
    "Qwen3OmniConfig",
    "Qwen25AudioEncoderConfig",
    "Qwen25OmniConfig",
    "Qwen25TalkerConfig",
    "Qwen25VisionEncoderConfig",
    "TalkerConfig",
    "ThinkerConfig",
    "VisionEncoderConfig",
    "from_hf",
    "halve",
    "read_json",
]


def from_hf(config: Mapping[str, Any] | str | Path) -> OmniConfig:
    """Reads a published configuration, or that of a thinker saved alone.

    A field that is left out is what Transformers' class of the object has; an id of a token is first asked of the tokenizer.

    Args:
        config: the content of ``config.json``, or the path of the file or of its folder, where the tokenizer's files may be too.

    Raises:
        ValueError: a folder of something else, an unknown ``model_type``, or one report of the mistyped and contradictory
            fields.
    """
    words = no_words
    if not isinstance(config, Mapping):
        path = Path(config)
        if path.is_dir():
            refuse_foreign(path)
            path = path / "config.json"
        config, words = read_json(path), TokenizerFiles(path.parent)
    family = config.get("model_type")
    alone = isinstance(family, str) and THINKERS.get(family)
    if not isinstance(family, str) or (family not in FAMILIES and not alone):
        known = " or ".join(FAMILIES)
        raise ValueError(
            f"config.json: expected model_type {known}, got {shown(family)}; this is another model's folder"
        )
    refuse_quantized(config)
    if not alone:
        return FAMILIES[family](config, words)
    try:
        return FAMILIES[alone]({**config, "thinker_config": config, "enable_audio_output": False}, words)
    except ValueError as error:
        raise ValueError(str(error).replace("thinker_config.", "")) from None
