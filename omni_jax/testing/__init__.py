"""Tiny random checkpoints in the published layout, for our tests, our users' tests and the demo.

    folder = write_tiny(tmp_path)             # about 1 M parameters, 4 MB, under a second
    omni = Omni.load(folder)
    write_tiny(tmp_path / "qwen2_5", config=tiny_qwen2_5_config())          # a Qwen2.5-Omni instead of a Qwen3-Omni

A folder has the files of the hub: config.json in the hub's spelling, generation and preprocessor configuration,
vocab.json, merges.txt and tokenizer_config.json (no tokenizer.json), a chat template, safetensors shards with an index,
one tensor an expert, and the voices of Qwen2.5-Omni in spk_dict.pt. The weights are random, so the model's replies
mean nothing.
"""

from omni_jax.testing.checkpoint import write_tiny
from omni_jax.testing.qwen2_5_omni import tiny_qwen2_5_config
from omni_jax.testing.qwen3_omni import tiny_config
from omni_jax.testing.tokenizer import write_tokenizer

__all__ = ["tiny_config", "tiny_qwen2_5_config", "write_tiny", "write_tokenizer"]
