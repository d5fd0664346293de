"""The configuration and the voices of a tiny Qwen2.5-Omni, in the hub's spelling."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from omni_jax.config.speech import DiTConfig, Speaker
from omni_jax.testing import qwen3_omni
from omni_jax.testing.family import TinyFamily
from omni_jax.testing.tokenizer_qwen2_5 import QWEN2_5, token_ids_qwen2_5
from omni_jax.weights.speakers import write_speakers

# Ids that the talker reads beside text: rows of the thinker's table beyond the tokenizer's last, without spelling.
UNSPELT = ("pad", "start", "end", "Ethan", "Chelsie")

# The head has rows beyond the table of codes, as the published one has (8448 and 8194): most of them mean nothing.
CODES, CODEC_VOCABULARY = 96, 128
MEL_BINS, SPEAKER_WIDTH = 16, 24


def tiny_qwen2_5_config() -> dict[str, Any]:
    """config.json of a tiny model, in the hub's spelling.

    Ids are those of ``token_ids_qwen2_5``: the words of ``write_tokenizer`` and behind them this family's added tokens.
    Oddities of the published files are kept: no head_dim in the thinker, and one in the talker that is not width /
    heads; ``depth``, ``dim`` and ``heads`` beside the names that the library reads; ids called ``..._index``; turn ids
    in the thinker's object; a text config whose tie_word_embeddings is true and has no effect. The M-RoPE sections are
    the 7B's divided by eight; ``three_b`` has the 3B's.
    """
    tokens = token_ids_qwen2_5()
    media = {
        "audio_token_index": tokens["<|AUDIO|>"],
        "audio_start_token_id": tokens["<|audio_bos|>"],
        "audio_end_token_id": tokens["<|audio_eos|>"],
        "image_token_index": tokens["<|IMAGE|>"],
        "video_token_index": tokens["<|VIDEO|>"],
        "vision_start_token_id": tokens["<|vision_bos|>"],
        "vision_end_token_id": tokens["<|vision_eos|>"],
        "position_id_per_seconds": 25,
        "seconds_per_chunk": 2,
    }
    block = {
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "max_window_layers": 28,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},
        "sliding_window": 4096,
        "use_sliding_window": False,
    }
    width = 64
    thinker = {
        "model_type": "qwen2_5_omni_thinker",
        "audio_config": {
            "model_type": "qwen2_5_omni_audio_encoder",
            "num_mel_bins": 128,
            "d_model": 32,
            "encoder_layers": 2,
            "num_hidden_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "activation_function": "gelu",
            "max_source_positions": 1500,
            "n_window": 100,
            "output_dim": width,
        },
        "vision_config": {
            "model_type": "qwen2_5_omni_vision_encoder",
            "depth": 4,
            "hidden_size": 32,
            "embed_dim": 32,
            "intermediate_size": 44,
            "num_heads": 2,
            "hidden_act": "silu",
            "in_channels": 3,
            "in_chans": 3,
            "patch_size": 14,
            "spatial_patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
            "out_hidden_size": width,
            "tokens_per_second": 25,
        },
        "text_config": {
            "model_type": "qwen2_5_omni_text",
            "vocab_size": 512,
            "hidden_size": width,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            **block,
            "tie_word_embeddings": True,
        },
        **media,
        "bos_token_id": tokens["<|im_start|>"],
        "eos_token_id": tokens["<|im_end|>"],
        "pad_token_id": tokens["<|endoftext|>"],
        "user_token_id": tokens["user"],
    }
    talker = {
        "model_type": "qwen2_5_omni_talker",
        "vocab_size": CODEC_VOCABULARY,
        "embedding_size": width,
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        **block,
        **media,
        "spatial_merge_size": 2,
        **{f"tts_text_{name}_token_id": unspelt_id(name) for name in UNSPELT[:3]},
        "tts_codec_pad_token_id": CODES + 4,
        "tts_codec_start_token_id": CODES + 5,
        "tts_codec_end_token_id": CODES + 6,
        "tts_codec_mask_token_id": CODES + 8,
    }
    dit = {
        "model_type": "qwen2_5_omni_dit",
        "depth": 4,
        "num_hidden_layers": 4,
        "dim": 32,
        "hidden_size": 32,
        "heads": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
        "ff_mult": 2,
        "emb_dim": 16,
        "num_embeds": CODES - 1,
        "mel_dim": MEL_BINS,
        "repeats": 2,
        "block_size": 24,
        "look_ahead_layers": [1],
        "look_backward_layers": [0, 2],
        "enc_emb_dim": SPEAKER_WIDTH,
        "enc_dim": 12,
        "enc_channels": [16, 16, 16, 16, 48],
        "enc_kernel_sizes": [5, 3, 3, 3, 1],
        "enc_dilations": [1, 2, 3, 4, 1],
        "enc_attention_channels": 8,
        "enc_res2net_scale": 2,
        "enc_se_channels": 8,
    }
    bigvgan = {
        "model_type": "qwen2_5_omni_bigvgan",
        "mel_dim": MEL_BINS,
        # The published one has six stages of three kernels, which compile longer than everything else together.
        "upsample_initial_channel": 32,
        "upsample_rates": [5, 6, 8],
        "upsample_kernel_sizes": [11, 12, 16],
        "resblock_kernel_sizes": [3, 7],
        "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
        "use_bias_at_final": False,
    }
    return {
        "architectures": ["Qwen2_5OmniModel"],
        "model_type": "qwen2_5_omni",
        "enable_audio_output": True,
        "enable_talker": True,
        "thinker_config": thinker,
        "talker_config": talker,
        "token2wav_config": {
            "model_type": "qwen2_5_omni_token2wav",
            "dit_config": dit,
            "bigvgan_config": bigvgan,
        },
    }


def three_b(whole: dict[str, Any]) -> dict[str, Any]:
    """The talker as in the 3B: narrow heads that fill its width, and no frequency for the width coordinate."""
    talker = whole["talker_config"]
    scaling = {**talker["rope_scaling"], "mrope_section": [1, 1, 0]}
    narrow = {"num_attention_heads": 10, "head_dim": 4, "rope_scaling": scaling}
    return {**whole, "talker_config": {**talker, **narrow}}


def tiny_speakers(seed: int = 0, dit: DiTConfig | None = None) -> dict[str, Speaker]:
    """Random voices for spk_dict.pt, of different lengths.

    Args:
        seed: of the voices.
        dit: configuration of the model that speaks with them; by default that of ``tiny_qwen2_5_config``.
    """
    width, bins = (dit.speaker_width, dit.mel_bins) if dit else (SPEAKER_WIDTH, MEL_BINS)
    random = np.random.default_rng(seed)
    return {
        name: Speaker(
            bos_token=unspelt_id(name),
            cond=random.standard_normal((1, width), np.float32),
            ref_mel=random.standard_normal((1, frames, bins), np.float32),
        )
        for name, frames in (("Chelsie", 40), ("Ethan", 33))
    }


def unspelt_id(name: str) -> int:
    """An id beyond the tokenizer's last, by its name in ``UNSPELT``."""
    return len(token_ids_qwen2_5()) + UNSPELT.index(name)


def preprocessor_qwen2_5(thinker: Mapping[str, Any]) -> dict[str, Any]:
    """preprocessor_config.json, as published, for the sizes of a thinker's configuration."""
    return {
        **qwen3_omni.preprocessor(thinker),
        "processor_class": "Qwen2_5OmniProcessor",
        "chunk_length": 300,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }


_ENDS = {"eos_token_id": [token_ids_qwen2_5()[token] for token in ("<|im_end|>", "<|endoftext|>")]}
TINY = TinyFamily(
    dialect=QWEN2_5,
    preprocessor=preprocessor_qwen2_5,
    speaking=_ENDS,
    writing=_ENDS,
    silent=lambda talker: range(talker.codes, talker.vocabulary),
    write_speakers=lambda folder, config: write_speakers(folder, tiny_speakers(dit=config.token2wav.dit)),
)
