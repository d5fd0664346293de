"""Generation of tokens and codes: model-agnostic, over any module with ``prefill`` and ``step``."""
