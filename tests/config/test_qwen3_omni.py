"""Configuration: the published files, every spelling in use, and one error with all faults."""

import copy
import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from omni_jax.config import from_hf, read_json
from omni_jax.models import parts
from omni_jax.testing import tiny_config

CONFIGS = Path(__file__).parents[1] / "configs"


def published(release):
    return json.loads((CONFIGS / f"qwen3_omni_{release}.json").read_text())


@pytest.mark.parametrize(
    ("release", "count"),
    [("instruct", 35_259_818_545), ("thinking", 31_719_205_488), ("captioner", 31_719_205_488)],
)
def test_parameter_counts_are_the_published_ones(release, count):
    facts = published(release)
    config = from_hf(facts["config"])
    hash(config)
    found = parts.leaves(parts.abstract(config, jnp.bfloat16))
    assert sum(leaf.size for leaf in found.values()) == count == facts["parameters"]
    assert (config.talker is None) == (config.code2wav is None) == (release != "instruct")


def test_fields_are_read_where_defaults_would_be_wrong():
    config = from_hf(published("instruct")["config"])
    assert config.thinker.decoder.head_width == 128
    assert config.thinker.decoder.layers == 48
    assert config.thinker.decoder.mrope_section == (24, 20, 20)
    assert config.thinker.positions_per_second == 13
    assert config.thinker.audio_token == 151675
    assert config.thinker.audio_encoder.chunk_tokens == 13
    assert config.thinker.audio_encoder.window_tokens == 104
    assert config.thinker.vision_encoder.taps == (8, 16, 24)
    assert config.talker is not None
    assert config.code2wav is not None
    assert config.talker.decoder.experts.per_token == 6
    assert config.talker.decoder.experts.shared_ffn_width == 768
    assert config.talker.decoder.experts.normalize
    assert config.talker.decoder.rope_theta == 1e6
    assert config.talker.accept_layer == 24
    assert config.talker.speakers == (("chelsie", 2301), ("ethan", 2302), ("aiden", 2303))
    assert config.code2wav.decoder.window == 72
    assert config.code2wav.decoder.head_width == 64
    assert config.code2wav.decoder.norm_eps == 1e-5


def test_a_dict_a_file_and_a_folder_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    config = from_hf(tiny_config())
    assert from_hf(tmp_path) == from_hf(str(tmp_path / "config.json")) == config


def change(path, value, config=None):
    """The tiny configuration with the field at a dotted path set, or deleted where the value is None."""
    config = copy.deepcopy(tiny_config() if config is None else config)
    *groups, name = path.split(".")
    place = config
    for group in groups:
        place = place[group]
    if value is None:
        del place[name]
    else:
        place[name] = value
    return config


TEXT = "thinker_config.text_config"
VISION = "thinker_config.vision_config"
TALKER = "talker_config.text_config"


def test_rope_is_read_in_both_spellings():
    config = tiny_config()
    for path in (TEXT, TALKER):
        config = change(f"{path}.rope_theta", None, config)
        config = change(f"{path}.rope_scaling", None, config)
        section = {"rope_type": "default", "rope_theta": 1000000, "mrope_section": [4, 2, 2]}
        config = change(f"{path}.rope_parameters", section, config)
    config = change("code2wav_config.rope_theta", None, config)
    config = change("code2wav_config.rope_parameters", {"rope_type": "default", "rope_theta": 10000.0}, config)
    assert from_hf(config) == from_hf(tiny_config())


@pytest.mark.parametrize("name", ["mlp_only_layers", "use_sliding_window", "tie_word_embeddings", "attention_bias"])
def test_null_means_absent(name):
    config = tiny_config()
    for path in ("thinker_config", "talker_config"):
        config[path]["text_config"][name] = None
    assert from_hf(config) == from_hf(tiny_config())


def test_the_longest_audio_window_is_accepted():
    config = change("thinker_config.audio_config.n_window_infer", 5600)
    assert from_hf(config).thinker.audio_encoder.window_chunks == 56


def test_experts_are_read_in_both_spellings():
    config = change(f"{TALKER}.num_experts", None)
    config = change(f"{TALKER}.num_local_experts", 8, config)
    assert from_hf(config) == from_hf(tiny_config())
    both = change(f"{TALKER}.num_local_experts", 8)
    assert from_hf(both) == from_hf(tiny_config())


