"""Our checkpoints in Transformers and theirs in ours: the same names and the same values."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from transformers import AutoTokenizer, Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration

from omni_jax import weights
from omni_jax.config import from_hf, read_json
from omni_jax.models import parts
from omni_jax.testing import tiny_config


def everything(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def same(left, right):
    left, right = parts.leaves(left), parts.leaves(right)
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_array_equal(np.asarray(left[path]), np.asarray(right[path]), err_msg=path)


@pytest.fixture(scope="module")
def theirs(tiny):
    model, info = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        tiny, dtype=torch.float32, output_loading_info=True
    )
    assert {name: found for name, found in info.items() if found} == {}
    return model


@pytest.fixture(scope="module")
def ours(tiny):
    return weights.load(tiny, from_hf(tiny), dtype="float32")


def test_a_tiny_checkpoint_loads_in_transformers_whole_and_equal(theirs, ours):
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    assert sum(tensor.size for tensor in state.values()) == sum(leaf.size for leaf in parts.leaves(ours).values())
    found = parts.leaves(ours)
    gate_up = state["thinker.model.language_model.layers.3.mlp.experts.gate_up_proj"]
    np.testing.assert_array_equal(found["thinker.decoder.experts.gate_up"][3], gate_up.transpose(0, 2, 1))
    down = state["talker.model.layers.1.mlp.experts.down_proj"]
    np.testing.assert_array_equal(found["talker.decoder.experts.down"][1], down.transpose(0, 2, 1))


def test_what_transformers_saves_loads_here(theirs, ours, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert from_hf(tmp_path) == from_hf(tiny_config())
    same(weights.load(tmp_path, from_hf(tmp_path), dtype="float32"), ours)


def test_transformers_in_memory_names_load_here(theirs, ours, tmp_path):
    save_file(
        {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, tmp_path / "model.safetensors"
    )
    assert any("language_model" in name for name in theirs.state_dict())
    same(weights.load(tmp_path, from_hf(tiny_config()), dtype="float32"), ours)


def test_export_is_what_transformers_saves(theirs, ours, tiny, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    weights.save(ours, tmp_path / "ours", read_json(tiny / "config.json"))
    left, right = everything(tmp_path / "ours"), everything(tmp_path / "theirs")
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        np.testing.assert_array_equal(tensor, right[name], err_msg=name)


def test_the_text_model_loads_in_transformers(tmp_path):
    from omni_jax.testing import write_tiny

    folder = write_tiny(tmp_path / "text", speech=False)
    model, info = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert {name: found for name, found in info.items() if found} == {}
    assert not model.has_talker


def test_the_config_reads_the_same_in_transformers(tiny):
    config = Qwen3OmniMoeConfig.from_pretrained(tiny)
    assert config.talker_config.text_config.num_experts == 8
    assert from_hf(json.loads(config.to_json_string(use_diff=False))) == from_hf(tiny)


def test_the_tokenizer_loads_in_transformers(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert tokenizer.audio_token == "<|audio_pad|>"
    assert tokenizer.encode("user\n") == [from_hf(tiny).user, 198]
