"""The parts of a checkpoint by name, abstract or random."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from omni_jax.config import (
    AudioEncoderConfig,
    OmniConfig,
    Qwen3OmniConfig,
    Qwen25AudioEncoderConfig,
    Qwen25OmniConfig,
    Qwen25VisionEncoderConfig,
    VisionEncoderConfig,
)
from omni_jax.models import qwen2_5_omni, qwen3_omni
from omni_jax.models.thinker import Thinker
from omni_jax.nn.layers import Init
from omni_jax.parallel.param_paths import axes, leaves, replace

__all__ = ["SPEECH", "abstract", "axes", "builders", "leaves", "random", "replace"]

SPEECH = ("talker", "code_predictor", "code2wav", "dit", "bigvgan")
# Which module a configuration is of.
ENCODERS: dict[type, Callable[..., nnx.Module]] = {
    AudioEncoderConfig: qwen3_omni.AudioEncoder,
    VisionEncoderConfig: qwen3_omni.VisionEncoder,
    Qwen25AudioEncoderConfig: qwen2_5_omni.AudioEncoder,
    Qwen25VisionEncoderConfig: qwen2_5_omni.VisionEncoder,
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
        case Qwen3OmniConfig(talker=talker, code2wav=code2wav) if speech and talker and code2wav:
            parts["talker"] = lambda init: qwen3_omni.Talker(init, talker)
            parts["code_predictor"] = lambda init: qwen3_omni.CodePredictor(init, talker)
            parts["code2wav"] = lambda init: qwen3_omni.Code2Wav(init, code2wav)
        case Qwen25OmniConfig(talker=talker, token2wav=token2wav) if speech and talker and token2wav:
            parts["talker"] = lambda init: qwen2_5_omni.Talker(init, talker)
            parts["dit"] = lambda init: qwen2_5_omni.DiT(init, token2wav.dit)
            parts["bigvgan"] = lambda init: qwen2_5_omni.BigVGAN(init, token2wav.bigvgan)
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
