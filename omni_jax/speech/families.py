"""From a configuration to its way of speaking."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omni_jax.config import OmniConfig, Qwen3OmniConfig, Qwen25OmniConfig
from omni_jax.speech.qwen2_5_omni import Qwen25Synthesizer
from omni_jax.speech.qwen3_omni import Qwen3Synthesizer
from omni_jax.speech.synthesizer import Synthesizer

SYNTHESIZERS: dict[type, type[Synthesizer]] = {Qwen3OmniConfig: Qwen3Synthesizer, Qwen25OmniConfig: Qwen25Synthesizer}


def synthesizer(config: OmniConfig, folder: Path, parts: Mapping[str, Any] | None = None) -> Synthesizer:
    """What a checkpoint speaks with; without ``parts`` it can only say with which voices."""
    return SYNTHESIZERS[type(config)](parts or {}, config, folder)
