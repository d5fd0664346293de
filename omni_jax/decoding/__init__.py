"""Choosing tokens: model-agnostic, on any module with ``prefill`` and ``step``."""
