"""The tiny Qwen2.5-Omni's config.json: the reference builds a model from it, and its copy reads the same."""

import json

import pytest
import torch
from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

from omni_jax.config.qwen2_5_omni import read
from omni_jax.testing.qwen2_5_omni import three_b, tiny_qwen2_5_config


@pytest.mark.parametrize("change", [dict, three_b], ids=["as the 7B", "as the 3B"])
def test_the_references_own_spelling_reads_the_same(tmp_path, change):
    config = change(tiny_qwen2_5_config())
    Qwen2_5OmniConfig(**config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in saved["talker_config"]
    assert read(saved) == read(config)


@pytest.mark.parametrize(("change", "count"), [(dict, 455_924), (three_b, 448_100)], ids=["as the 7B", "as the 3B"])
def test_the_reference_builds_the_tiny_model_without_tied_weights(change, count):
    with torch.device("meta"):
        model = Qwen2_5OmniForConditionalGeneration(Qwen2_5OmniConfig(**change(tiny_qwen2_5_config())))
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert model.thinker.lm_head.weight is not model.thinker.get_input_embeddings().weight
