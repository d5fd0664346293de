"""The reference: Transformers on the same tiny checkpoint, float32."""

import warnings

import pytest
import torch

torch.set_num_threads(1)  # two wait for each other on two busy cores: the tests then take 1.5 times as long


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
