"""Tiny checkpoints of Qwen2.5-Omni: their files, reproducibility, tokenizer, template and voices."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from omni_jax import weights
from omni_jax.config import from_hf, read_json
from omni_jax.processing.prompt import load_tokenizer
from omni_jax.testing import tiny_qwen2_5_config, write_tiny
from omni_jax.testing.qwen2_5_omni import CODEC_VOCABULARY, CODES, three_b, unspelt_id
from omni_jax.testing.tokenizer import readable_ids
from omni_jax.weights.speakers import FILE, read_speakers


def tensors_of(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


@pytest.fixture(scope="module")
def qwen2_5(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("qwen2_5"), config=tiny_qwen2_5_config())


@pytest.fixture(scope="module")
def tensors(qwen2_5):
    return tensors_of(qwen2_5)


def test_the_files_are_those_of_the_hub(qwen2_5):
    shards = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
    words = {"vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.json"}
    configs = {"config.json", "generation_config.json", "preprocessor_config.json"}
    assert {path.name for path in qwen2_5.iterdir()} == shards | words | configs | {FILE}


def test_the_written_config_is_the_tiny_one(qwen2_5):
    assert from_hf(qwen2_5) == from_hf(tiny_qwen2_5_config())


@pytest.mark.parametrize(("change", "count"), [(dict, 455_924), (three_b, 448_100)], ids=["as the 7B", "as the 3B"])
def test_checkpoints_have_the_expected_size(tmp_path, change, count):
    found = tensors_of(write_tiny(tmp_path, config=change(tiny_qwen2_5_config())))
    assert (len(found), sum(tensor.size for tensor in found.values())) == (439, count)


def test_the_same_on_every_machine(tensors):
    """A few recorded values."""
    known = {
        "thinker.model.layers.0.self_attn.q_proj.bias": [0.022248859, 0.057519536, -0.047245786],
        "talker.thinker_to_talker_proj.weight": [-0.18757184, 0.11785722, 0.0036488012],
        "token2wav.code2wav_bigvgan_model.ups.0.0.weight": [-0.035121109, -0.0061316174, -0.039900206],
    }
    for name, values in known.items():
        np.testing.assert_allclose(tensors[name].reshape(-1)[:3], values, rtol=1e-6, err_msg=name)


def test_the_same_bytes_each_time(qwen2_5, tmp_path):
    again = write_tiny(tmp_path, config=tiny_qwen2_5_config())
    for path in qwen2_5.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_seeds_change_the_weights(tensors, tmp_path):
    other = tensors_of(write_tiny(tmp_path, config=tiny_qwen2_5_config(), seed=1))
    assert not any(np.array_equal(other[name], tensor) for name, tensor in tensors.items())


def test_no_value_is_constant_or_repeated(tensors):
    """Norms, biases and scales vary, and no two tensors are equal."""
    for name, tensor in tensors.items():
        assert np.isfinite(tensor).all()
        assert len(np.unique(tensor)) > tensor.size // 2, name
    assert len({tensor.tobytes() for tensor in tensors.values()}) == len(tensors)
    # A transposed convolution's fan-in: its first axis times two taps for each sample.
    upsample = tensors["token2wav.code2wav_bigvgan_model.ups.0.0.weight"]
    assert upsample.std() == pytest.approx(0.5 / (2 * 32) ** 0.5, rel=0.05)
    dilated = tensors["token2wav.code2wav_bigvgan_model.resblocks.0.convs1.0.weight"]
    assert dilated.std() == pytest.approx(0.5 / (16 * 3) ** 0.5, rel=0.05)
    modulation = tensors["token2wav.code2wav_dit_model.transformer_blocks.0.attn_norm.linear.weight"]
    assert modulation.std() == pytest.approx(32**-0.5, rel=0.05)


def test_greedy_speech_gives_only_codes_and_greedy_text_is_readable(tensors):
    assert tensors["talker.codec_head.weight"].any(axis=1).tolist() == [True] * CODES + [False] * (
        CODEC_VOCABULARY - CODES
    )
    assert np.flatnonzero(tensors["thinker.lm_head.weight"].any(axis=1)).tolist() == readable_ids()


def test_a_model_without_speech_is_written(tmp_path):
    folder = write_tiny(tmp_path / "text", config=tiny_qwen2_5_config(), speech=False, dtype="bfloat16", shards=1)
    tensors = tensors_of(folder)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert all(name.startswith("thinker.") for name in tensors)
    config = read_json(folder / "config.json")
    assert config["enable_audio_output"] is False
    assert not {"talker_config", "token2wav_config"} & config.keys()
    assert from_hf(config).talker is None
    assert not (folder / FILE).exists()
    assert set(weights.load(folder, from_hf(config), dtype="float32")) == {"thinker", "audio_encoder", "vision_encoder"}


def test_voices_match_the_model(qwen2_5, tmp_path):
    found = read_speakers(qwen2_5, from_hf(qwen2_5))
    assert {name: voice.bos_token for name, voice in found.items()} == {
        name: unspelt_id(name) for name in ("Chelsie", "Ethan")
    }
    config = tiny_qwen2_5_config()
    config["token2wav_config"]["dit_config"] |= {"enc_emb_dim": 10, "mel_dim": 8}
    config["token2wav_config"]["bigvgan_config"]["mel_dim"] = 8
    folder = write_tiny(tmp_path, config=config)
    assert read_speakers(folder, from_hf(folder))["Ethan"].cond.shape == (1, 10)


def test_settings_are_the_published_ones(qwen2_5):
    ids = load_tokenizer(qwen2_5).convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert read_json(qwen2_5 / "generation_config.json") == {"eos_token_id": ids}
    found = read_json(qwen2_5 / "preprocessor_config.json")
    wanted = {
        "processor_class": "Qwen2_5OmniProcessor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "chunk_length": 300,
        "n_samples": 4800000,
        "feature_size": 128,
    }
    assert wanted.items() <= found.items()


# --- tokenizer and template


@pytest.fixture(scope="module")
def tokenizer(qwen2_5):
    return load_tokenizer(qwen2_5)


def test_roles_and_added_tokens_are_single_tokens_with_the_configs_ids(tokenizer):
    config = from_hf(tiny_qwen2_5_config())
    thinker = config.thinker
    marks = {
        "user": config.user,
        "<|im_start|>": config.im_start,
        "<|im_end|>": config.im_end,
        "<|AUDIO|>": thinker.audio_token,
        "<|audio_bos|>": thinker.audio_start,
        "<|audio_eos|>": thinker.audio_end,
        "<|IMAGE|>": thinker.image_token,
        "<|VIDEO|>": thinker.video_token,
        "<|vision_bos|>": thinker.vision_start,
        "<|vision_eos|>": thinker.vision_end,
    }
    assert {text: tokenizer.encode(text) for text in marks} == {text: [number] for text, number in marks.items()}
    assert len(tokenizer.encode("assistant")) == len(tokenizer.encode("system")) == 1
    assert (tokenizer.eos_token_id, tokenizer.pad_token) == (config.im_end, "<|endoftext|>")
    assert (tokenizer.audio_token, tokenizer.vision_bos_token) == ("<|AUDIO|>", "<|vision_bos|>")
    assert len(tokenizer) == config.tts_pad < thinker.vocabulary
    text = "<|im_start|><tool_call>a</tool_call><|AUDIO|><|file_sep|><|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == "<tool_call>a</tool_call><|file_sep|>"


def render(tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def test_a_system_turn_is_put_before_a_conversation_without_one(tokenizer):
    hello = {"role": "user", "content": "Hi"}
    said = "<|im_start|>user\nHi<|im_end|>\n"
    default = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert render(tokenizer, [hello]) == default + said
    assert render(tokenizer, [hello], add_generation_prompt=True) == default + said + "<|im_start|>assistant\n"
    own = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert render(tokenizer, [own, hello]) == "<|im_start|>system\nBe brief.<|im_end|>\n" + said
    late = render(tokenizer, [hello, own])
    assert late == default + said + "<|im_start|>system\nBe brief.<|im_end|>\n"
    answer = {"role": "assistant", "content": "<think>\n\n</think> Yes \n"}
    assert render(tokenizer, [own, answer]).endswith("<|im_start|>assistant\n<think>\n\n</think> Yes \n<|im_end|>\n")


def test_media_are_marked_and_counted_where_that_is_asked_for(tokenizer):
    turns = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": ""},
                {"type": "text", "text": " A "},
                {"audio_url": ""},
                {"video": ""},
            ],
        },
        {
            "role": "user",
            "content": [{"image_url": ""}, {"type": "audio", "audio": ""}, {"type": "video", "video": ""}],
        },
    ]
    picture, sound, film = (f"<|{b}_bos|><|{name}|><|{b}_eos|>" for b, name in
                            (("vision", "IMAGE"), ("audio", "AUDIO"), ("vision", "VIDEO")))  # fmt: skip
    plain = render(tokenizer, turns).split("<|im_start|>user\n")[1:]
    assert plain == [f"{picture} A {sound}{film}<|im_end|>\n", f"{picture}{sound}{film}<|im_end|>\n"]
    counted = render(tokenizer, turns, add_vision_id=True, add_audio_id=True).split("<|im_start|>user\n")[1:]
    assert counted == [
        f"Picture 1: {picture} A Audio 1: {sound}Video 1: {film}<|im_end|>\n",
        f"Picture 2: {picture}Audio 2: {sound}Video 2: {film}<|im_end|>\n",
    ]
    assert "Audio 1" not in render(tokenizer, turns, add_vision_id=True)
    assert "Picture 1" not in render(tokenizer, turns, add_audio_id=True)
