"""Transformers' classes of tokenizers and chat templates, imported without its advice to install torch.

Without torch, Transformers prints at its import that only tokenizers work: here nothing else is needed.
"""

from omni_jax.environment import variables

with variables({"TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}, replace=False):
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer
    from transformers.utils.chat_template_utils import render_jinja_template

__all__ = ["PreTrainedTokenizerFast", "Qwen2Tokenizer", "render_jinja_template"]
