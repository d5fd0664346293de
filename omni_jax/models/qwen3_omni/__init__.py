"""The parts that only Qwen3-Omni has."""

from collections.abc import Callable
from dataclasses import dataclass

from flax import nnx

from omni_jax.config import Qwen3OmniConfig
from omni_jax.models.parts import OmniParts
from omni_jax.models.qwen3_omni.audio_encoder import AudioEncoder
from omni_jax.models.qwen3_omni.code2wav import Code2Wav
from omni_jax.models.qwen3_omni.talker import CodePredictor, Talker
from omni_jax.models.qwen3_omni.vision_encoder import VisionEncoder
from omni_jax.nn.layers import Init


@dataclass(frozen=True, eq=False)
class Qwen3OmniParts(OmniParts):
    """The parts of a Qwen3-Omni.

    Attributes:
        code2wav: turns frames of codes into samples.
    """

    audio_encoder: AudioEncoder
    vision_encoder: VisionEncoder
    talker: Talker | None = None
    code_predictor: CodePredictor | None = None
    code2wav: Code2Wav | None = None


PARTS = Qwen3OmniParts


def builders(config: Qwen3OmniConfig) -> dict[str, Callable[[Init], nnx.Module]]:
    """How to build each part but the thinker; those that only speaking needs where the configuration has them."""
    thinker, talker, code2wav = config.thinker, config.talker, config.code2wav
    parts: dict[str, Callable[[Init], nnx.Module]] = {
        "audio_encoder": lambda init: AudioEncoder(init, thinker.audio_encoder),
        "vision_encoder": lambda init: VisionEncoder(init, thinker.vision_encoder),
    }
    if talker and code2wav:
        parts["talker"] = lambda init: Talker(init, talker)
        parts["code_predictor"] = lambda init: CodePredictor(init, talker)
        parts["code2wav"] = lambda init: Code2Wav(init, code2wav)
    return parts
