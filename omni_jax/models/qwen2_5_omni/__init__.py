"""The parts that are Qwen2.5-Omni's own."""

from omni_jax.models.qwen2_5_omni.audio_encoder import AudioEncoder
from omni_jax.models.qwen2_5_omni.bigvgan import BigVGAN
from omni_jax.models.qwen2_5_omni.dit import DiT
from omni_jax.models.qwen2_5_omni.talker import Talker
from omni_jax.models.qwen2_5_omni.vision_encoder import VisionEncoder

__all__ = ["AudioEncoder", "BigVGAN", "DiT", "Talker", "VisionEncoder"]
