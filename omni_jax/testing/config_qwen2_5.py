"""The former name of ``qwen2_5_omni.py``, kept for existing imports."""

from omni_jax.testing.qwen2_5_omni import preprocessor_qwen2_5, three_b, tiny_qwen2_5_config, tiny_speakers

__all__ = ["preprocessor_qwen2_5", "three_b", "tiny_qwen2_5_config", "tiny_speakers"]
