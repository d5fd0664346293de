"""Folders as users have them: one line says what each is and what to do."""

import json

import pytest

from omni_jax.checkpoint.hub import locate
from omni_jax.config import from_hf
from omni_jax.testing import tiny_config, tiny_qwen2_5_config
from omni_jax.testing.tokenizer import QWEN3, token_ids, write_tokenizer
from omni_jax.testing.tokenizer_qwen2_5 import QWEN2_5, token_ids_qwen2_5

PEFT = {"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen2.5-Omni-7B"}


def put(folder, files):
    """Writes files by their paths: an object as JSON, None as an empty file, a trailing slash makes a folder."""
    for name, content in files.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if content is None else json.dumps(content))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"adapter_config.json": PEFT, "adapter_model.safetensors": None}, ("adapter", "LORA", "Qwen/Qwen2.5-Omni-7B")),
        ({"adapter_config.json": PEFT, "config.json": {"model_type": "qwen2_5_omni"}}, ("adapter", "merge_and_unload")),
        ({"adapter_config.json": [1], "adapter_model.bin": None}, ("adapter",)),
        ({"checkpoint-500/config.json": {}, "checkpoint-1000/": None}, ("trainer's output", "checkpoint-1000")),
        ({"checkpoint-500/adapter_config.json": PEFT}, ("trainer's output", "checkpoint-500")),
        ({"snapshots/abc/config.json": {}, "refs/main": None}, ("give", "snapshots/abc")),
        ({"inner/config.json": {}}, ("found no config.json in it", "inner")),
        ({"model-Q4_K_M.gguf": None}, ("GGUF", "quantized")),
        ({"onnx.onnx": None}, ("ONNX",)),
        ({"model_index.json": {}, "unet/config.json": {}, "vae/config.json": {}}, ("diffusers",)),
        ({"latest_checkpointed_iteration.txt": None, "iter_0000500/": None}, ("Megatron",)),
        ({"global_step500/mp_rank_00_model_states.pt": None, "latest": None}, ("DeepSpeed", "zero_to_fp32")),
        ({"__0_0.distcp": None, ".metadata": None}, ("distributed PyTorch",)),
        ({"consolidated.00.pth": None, "params.json": {}}, ("consolidated.00.pth", "save_pretrained")),
        ({"pytorch_model.bin": None}, ("pytorch_model.bin", "save_pretrained")),
        ({"flax_model.msgpack": None}, ("Flax",)),
        ({}, ("expected a Hugging Face or converted model folder, found no config.json",)),
    ],
)
def test_the_error_names_the_kind_of_a_folder_that_is_no_checkpoint(tmp_path, files, words):
    put(tmp_path, files)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        from_hf(locate(tmp_path))
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.gguf", "GGUF"),
        ("model.onnx", "ONNX"),
        ("pytorch_model.bin", "save_pretrained"),
        ("model-00001-of-00002.safetensors", "give {folder}"),
        ("config.json", "give {folder}"),
        ("notes.txt", "give the folder that holds config.json"),
    ],
)
def test_a_file_in_place_of_a_folder_is_refused(tmp_path, name, words):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match="expected a model folder, got a file") as caught:
        locate(tmp_path / name)
    assert words.format(folder=tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized (gptq, 4 bits)"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantized (awq, 4 bits)"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "quantized (fp8)"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantized (bitsandbytes)"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "quantized (compressed-tensors)"),
        ({"quantization_config": {"quant_algo": "NVFP4"}}, "quantized (NVFP4)"),
        ({"quantization_config": {"x": "y" * 10_000}}, "quantized (unknown method)"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantized (MLX, 4 bits)"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_quantized_checkpoint_is_refused_as_such(about, words, nested):
    config = tiny_qwen2_5_config()
    config = {**config, "thinker_config": {**config["thinker_config"], **about}} if nested else {**config, **about}
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        from_hf(config)
    assert words in str(caught.value)
    assert "Qwen/Qwen2.5-Omni-7B" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "config", [{"quantization_config": None}, {"quantization_config": {}}, {"quantization": "none"}]
)
def test_empty_quantization_fields_are_ignored(config):
    assert from_hf({**tiny_config(), **config}) == from_hf(tiny_config())


FAMILIES = pytest.mark.parametrize(
    ("config", "dialect", "tokens"),
    [(tiny_config(), QWEN3, token_ids()), (tiny_qwen2_5_config(), QWEN2_5, token_ids_qwen2_5())],
    ids=["Qwen3-Omni", "Qwen2.5-Omni"],
)


def without_ids(config, of):
    """A configuration without the fields that name tokens of a tokenizer."""
    if not isinstance(config, dict):
        return config
    left = {name: without_ids(value, of) for name, value in config.items()}
    ids = {name for name in left if name.endswith(("_token_id", "_token_index")) and left[name] in of.values()}
    return {name: value for name, value in left.items() if name not in ids or "codec" in name}


@FAMILIES
def test_absent_ids_are_read_from_the_tokenizer(tmp_path, config, dialect, tokens):
    sparse = without_ids(config, tokens)
    assert "vision_start_token_id" not in sparse["thinker_config"]
    (tmp_path / "config.json").write_text(json.dumps(sparse))
    write_tokenizer(tmp_path, dialect)
    assert from_hf(tmp_path) == from_hf(config)


@FAMILIES
def test_ids_are_read_from_any_of_the_tokenizers_files(tmp_path, config, dialect, tokens):
    """As Transformers 5 writes it, tokenizer.json alone, and as older ones did, vocab.json and added_tokens.json."""
    (tmp_path / "config.json").write_text(json.dumps(without_ids(config, tokens)))
    added = [{"id": token, "content": text} for text, token in tokens.items() if text.startswith("<")]
    words = {text: token for text, token in tokens.items() if not text.startswith("<")}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": {"vocab": words}}))
    assert from_hf(tmp_path) == from_hf(config)
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)  # damaged: another reader reports it
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "added_tokens.json").write_text(json.dumps({entry["content"]: entry["id"] for entry in added}))
    assert from_hf(tmp_path) == from_hf(config)