def test_without_audio_output_the_speaking_parts_are_none():
    config = change("enable_audio_output", False)
    for name in ("talker_config", "code2wav_config", "tts_pad_token_id", "tts_bos_token_id", "tts_eos_token_id"):
        config = change(name, None, config)
    made = from_hf(config)
    assert made.talker is None
    assert made.code2wav is None
    assert made.thinker == from_hf(tiny_config()).thinker


def refuses(config, *words):
    with pytest.raises(ValueError, match=r"^config\.json: ") as caught:
        from_hf(config)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize("family", ["llama", "qwen3_omni", "", None, ["x"], {}, "qwen3_omni_moe_talker"])
def test_a_folder_of_another_model_is_refused(family):
    refuses({**tiny_config(), "model_type": family}, "model_type", repr(family), "another model's folder")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("thinker_config", None, "thinker_config: expected an object, got nothing"),
        ("talker_config", None, "talker_config: expected an object, got nothing"),
        (f"{TEXT}.hidden_size", None, f"2048; missing fields taken from Transformers' defaults: {TEXT}.hidden_size"),
        ("talker_config.speaker_id", None, "talker_config.speaker_id: missing (expected dict)"),
        (
            "talker_config.codec_bos_id",
            None,
            "codec_bos_id 4197 is outside the vocabulary of 1088; missing fields taken",
        ),
        ("talker_config.codec_bos_id", 1088, "talker_config.codec_bos_id 1088 is outside the vocabulary of 1088"),
        ("talker_config.speaker_id", {"a": 1088}, "speaker_id.a 1088 is outside the vocabulary of 1088"),
        (f"{TEXT}.num_hidden_layers", 2**31 - 1, "num_hidden_layers: expected a size of at most 1,024, got 2147483647"),
        (f"{TEXT}.num_experts", 2**32, "num_experts: expected a size of at most 4,096, got 4294967296"),
        (f"{TEXT}.rms_norm_eps", 1e308, "rms_norm_eps: expected a finite number above 0 and at most 1, got 1e+308"),
        (f"{TEXT}.rms_norm_eps", 10**400, "rms_norm_eps: expected float, got 1000"),
        (f"{TEXT}.hidden_size", "x" * 100_000, f"{TEXT}.hidden_size: expected int, got 'xxxx"),
        (f"{TEXT}.rope_theta", float("nan"), f"{TEXT}.rope_theta: expected a positive number, got nan"),
        (f"{TEXT}.rope_scaling", None, "mrope_section [24, 20, 20] adds up to 64"),
        (f"{VISION}.deepstack_visual_indexes", [2, 1], "deepstack_visual_indexes [2, 1]: expected rising blocks"),
        (f"{VISION}.deepstack_visual_indexes", [1, 1], "deepstack_visual_indexes [1, 1]: expected rising blocks"),
        (f"{VISION}.deepstack_visual_indexes", [], "deepstack_visual_indexes []: expected rising blocks"),
        (f"{VISION}.num_heads", 16, "hidden_size / num_heads: expected a multiple of 4"),
        (f"{VISION}.spatial_merge_size", 3, "spatial_merge_size 3: expected 1, 2, 4 or 8"),
        (f"{VISION}.num_position_embeddings", 60, "num_position_embeddings 60: expected a square number"),
        (
            "thinker_config.position_id_per_seconds",
            0,
            "position_id_per_seconds: expected a finite number above 0, got 0",
        ),
        ("talker_config.accept_hidden_layer", None, "accept_hidden_layer 18 is beyond"),
        (f"{TEXT}.hidden_size", "64", f"{TEXT}.hidden_size: expected int, got '64'"),
        (f"{TEXT}.hidden_size", True, f"{TEXT}.hidden_size: expected int, got True"),
        (f"{TEXT}.num_hidden_layers", 0, "expected a size of at least 1, got 0"),
        (f"{TEXT}.num_hidden_layers", -3, "expected a size of at least 1, got -3"),
        (f"{TEXT}.num_local_experts", 16, "num_experts = 8 and num_local_experts = 16 contradict each other"),
        (f"{TEXT}.rope_parameters", {"rope_theta": 5}, "contradict each other"),
        (f"{TEXT}.rope_parameters", {"mrope_section": [2, 3, 3]}, "contradict each other"),
        (f"{TEXT}.rope_scaling", {"mrope_section": [4, 4, 4]}, "adds up to 12, expected head_dim / 2 = 8"),
        (f"{TEXT}.rope_scaling", {"mrope_section": [4, 2, 2], "rope_type": "yarn"}, "expected 'default', got 'yarn'"),
        (f"{TEXT}.hidden_act", "gelu", "hidden_act: expected 'silu', got 'gelu'"),
        (f"{TEXT}.tie_word_embeddings", True, "tie_word_embeddings: expected False, got True"),
        (f"{TEXT}.mlp_only_layers", [1], "mlp_only_layers: expected [], got [1]"),
        (f"{TEXT}.num_experts_per_tok", 9, "num_experts_per_tok 9 is more than the 8 experts"),
        (f"{TEXT}.num_key_value_heads", 3, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
        ("thinker_config.audio_config.output_dim", 48, "output_dim 48 differs from the thinker's hidden_size 64"),
        ("thinker_config.vision_config.out_hidden_size", 48, "out_hidden_size 48 differs"),
        ("thinker_config.audio_config.n_window_infer", 250, "n_window_infer 250 is no multiple"),
        ("thinker_config.audio_token_id", 512, "audio_token_id 512 is outside the vocabulary of 512"),
        ("thinker_config.audio_config.n_window_infer", 5700, "expected at most 5,600 frames (56 chunks)"),
        (
            "thinker_config.vision_config.deepstack_visual_indexes",
            [0, 99],
            "deepstack_visual_indexes [0, 99]: expected",
        ),
        ("thinker_config.vision_config.deepstack_visual_indexes", [-1], "deepstack_visual_indexes [-1]: expected"),
        ("im_start_token_id", 512, "im_start_token_id 512 is outside the vocabulary of 512"),
        ("tts_eos_token_id", -1, "tts_eos_token_id -1 is outside the vocabulary of 512"),
        (f"{TEXT}.rms_norm_eps", 0, f"{TEXT}.rms_norm_eps: expected a finite number above 0, got 0"),
        (f"{TEXT}.rms_norm_eps", -1e-6, "rms_norm_eps: expected a finite number above 0, got -1e-06"),
        (f"{TEXT}.rms_norm_eps", float("nan"), "rms_norm_eps: expected a finite number above 0, got nan"),
        ("code2wav_config.rms_norm_eps", float("inf"), "rms_norm_eps: expected a finite number above 0, got inf"),
        ("talker_config.speaker_id", {"a": 3, "b": "4"}, "speaker_id: expected an integer for each name, got {'a': 3"),
        ("talker_config.speaker_id", {"a": None, "b": 4}, "speaker_id: expected an integer for each name"),
        ("talker_config.thinker_hidden_size", 32, "expected equal sizes, got 32 and 64"),
        ("talker_config.num_code_groups", 5, "expected equal sizes, got 5 and 4"),
        ("talker_config.accept_hidden_layer", 5, "accept_hidden_layer 5 is beyond the thinker's 4 layers"),
        ("code2wav_config.codebook_size", 128, "expected equal sizes, got 64 and 128"),
        ("code2wav_config.upsample_rates", "8543", "upsample_rates: expected list"),
        (
            "code2wav_config.upsample_rates",
            [8, 0, 4, 3],
            "upsample_rates [8, 0, 4, 3]: expected some numbers of at least 1",
        ),
        ("code2wav_config.upsampling_ratios", [-1], "upsampling_ratios [-1]: expected some numbers of at least 1"),
        (
            "code2wav_config.decoder_dim",
            72,
            "decoder_dim 72: expected a multiple of 16, for each of 4 stages halves it",
        ),
    ],
)
def test_a_single_fault_is_named(path, value, words):
    refuses(change(path, value), words)


def test_all_faults_are_named_at_once():
    config = change(f"{TEXT}.hidden_act", "relu")
    config = change("thinker_config.audio_config.d_model", "32", config)
    config = change("talker_config.speaker_id", None, config)
    config = change("code2wav_config", None, config)
    config = change("user_token_id", "x", config)
    refuses(
        config,
        "text_config.hidden_act: expected 'silu'",
        "audio_config.d_model: expected int",
        "talker_config.speaker_id: missing",
        "code2wav_config: expected an object",
        "user_token_id: expected int, got 'x'",
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "found no config.json"), ("{", "does not parse"), ("[1]", "got list"), (b"\xff\xfe", "does not parse")],
)
def test_unreadable_files_are_refused(tmp_path, content, words):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
