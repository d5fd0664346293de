"""Tiny checkpoints: their files, reproducibility, tokenizer and template."""

import hashlib
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from omni_jax import weights
from omni_jax.config import from_hf, read_json
from omni_jax.models import parts
from omni_jax.processing.prompt import load_tokenizer
from omni_jax.testing import tiny_config, write_tiny, write_tokenizer


def tensors_of(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


@pytest.fixture(scope="module")
def tensors(tiny):
    return tensors_of(tiny)


def test_the_files_are_those_of_the_hub(tiny):
    shards = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
    words = {"vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.json"}
    configs = {"config.json", "generation_config.json", "preprocessor_config.json"}
    assert {path.name for path in tiny.iterdir()} == shards | words | configs


def test_the_config_is_in_the_hubs_spelling(tiny):
    config = read_json(tiny / "config.json")
    text, talker = config["thinker_config"]["text_config"], config["talker_config"]["text_config"]
    for part in (text, talker):
        assert {"rope_theta", "rope_scaling", "num_experts", "head_dim"} <= part.keys()
        assert "rope_parameters" not in part
    assert from_hf(config) == from_hf(tiny_config())


def test_each_expert_has_its_own_tensors(tensors):
    assert len(tensors) == 564
    assert sum(tensor.size for tensor in tensors.values()) == 926_185
    assert tensors["thinker.model.layers.3.mlp.experts.7.gate_proj.weight"].shape == (32, 64)
    assert tensors["talker.model.layers.2.mlp.shared_expert_gate.weight"].shape == (1, 48)
    assert tensors["code2wav.decoder.1.block.1.conv.weight"].shape == (64, 32, 16)


def test_the_same_on_every_machine(tensors):
    """A few recorded values."""
    known = {
        "thinker.model.layers.0.input_layernorm.weight": [1.1537344, 1.0360199, 0.7654332, 0.9158145],
        "code2wav.decoder.6.conv.weight": [0.05714996, 0.11886751],
        "talker.model.layers.2.mlp.experts.5.up_proj.weight": [-0.14162172, -0.01568729],
    }
    norm, conv, expert = (tensors[name] for name in known)
    found = norm[:4], conv[0, :2, 0], expert[3, :2]
    for values, wanted in zip(found, known.values(), strict=True):
        np.testing.assert_allclose(values, wanted, rtol=1e-6)


def test_seeds_change_the_weights(tensors, tmp_path):
    again, other = tensors_of(write_tiny(tmp_path / "again")), tensors_of(write_tiny(tmp_path / "other", seed=1))
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor)
        # The zero rows of the talker's head are zero for any seed, so not every value differs.
        assert not np.array_equal(other[name], tensor)


def test_no_value_is_constant_or_repeated(tensors):
    """Norms, biases and scales vary, no two layers or experts are equal, and activations stay near 1."""
    for name, tensor in tensors.items():
        assert np.isfinite(tensor).all()
        assert tensor.size == 1 or len(np.unique(tensor)) > tensor.size // 2, name
    norm = tensors["thinker.model.layers.0.input_layernorm.weight"]
    assert abs(norm.mean() - 1) < 0.1
    assert 0.05 < norm.std() < 0.15
    assert 0.2 < tensors["code2wav.upsample.0.1.gamma"].mean() < 0.4
    down = tensors["thinker.model.layers.0.mlp.experts.0.down_proj.weight"]
    assert down.std() == pytest.approx(32**-0.5, rel=0.1)
    digests = {hashlib.sha256(tensor.tobytes()).digest() for tensor in tensors.values()}
    assert len(digests) == len(tensors)


def test_greedy_speech_does_not_end_at_once(tensors):
    eos = tiny_config()["talker_config"]["codec_eos_token_id"]
    assert not tensors["talker.codec_head.weight"][eos].any()
    assert tensors["talker.codec_head.weight"].any(axis=1).sum() == 64 + 1024 - 1


