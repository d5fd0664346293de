"""Strict numerics for every test, eight devices for the sharded ones, and one tiny checkpoint for all."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest

jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny random Qwen3-Omni in the published layout."""
    from omni_jax.testing import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def omni(tiny):
    from omni_jax import Omni

    return Omni.load(tiny)


@pytest.fixture(scope="session")
def loaded(tiny):
    """The tiny checkpoint's parts, speaking ones too."""
    from omni_jax import weights
    from omni_jax.config import from_hf

    return weights.load(tiny, from_hf(tiny), dtype="float32")
