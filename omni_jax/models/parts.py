"""The parts of a checkpoint by name, abstract or random."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from omni_jax.config import (
    AudioEncoderConfig,
    Omni3Config,
    Omni25Config,
    OmniConfig,
    PooledAudioEncoderConfig,
    VisionEncoderConfig,
    WindowedVisionEncoderConfig,
)
from omni_jax.models.qwen2_5_omni.audio_encoder import PooledAudioEncoder
from omni_jax.models.qwen2_5_omni.bigvgan import BigVGAN
from omni_jax.models.qwen2_5_omni.dit import DiT
from omni_jax.models.qwen2_5_omni.talker import DualTrackTalker
from omni_jax.models.qwen2_5_omni.vision_encoder import WindowedVisionEncoder
from omni_jax.models.qwen3_omni.audio_encoder import AudioEncoder
from omni_jax.models.qwen3_omni.code2wav import Code2Wav
from omni_jax.models.qwen3_omni.talker import CodePredictor, Talker
from omni_jax.models.qwen3_omni.vision_encoder import VisionEncoder
from omni_jax.models.thinker import Thinker
from omni_jax.nn.layers import Init
from omni_jax.parallel.param_paths import axes, leaves, replace

__all__ = ["SPEECH", "abstract", "axes", "builders", "leaves", "random", "replace"]

SPEECH = ("talker", "code_predictor", "code2wav", "dit", "bigvgan")
# Which module a configuration is of.
ENCODERS: dict[type, Callable[..., nnx.Module]] = {
    AudioEncoderConfig: AudioEncoder,
    VisionEncoderConfig: VisionEncoder,
    PooledAudioEncoderConfig: PooledAudioEncoder,
    WindowedVisionEncoderConfig: WindowedVisionEncoder,
}


def builders(config: OmniConfig, *, speech: bool = True) -> dict[str, Callable[[Init], nnx.Module]]:
    """How to build each part of ``config``; without ``speech``, none of the parts that only speaking needs."""
    thinker = config.thinker
    parts: dict[str, Callable[[Init], nnx.Module]] = {
        "thinker": lambda init: Thinker(init, thinker),
        "audio_encoder": lambda init: ENCODERS[type(thinker.audio_encoder)](init, thinker.audio_encoder),
        "vision_encoder": lambda init: ENCODERS[type(thinker.vision_encoder)](init, thinker.vision_encoder),
    }
    match config:
        case Omni3Config(talker=talker, code2wav=code2wav) if speech and talker and code2wav:
            parts["talker"] = lambda init: Talker(init, talker)
            parts["code_predictor"] = lambda init: CodePredictor(init, talker)
            parts["code2wav"] = lambda init: Code2Wav(init, code2wav)
        case Omni25Config(talker=talker, token2wav=token2wav) if speech and talker and token2wav:
            parts["talker"] = lambda init: DualTrackTalker(init, talker)
            parts["dit"] = lambda init: DiT(init, token2wav.dit)
            parts["bigvgan"] = lambda init: BigVGAN(init, token2wav.bigvgan)
    return parts


def abstract(config: OmniConfig, dtype: Any, *, speech: bool = True) -> dict[str, nnx.Module]:
    """The parts with ShapeDtypeStructs in place of arrays; seconds for a large model, the same ones again cost nothing."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return _random.eval_shape(config, jnp.dtype(dtype), key, speech=speech)


def random(config: OmniConfig, dtype: Any, key: jax.Array, *, speech: bool = True) -> dict[str, nnx.Module]:
    """The parts with random weights of sensible scale; jit it to make them on the device."""
    made = builders(config, speech=speech)
    keys = jax.random.split(key, len(made))
    return {name: build(Init(part_key, dtype)) for (name, build), part_key in zip(made.items(), keys, strict=True)}


_random = jax.jit(random, static_argnames=("config", "dtype", "speech"))  # for abstract, which it remembers
