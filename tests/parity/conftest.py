"""The references: Transformers on the same tiny checkpoints, float32."""

import importlib.util
import warnings
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

if importlib.util.find_spec("torch") is not None:  # without torch, tests/conftest.py ignores this folder
    import torch

    torch.set_num_threads(1)  # two threads wait for each other on two busy cores, and the tests take 1.5 times as long


@pytest.fixture(scope="session")
def reference(tiny):
    from transformers import Qwen3OmniMoeForConditionalGeneration

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
            tiny, dtype=torch.float32, output_loading_info=True
        )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


@pytest.fixture(scope="session")
def qwen2_5_of(tmp_path_factory):
    """Random Qwen2.5-Omnis by a name of ``parity_qwen2_5.CONFIGS``: ``.folder``, ``.omni`` of it and ``.reference`` of it."""
    from omni_jax import Omni
    from omni_jax.testing import write_tiny
    from tests.parity.parity_qwen2_5 import CONFIGS, load_reference

    @cache
    def qwen2_5(name: str) -> SimpleNamespace:
        folder: Path = write_tiny(tmp_path_factory.mktemp("qwen2_5") / "model", config=CONFIGS[name]())
        return SimpleNamespace(folder=folder, omni=Omni.load(folder), reference=load_reference(folder))

    return qwen2_5


@pytest.fixture(scope="session")
def qwen2_5(qwen2_5_of):
    """The tiny one."""
    return qwen2_5_of("7B")