def test_write_tiny_applies_its_options(tmp_path):
    folder = write_tiny(tmp_path / "text", speech=False, dtype="bfloat16", shards=1)
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]
    tensors = tensors_of(folder)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert all(name.startswith("thinker.") for name in tensors)
    config = read_json(folder / "config.json")
    assert "talker_config" not in config
    assert from_hf(config).talker is None
    assert read_json(folder / "generation_config.json")["max_new_tokens"] == 32768
    assert set(weights.load(folder, from_hf(config), dtype="float32")) == {"thinker", "audio_encoder", "vision_encoder"}


@pytest.mark.parametrize("shards", [1, 2, 3, 6])
def test_weights_are_written_in_shards(tmp_path, shards):
    folder = write_tiny(tmp_path / "tiny", shards=shards)
    assert 1 <= len(list(folder.glob("*.safetensors"))) <= shards
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shards > 1)


def test_a_given_config_is_used(tmp_path):
    config = tiny_config()
    config["thinker_config"]["text_config"] |= {"num_hidden_layers": 2, "num_experts": 4}
    config["talker_config"]["accept_hidden_layer"] = 1
    folder = write_tiny(tmp_path / "own", config=config)
    made = parts.leaves(weights.load(folder, from_hf(folder), dtype="float32"))
    assert made["thinker.decoder.experts.down"].shape == (2, 4, 32, 64)


def test_a_folder_with_weights_is_refused(tiny):
    with pytest.raises(ValueError, match="already holds safetensors"):
        write_tiny(tiny)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def test_roles_and_added_tokens_are_single_tokens_with_the_configs_ids(tokenizer):
    config = from_hf(tiny_config())
    found = {text: tokenizer.encode(text) for text in ("system", "user", "assistant", "<|im_start|>", "<|audio_pad|>")}
    ids = (config.system, config.user, config.assistant, config.im_start, config.thinker.audio_token)
    assert list(found.values()) == [[number] for number in ids]
    assert tokenizer.eos_token_id == config.im_end
    assert tokenizer.audio_token_id == config.thinker.audio_token
    assert len(tokenizer) <= config.thinker.vocabulary
    assert tokenizer.encode("\n") == [198]
    # Decoding skips only the tokens that the published file marks as special.
    text = "<|im_start|><think>a</think><tool_call><|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == "<think>a</think><tool_call>"


@pytest.mark.parametrize("text", ["Hello, the world of all that was!", "naïve 語 🙂\n\t x", " the  the"])
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_common_words_are_single_tokens(tokenizer):
    for word in (" the", " what", " will"):
        assert len(tokenizer.encode(word)) == 1


def render(tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def test_the_template_renders_media(tokenizer):
    content = [
        {"type": "audio", "audio": ""},
        {"type": "text", "text": " Describe. "},
        {"image": ""},
        {"type": "video", "video": ""},
        {"audio_url": ""},
    ]
    assert render(tokenizer, [{"role": "user", "content": content}], add_generation_prompt=True) == (
        "<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|> Describe. "
        "<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|video_pad|><|vision_end|><|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_template_renders_thinking(tokenizer):
    messages = [{"role": "system", "content": [{"type": "text", "text": "S\n"}]}, {"role": "user", "content": "a"}]
    text = render(tokenizer, messages, add_generation_prompt=True, enable_thinking=False)
    assert text == (
        "<|im_start|>system\nS\n<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    answer = {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nb", "reasoning_content": "why"}
    assert render(tokenizer, [messages[1], answer]).endswith("<think>\nwhy\n</think>\n\nb<|im_end|>\n")
    assert "why" not in render(tokenizer, [messages[1], answer, messages[1]])


def test_the_template_renders_tools(tokenizer):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    calls = [{"function": {"name": "f", "arguments": {"x": 1}}}, {"name": "f", "arguments": '{"x": 2}'}]
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
    ]
    text = render(tokenizer, messages, tools=[tool])
    assert text.startswith("<|im_start|>system\nS\n\n# Tools")
    assert f"<tools>\n{json.dumps(tool)}\n</tools>" in text
    assert text.count("<|im_start|>system") == 1
    assert text.endswith(
        '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "f", "arguments": {"x": 2}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
    )
    assert "# Tools" not in render(tokenizer, messages[:2])
