"""The compiled entry points of a model: what runs, and what ``plan`` lowers at full size."""

from omni_jax.decoding.frames import generate_frames
from omni_jax.decoding.text import decode_steps, grow, prefill
from omni_jax.engine.encode import audio_features, vision_features
from omni_jax.speech.qwen3_omni import samples_of_codes
from omni_jax.speech.token2wav import mel_of_codes, samples_of_mel

__all__ = [
    "audio_features",
    "decode_steps",
    "generate_frames",
    "grow",
    "mel_of_codes",
    "prefill",
    "samples_of_codes",
    "samples_of_mel",
    "vision_features",
]