@FAMILIES
def test_without_a_tokenizer_published_ids_are_used_or_none(config, dialect, tokens):
    made = from_hf(without_ids(config, tokens))
    assert made.thinker.vision_start == -1  # the published one is outside the tiny vocabulary
    large = without_ids(config, tokens)
    large["thinker_config"]["text_config"]["vocab_size"] = 152_064
    assert from_hf(large).thinker.vision_start == 151_652
    assert from_hf(large).im_end == 151_645


@pytest.mark.parametrize(
    ("config", "family"), [(tiny_config(), "qwen3_omni_moe"), (tiny_qwen2_5_config(), "qwen2_5_omni")]
)
def test_a_configuration_of_a_thinker_saved_alone_is_read(config, family):
    alone = {**config["thinker_config"], "model_type": f"{family}_thinker"}
    made, whole = from_hf(alone), from_hf(config)
    assert made.family == family
    assert made.talker is None
    assert made.thinker == whole.thinker
    alone["text_config"] = {**alone["text_config"], "hidden_act": "gelu"}
    with pytest.raises(ValueError, match=r"^config.json: text_config.hidden_act: expected 'silu', got 'gelu'"):
        from_hf(alone)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, '{"model_type": ' + "9" * 5000 + "}"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_too_deep_or_too_long_json_raises_one_line(tmp_path, name, content):
    from omni_jax.config import read_json

    (tmp_path / name).write_text(content)
    with pytest.raises(
        ValueError, match=rf"^[^\n]*{name}: expected a JSON object, got a file that does not parse"
    ) as caught:
        read_json(tmp_path / name)
    assert len(str(caught.value)) < 500
