"""Tokenizers of a few hundred tokens, with and without the tags of thinking and tool calls."""

import pytest

from omni_jax.processing.prompt import load_tokenizer
from omni_jax.processing.transcript import TAGS
from tests.support.tiny_tokenizer import write_tiny_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="session")
def plain_tokenizer(tmp_path_factory):
    """A tokenizer without thinking and tool calls, as Qwen2.5-Omni's has no thinking."""
    return load_tokenizer(write_tiny_tokenizer(tmp_path_factory.mktemp("plain"), leave_out=TAGS))
