"""Model configuration, read once from a published ``config.json``.

The published files and Transformers disagree in defaults (head width, experts per token, rope base, ...). A field that
is present counts. A field that is left out gets Transformers' default (``defaults.py``), because Transformers does not
write a field that equals its default. All faults are collected in one report.
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
from omni_jax.config.family import FAMILIES, Family, family_of, register
from omni_jax.config.fields import json_or_empty, read_json
from omni_jax.config.foreign import refuse_foreign, refuse_quantized
from omni_jax.config.parts import OmniConfig, Qwen3OmniConfig, Qwen25OmniConfig, ThinkerConfig
from omni_jax.config.speech import Code2WavConfig, Qwen25TalkerConfig, TalkerConfig
from omni_jax.config.words import TokenizerFiles, no_words
from omni_jax.errors import shown

register(
    Family("qwen3_omni", "qwen3_omni_moe", qwen3_omni.read),
    Family("qwen2_5_omni", "qwen2_5_omni", qwen2_5_omni.read),
)
_ALONE = "_thinker"  # with which the model_type of a thinker saved without the rest ends

__all__ = [
    "AudioEncoderConfig",
    "Code2WavConfig",
    "DecoderConfig",
    "ExpertsConfig",
    "Family",
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
    "family_of",
    "from_hf",
    "halve",
    "json_or_empty",
    "read_json",
    "register",
]


def from_hf(config: Mapping[str, Any] | str | Path) -> OmniConfig:
    """Reads a published configuration, or that of a thinker saved alone.

    A field that is left out gets the default of Transformers' class. A token id that is left out is first looked up in
    the tokenizer.

    Args:
        config: the content of ``config.json``, or the path of the file or of its folder, which may also hold the
            tokenizer's files.

    Raises:
        ValueError: the folder is no checkpoint of these models, ``model_type`` is unknown, or fields are mistyped or
            contradictory (all in one report).
    """
    words = no_words
    if not isinstance(config, Mapping):
        path = Path(config)
        if path.is_dir():
            refuse_foreign(path)
            path = path / "config.json"
        config, words = read_json(path), TokenizerFiles(path.parent)
    model_type = config.get("model_type")
    name = model_type if isinstance(model_type, str) else ""
    family, alone = FAMILIES.get(name), FAMILIES.get(name.removesuffix(_ALONE))
    if alone is None:
        known = " or ".join(FAMILIES)
        raise ValueError(
            f"config.json: expected model_type {known}, got {shown(model_type)}; this is another model's folder"
        )
    refuse_quantized(config)
    if family:
        return family.read(config, words)
    try:
        return alone.read({**config, "thinker_config": config, "enable_audio_output": False}, words)
    except ValueError as error:
        raise ValueError(str(error).replace("thinker_config.", "")) from None
