"""Prompts of one padded size for all pages, so that they share compiled programs."""

import pytest

from omni_jax.buckets import bucket


@pytest.fixture(scope="module", autouse=True)
def one_bucket():
    """Pads prompts and caches to 1,024 tokens: compilation is most of these tests' time, and work on a tiny model little."""
    before = bucket.__defaults__
    bucket.__defaults__ = (1024,)
    yield
    bucket.__defaults__ = before
