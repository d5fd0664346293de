"""The parts that only Qwen2.5-Omni has."""

from collections.abc import Callable
from dataclasses import dataclass

from flax import nnx

from omni_jax.config import Qwen25OmniConfig
from omni_jax.models.parts import OmniParts
from omni_jax.models.qwen2_5_omni.audio_encoder import AudioEncoder
from omni_jax.models.qwen2_5_omni.bigvgan import BigVGAN
from omni_jax.models.qwen2_5_omni.dit import DiT
from omni_jax.models.qwen2_5_omni.talker import Talker
from omni_jax.models.qwen2_5_omni.vision_encoder import VisionEncoder
from omni_jax.nn.layers import Init


@dataclass(frozen=True, eq=False)
class Qwen25OmniParts(OmniParts):
    """The parts of a Qwen2.5-Omni, whose frames have one code each.

    Attributes:
        dit: turns codes into mel frames.
        bigvgan: turns mel frames into samples.
    """

    audio_encoder: AudioEncoder
    vision_encoder: VisionEncoder
    talker: Talker | None = None
    code_predictor: None = None
    dit: DiT | None = None
    bigvgan: BigVGAN | None = None


PARTS = Qwen25OmniParts


def builders(config: Qwen25OmniConfig) -> dict[str, Callable[[Init], nnx.Module]]:
    """How to build each part but the thinker; those that only speaking needs where the configuration has them."""
    thinker, talker, token2wav = config.thinker, config.talker, config.token2wav
    parts: dict[str, Callable[[Init], nnx.Module]] = {
        "audio_encoder": lambda init: AudioEncoder(init, thinker.audio_encoder),
        "vision_encoder": lambda init: VisionEncoder(init, thinker.vision_encoder),
    }
    if talker and token2wav:
        parts["talker"] = lambda init: Talker(init, talker)
        parts["dit"] = lambda init: DiT(init, token2wav.dit)
        parts["bigvgan"] = lambda init: BigVGAN(init, token2wav.bigvgan)
    return parts
