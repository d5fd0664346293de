"""A converted folder that is refused."""

import re

import pytest

from omni_jax import checkpoint
from omni_jax.config import from_hf
from omni_jax.testing import tiny_config

CONFIG = from_hf(tiny_config())


def refuses(folder, *words, **options):
    with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
        checkpoint.load(folder, options.pop("config", CONFIG), dtype="float32", **options)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)
