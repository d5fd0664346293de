"""From a configuration to its way of speaking."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omni_jax.config import Omni3Config, Omni25Config, OmniConfig
from omni_jax.speech.qwen2_5_omni import DualTrackSynthesizer
from omni_jax.speech.qwen3_omni import FrameSynthesizer
from omni_jax.speech.synthesizer import Synthesizer

SYNTHESIZERS: dict[type, type[Synthesizer]] = {Omni3Config: FrameSynthesizer, Omni25Config: DualTrackSynthesizer}


def synthesizer(config: OmniConfig, folder: Path, parts: Mapping[str, Any] | None = None) -> Synthesizer:
    """What a checkpoint speaks with; without ``parts`` it can only say with which voices."""
    return SYNTHESIZERS[type(config)](parts or {}, config, folder)
