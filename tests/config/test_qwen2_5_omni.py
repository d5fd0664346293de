"""Qwen2.5-Omni's configuration: published files, irregularities of both sizes, and one error with all faults."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import pytest

from omni_jax.config import Qwen25OmniConfig, from_hf
from omni_jax.config.qwen2_5_omni import read
from omni_jax.models import parts
from omni_jax.testing.qwen2_5_omni import UNSPELT, three_b, tiny_qwen2_5_config, tiny_speakers, unspelt_id
from omni_jax.testing.tokenizer_qwen2_5 import ADDED_TOKENS_QWEN2_5, token_ids_qwen2_5

CONFIGS = Path(__file__).parents[1] / "configs"
TEXT = "thinker_config.text_config"
AUDIO = "thinker_config.audio_config"
VISION = "thinker_config.vision_config"
DIT = "token2wav_config.dit_config"
BIGVGAN = "token2wav_config.bigvgan_config"


def published(size):
    return json.loads((CONFIGS / f"qwen2_5_omni_{size}.json").read_text())


@pytest.mark.parametrize(("size", "count"), [("7b", 10_732_225_408), ("3b", 5_537_120_640)])
def test_parameter_counts_are_the_published_ones(size, count):
    """Parameters of each part, counted without building the model."""
    facts = published(size)
    config = from_hf(facts["config"])
    hash(config)
    abstract = parts.abstract(config, jnp.bfloat16)
    found = {name: sum(leaf.size for leaf in parts.leaves({name: part}).values()) for name, part in abstract.items()}
    wanted = facts["components"]
    assert found == {
        "thinker": wanted["thinker.model"] + wanted["thinker.lm_head"],
        "audio_encoder": wanted["thinker.audio_tower"],
        "vision_encoder": wanted["thinker.visual"],
        "talker": wanted["talker"],
        "dit": wanted["token2wav.code2wav_dit_model"],
        "bigvgan": wanted["token2wav.code2wav_bigvgan_model"],
    }
    assert sum(found.values()) == count == facts["parameters"]


def test_fields_are_read_where_defaults_would_be_wrong():
    config = read(published("7b")["config"])
    thinker, talker = config.thinker, config.talker
    assert (thinker.decoder.head_width, thinker.decoder.mrope_section) == (128, (16, 24, 24))
    assert (talker.decoder.width, talker.decoder.heads, talker.decoder.head_width) == (896, 12, 128)
    assert talker.decoder.layers == 24
    for decoder in (thinker.decoder, talker.decoder):
        assert decoder.bias
        assert not decoder.qk_norm
        assert not decoder.mrope_interleaved
        assert decoder.experts is None
        assert decoder.window is None
    assert (thinker.audio_encoder.chunk_frames, thinker.audio_encoder.chunk_places) == (200, 100)
    assert (thinker.vision_encoder.window, thinker.vision_encoder.whole) == (8, (7, 15, 23, 31))
    assert thinker.vision_encoder.taps == ()
    assert thinker.vision_encoder.patch_width == 1176
    assert (thinker.positions_per_second, thinker.chunk_seconds) == (25, 2)
    assert (thinker.audio_token, thinker.audio_start, thinker.audio_end) == (151646, 151647, 151648)
    assert (config.im_start, config.im_end, config.user) == (151644, 151645, 872)
    assert (config.tts_pad, config.tts_bos, config.tts_eos) == (151859, 151860, 151861)
    assert (talker.codec_pad, talker.codec_bos, talker.codec_eos, talker.codec_mask) == (8292, 8293, 8294, 8296)
    assert (talker.vocabulary, talker.codes) == (8448, 8194)
    dit = config.token2wav.dit
    # Absent from the published file, so the library's default applies.
    assert (dit.block_frames, dit.look_ahead, dit.look_back, dit.rope_theta) == (24, (10,), (0, 20), 1e4)
    assert (dit.layers, dit.width, dit.heads, dit.codes) == (22, 1024, 16, 8194)
    assert config.token2wav.code_samples == 480


def test_the_3b_differs_from_the_7b_in_these_fields():
    large, small = (read(published(size)["config"]) for size in ("7b", "3b"))
    assert (small.talker.decoder.heads, small.talker.decoder.kv_heads, small.talker.decoder.head_width) == (14, 2, 64)
    assert small.talker.decoder.mrope_section == (16, 16, 0)
    assert small.thinker.decoder.mrope_section == (16, 24, 24)
    assert (small.thinker.vocabulary, large.thinker.vocabulary) == (151936, 152064)
    assert small.token2wav == large.token2wav
    assert small.thinker.vision_encoder == replace(large.thinker.vision_encoder, out_width=2048)


def test_the_tiny_model_has_the_irregularities_of_the_published_ones():
    config = read(tiny_qwen2_5_config())
    wide, narrow = config.talker.decoder, read(three_b(tiny_qwen2_5_config())).talker.decoder
    assert wide.head_width * wide.heads > wide.width == narrow.head_width * narrow.heads
    assert (wide.mrope_section, narrow.mrope_section) == ((2, 3, 3), (1, 1, 0))
    assert config.talker.vocabulary > config.token2wav.dit.codes
    assert len(config.thinker.vision_encoder.whole) < config.thinker.vision_encoder.layers
    ids = [config.im_start, config.im_end, config.thinker.audio_token, config.thinker.video_token]
    tokens = token_ids_qwen2_5()
    assert ids == [tokens[name] for name in ("<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|VIDEO|>")]
    assert tokens["<|endoftext|>"] + len(ADDED_TOKENS_QWEN2_5) == len(tokens) == config.tts_pad
    assert len(set(tokens.values())) == len(tokens)
    assert max(map(unspelt_id, UNSPELT)) < config.thinker.vocabulary
    dit = config.token2wav.dit
    for speaker in tiny_speakers().values():
        assert speaker.cond.shape == (1, dit.speaker_width)
        assert speaker.ref_mel.shape[::2] == (1, dit.mel_bins)
        assert config.tts_eos < speaker.bos_token < config.thinker.vocabulary


def change(path, value, config=None):
    """The tiny configuration with the field at a dotted path set, or deleted where the value is None."""
    config = copy.deepcopy(tiny_qwen2_5_config() if config is None else config)
    *groups, name = path.split(".")
    place = config
    for group in groups:
        place = place[group]
    if value is None:
        del place[name]
    else:
        place[name] = value
    return config


def spelt_anew(config):
    """As the current library writes it: ids and sizes under other names, rope in one object, layer types spelt out."""
    config = copy.deepcopy(config)
    thinker, talker = config["thinker_config"], config["talker_config"]
    for part in (thinker["text_config"], talker):
        theta = part.pop("rope_theta")
        part["rope_parameters"] = {**part.pop("rope_scaling"), "rope_theta": theta}
        part["sliding_window"] = None
        part["layer_types"] = ["full_attention"] * part["num_hidden_layers"]
    for part in (thinker, talker):
        for name in ("audio", "image", "video"):
            part[f"{name}_token_id"] = part.pop(f"{name}_token_index")
    dit = config["token2wav_config"]["dit_config"]
    for name in ("dim", "depth", "heads"):
        del dit[name]
    dit["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    for name in ("embed_dim", "spatial_patch_size", "in_chans"):
        del thinker["vision_config"][name]
    return config


def test_both_spellings_read_the_same():
    assert read(spelt_anew(tiny_qwen2_5_config())) == read(tiny_qwen2_5_config())


def test_the_flow_needs_only_its_published_field_names():
    config = tiny_qwen2_5_config()
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
        config = change(f"{DIT}.{name}", None, config)
    assert read(config) == read(tiny_qwen2_5_config())


@pytest.mark.parametrize("value", [True, False, None])
def test_tie_word_embeddings_of_the_text_model_is_ignored(value):
    assert read(change(f"{TEXT}.tie_word_embeddings", value)) == read(tiny_qwen2_5_config())


def test_without_audio_output_the_speaking_parts_are_none():
    config = change("enable_audio_output", False)
    for name in ("talker_config", "token2wav_config"):
        config = change(name, None, config)
    made = read(config)
    assert made.talker is None
    assert made.token2wav is None
    assert made.tts_pad == -1
    assert made.thinker == read(tiny_qwen2_5_config()).thinker


def refuses(config, *words):
    with pytest.raises(ValueError, match=r"^config\.json: ") as caught:
        read(config)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text
    return text


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("thinker_config", None, "thinker_config: expected an object, got nothing"),
        ("talker_config", None, "talker_config: expected an object, got nothing"),
        ("token2wav_config", 3, "token2wav_config: expected an object, got 3"),
        (BIGVGAN, None, "bigvgan_config: expected an object, got nothing"),
        ("thinker_config.eos_token_id", 512, "eos_token_id 512 is outside the vocabulary of 512"),
        ("thinker_config.audio_token_id", 7, "contradict each other"),
        ("thinker_config.image_token_index", -1, "image_token_index -1 is outside the vocabulary of 512"),
        ("thinker_config.seconds_per_chunk", 0, "seconds_per_chunk: expected a size of at least 1, got 0"),
        ("thinker_config.tie_word_embeddings", True, "tie_word_embeddings: expected False, got True"),
        (f"{TEXT}.hidden_size", None, f"missing fields taken from Transformers' defaults: {TEXT}.hidden_size"),
        (f"{TEXT}.num_attention_heads", 5, "hidden_size 64 is no multiple of num_attention_heads 5"),
        (f"{TEXT}.num_attention_heads", 32, "adds up to 8, expected head_dim / 2 = 1"),
        (f"{TEXT}.use_sliding_window", True, "use_sliding_window: expected False, got True"),
        (f"{TEXT}.layer_types", ["sliding_attention"] * 3, "layer_types: expected 'full_attention' for each layer"),
        (f"{AUDIO}.num_hidden_layers", 3, "encoder_layers = 2 and num_hidden_layers = 3 contradict each other"),
        (f"{AUDIO}.n_window", 75, "n_window: expected an even number, got 75"),
        (f"{AUDIO}.max_source_positions", 99, "max_source_positions 99: expected at least n_window, 100"),
        (f"{AUDIO}.activation_function", "relu", "activation_function: expected 'gelu', got 'relu'"),
        (f"{AUDIO}.output_dim", 48, "output_dim 48 differs from the thinker's hidden_size 64"),
        (f"{VISION}.out_hidden_size", 48, "out_hidden_size 48 differs from the thinker's hidden_size 64"),
        (f"{VISION}.hidden_act", "gelu", "hidden_act: expected 'silu', got 'gelu'"),
        (f"{VISION}.embed_dim", 64, "hidden_size = 32 and embed_dim = 64 contradict each other"),
        (f"{VISION}.spatial_patch_size", 16, "patch_size = 14 and spatial_patch_size = 16 contradict each other"),
        (f"{VISION}.in_chans", 1, "in_channels = 3 and in_chans = 1 contradict each other"),
        (f"{VISION}.window_size", 100, "window_size 100 is no multiple of patch_size x spatial_merge_size, 28 pixels"),
        (f"{VISION}.fullatt_block_indexes", [3, 1], "fullatt_block_indexes [3, 1]: expected rising blocks from 0 to 3"),
        (f"{VISION}.fullatt_block_indexes", [1, 4], "fullatt_block_indexes [1, 4]: expected rising blocks from 0 to 3"),
        (f"{VISION}.fullatt_block_indexes", 3, "fullatt_block_indexes: expected list, got 3"),
        ("talker_config.head_dim", None, "adds up to 8, expected head_dim / 2 = 64; missing fields taken"),
        ("talker_config.head_dim", 8, "adds up to 8, expected head_dim / 2 = 4"),
        ("talker_config.tie_word_embeddings", True, "tie_word_embeddings: expected False, got True"),
        ("talker_config.embedding_size", 48, "expected equal sizes, got 48 and 64"),
        ("talker_config.tts_codec_mask_token_id", 128, "tts_codec_mask_token_id 128 is outside the vocabulary of 128"),
        ("talker_config.tts_text_end_token_id", 600, "tts_text_end_token_id 600 is outside the vocabulary of 512"),
        (
            "talker_config.audio_token_index",
            5,
            "talker_config.audio_token_index: expected 476, got 5 (the thinker's own)",
        ),
        ("talker_config.seconds_per_chunk", 3, "seconds_per_chunk: expected 2, got 3 (the thinker's own)"),
        (f"{DIT}.depth", 5, "num_hidden_layers = 4 and depth = 5 contradict each other"),
        (f"{DIT}.num_embeds", 2**31 - 1, f"{DIT}.num_embeds: expected a size of at most 1,048,576"),
        (f"{DIT}.mel_dim", 20, "mel_dim: expected equal sizes, got 20 and 16"),
        (f"{DIT}.block_size", 0, "block_size: expected a size of at least 1, got 0"),
        (f"{DIT}.look_ahead_layers", [4], "look_ahead_layers [4]: expected layers from 0 to 3"),
        (f"{DIT}.look_backward_layers", [-1], "look_backward_layers [-1]: expected layers from 0 to 3"),
        (f"{DIT}.head_dim", 15, "head_dim: expected an even number, got 15"),
        (f"{DIT}.rope_parameters", {"rope_theta": 0}, "rope_theta: expected a finite number above 0, got 0"),
        (f"{DIT}.rope_parameters", 5, "rope_parameters: expected an object, got 5"),
        (f"{DIT}.enc_channels", [16, 16, 16, 16, 40], "enc_channels [16, 16, 16, 16, 40]: expected a first"),
        (f"{DIT}.enc_channels", [16, 15, 15, 15, 45], "multiples of enc_res2net_scale 2"),
        (f"{DIT}.enc_channels", [], "enc_channels []: expected a first"),
        (f"{DIT}.enc_kernel_sizes", [5, 3, 3, 3], "enc_kernel_sizes [5, 3, 3, 3]: expected a number of at least 1"),
        (f"{BIGVGAN}.upsample_rates", [5, 3], "upsample_kernel_sizes [11, 12, 16]: expected, for each of"),
        (f"{BIGVGAN}.upsample_kernel_sizes", [11, 12, 17], "larger by an even number"),
        (f"{BIGVGAN}.upsample_kernel_sizes", [11, 12, 6], "larger by an even number"),
        (f"{BIGVGAN}.upsample_initial_channel", 12, "upsample_initial_channel 12: expected a multiple of 8"),
        (f"{BIGVGAN}.resblock_kernel_sizes", [3], "resblock_kernel_sizes [3]: expected odd sizes"),
        (f"{BIGVGAN}.resblock_kernel_sizes", [3, 10], "resblock_kernel_sizes [3, 10]: expected odd sizes"),
        (f"{BIGVGAN}.resblock_dilation_sizes", [[1, 3], 5], "resblock_dilation_sizes: expected lists of integers"),
    ],
)
def test_a_single_fault_is_named(path, value, words):
    assert refuses(change(path, value), words).partition("; missing fields taken")[0].count("; ") == 0


def test_all_faults_are_named_at_once():
    config = change(f"{TEXT}.hidden_act", "relu")
    config = change(f"{AUDIO}.d_model", 0, config)
    config = change("talker_config.tts_codec_pad_token_id", "x", config)
    config = change(BIGVGAN, None, config)
    config = change("thinker_config.user_token_id", "872", config)
    refuses(
        config,
        "text_config.hidden_act: expected 'silu'",
        "audio_config.d_model: expected a size of at least 1, got 0",
        "talker_config.tts_codec_pad_token_id: expected int, got 'x'",
        "bigvgan_config: expected an object",
        "user_token_id: expected int, got '872'",
    )


def nodes(config, path=()):
    for name, value in config.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from nodes(value, (*path, name))


@pytest.mark.parametrize("value", [None, 0, -1, 10**9, True, "x", [], [1], {}, {"a": 1}, 1.5, math.nan])
def test_any_value_of_any_field_is_read_or_refused_in_one_line(value):
    """Each field in turn: any value gives a configuration or an error of one line."""
    tiny = tiny_qwen2_5_config()
    for path in nodes(tiny):
        config = copy.deepcopy(tiny)
        place = config
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        try:
            hash(read(config))
        except ValueError as error:
            assert str(error).startswith("config.json: ")  # noqa: PT017  either is right
            assert "\n" not in str(error)  # noqa: PT017


def test_a_dict_a_file_and_a_folder_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny_qwen2_5_config()))
    config = from_hf(tiny_qwen2_5_config())
    assert isinstance(config, Qwen25OmniConfig)
    assert from_hf(tmp_path) == from_hf(str(tmp_path / "config.json")) == config
