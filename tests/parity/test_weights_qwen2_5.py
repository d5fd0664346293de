"""Checkpoints of Qwen2.5-Omni: ours in Transformers and theirs in ours, the same names and the same values."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
)

from omni_jax import checkpoint, weights
from omni_jax.config import from_hf, read_json
from omni_jax.models import parts
from omni_jax.testing import tiny_qwen2_5_config, write_tiny
from omni_jax.testing.qwen2_5_omni import three_b
from omni_jax.weights.speakers import FILE
from tests.support.trees import same


def everything(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def reference(folder, dtype=torch.float32):
    """Loaded as any model: its own from_pretrained returns no loading info and always requires voices."""
    load = PreTrainedModel.from_pretrained.__func__
    model, info = load(Qwen2_5OmniForConditionalGeneration, folder, dtype=dtype, output_loading_info=True)
    assert {name: found for name, found in info.items() if found} == {}
    return model


@pytest.fixture(scope="module", params=[dict, three_b], ids=["as the 7B", "as the 3B"])
def folder(request, tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("qwen2_5"), config=request.param(tiny_qwen2_5_config()))


@pytest.fixture(scope="module")
def theirs(folder):
    return reference(folder)


@pytest.fixture(scope="module")
def ours(folder):
    return weights.load(folder, from_hf(folder), dtype="float32")


def test_a_tiny_checkpoint_loads_in_transformers_whole_and_equal(theirs, ours):
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    found = parts.leaves(ours)
    assert sum(tensor.size for tensor in state.values()) == sum(leaf.size for leaf in found.values())
    up = state["thinker.model.language_model.layers.2.mlp.up_proj.weight"]
    np.testing.assert_array_equal(found["thinker.decoder.layers.ffn.gate_up.kernel"][2, :, 1], up.T)
    np.testing.assert_array_equal(found["talker.table.table"], state["talker.model.embed_tokens.weight"])
    out = state["token2wav.code2wav_dit_model.transformer_blocks.3.attn.to_out.0.weight"]
    np.testing.assert_array_equal(found["dit.layers.o.kernel"][3].reshape(32, 32), out.T)


def test_the_voices_load_in_transformers(folder):
    theirs = Qwen2_5OmniForConditionalGeneration.from_pretrained(folder)
    held = weights.voices(folder, from_hf(folder))
    assert list(theirs.speaker_map) == list(held)
    for name, voice in theirs.speaker_map.items():
        assert int(voice["bos_token"]) == held[name].bos_token
        for part in ("cond", "ref_mel"):
            np.testing.assert_array_equal(voice[part].numpy(), getattr(held[name], part))


def test_what_transformers_saves_loads_here(theirs, ours, folder, tmp_path):
    source = tmp_path / "theirs"
    theirs.save_pretrained(source, max_shard_size="300KB")
    assert len(list(source.glob("*.safetensors"))) >= 5
    assert from_hf(source) == from_hf(folder)
    same(weights.load(source, from_hf(source), dtype="float32"), ours)
    # Their folder has no voices: a conversion reports it, and continues when they are there.
    with pytest.raises(ValueError, match=f"{FILE}: expected the speakers of a Qwen2.5-Omni, found no such file"):
        checkpoint.convert(source, tmp_path / "converted")
    (source / FILE).write_bytes((folder / FILE).read_bytes())
    converted = checkpoint.convert(source, tmp_path / "converted")
    same(checkpoint.load(converted, from_hf(converted)), ours)


def test_transformers_in_memory_names_load_here(theirs, ours, folder, tmp_path):
    save_file(
        {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, tmp_path / "model.safetensors"
    )
    assert any("language_model" in name for name in theirs.state_dict())
    same(weights.load(tmp_path, from_hf(folder), dtype="float32"), ours)


def test_save_is_what_transformers_saves(theirs, ours, folder, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    weights.save(ours, tmp_path / "ours", read_json(folder / "config.json"))
    left, right = everything(tmp_path / "ours"), everything(tmp_path / "theirs")
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        np.testing.assert_array_equal(tensor, right[name], err_msg=name)


def test_two_dtypes_load_in_transformers(tmp_path):
    """bfloat16 beside float32, through a conversion and back, value by value."""
    folder = write_tiny(tmp_path / "published", config=tiny_qwen2_5_config(), dtype="bfloat16")
    exported = checkpoint.export(checkpoint.convert(folder, tmp_path / "converted"), tmp_path / "exported")
    left, right = (reference(path, dtype="auto").state_dict() for path in (folder, exported))
    assert left.keys() == right.keys()
    kinds = {}
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name
        kinds.setdefault(name.split(".")[0], set()).add(tensor.dtype)
    assert kinds == {"thinker": {torch.bfloat16}, "talker": {torch.bfloat16}, "token2wav": {torch.float32}}


def test_a_model_saved_in_one_dtype_is_read_in_two(folder, tmp_path):
    """Its save_pretrained of a model cast as a whole has bfloat16 for token2wav too, and says so in config.json."""
    reference(folder, dtype=torch.bfloat16).to(torch.bfloat16).save_pretrained(tmp_path)
    source, _ = weights.published(tmp_path, from_hf(tmp_path))
    assert source.dtype.name == "bfloat16"
    made = parts.leaves(weights.load(tmp_path, from_hf(tmp_path), dtype="bfloat16"))
    assert {made[path].dtype.name for path in made if path.startswith(("dit.", "bigvgan."))} == {"float32"}
    saved = weights.save(source, tmp_path / "saved", read_json(tmp_path / "config.json"))
    assert read_json(saved / "config.json")["token2wav_config"].get("dtype", "float32") == "float32"
    names = {True: "float32", False: "bfloat16"}
    for name, tensor in everything(saved).items():
        assert tensor.dtype.name == names[name.startswith("token2wav.")], name


def test_a_model_without_speech_loads_in_transformers(tmp_path):
    folder = write_tiny(tmp_path, config=tiny_qwen2_5_config(), speech=False)
    assert not reference(folder).has_talker


def test_generation_settings_read_the_same_in_transformers(folder):
    config = Qwen2_5OmniConfig.from_pretrained(folder)
    assert from_hf(json.loads(config.to_json_string(use_diff=False))) == from_hf(folder)
    assert GenerationConfig.from_pretrained(folder).eos_token_id[0] == from_hf(folder).im_end
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.audio_token, tokenizer.image_token, tokenizer.video_token) == (
        "<|AUDIO|>",
        "<|IMAGE|>",
        "<|VIDEO|>",
    )
    assert tokenizer.encode("user\n") == [from_hf(folder).user, 198]
