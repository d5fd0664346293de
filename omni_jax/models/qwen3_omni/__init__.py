"""The parts that are Qwen3-Omni's own."""

from omni_jax.models.qwen3_omni.audio_encoder import AudioEncoder
from omni_jax.models.qwen3_omni.code2wav import Code2Wav
from omni_jax.models.qwen3_omni.talker import CodePredictor, Talker
from omni_jax.models.qwen3_omni.vision_encoder import VisionEncoder

__all__ = ["AudioEncoder", "Code2Wav", "CodePredictor", "Talker", "VisionEncoder"]
