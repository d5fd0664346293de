"""Prompts of one padded size for all pages, so that they share compiled programs."""

import pytest

from omni_jax.buckets import bucket


@pytest.fixture(scope="module", autouse=True)
def one_bucket():
    """Pads prompts and caches to 1,024 tokens: most of these tests' time is compilation."""
    before = bucket.__defaults__
    bucket.__defaults__ = (1024,)
    yield
    bucket.__defaults__ = before
