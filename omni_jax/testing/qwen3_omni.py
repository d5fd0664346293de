"""The configuration of a tiny Qwen3-Omni, in the hub's spelling."""

from collections.abc import Mapping
from typing import Any

from omni_jax.testing.family import TinyFamily
from omni_jax.testing.tokenizer import QWEN3, token_ids

CODEBOOK, CODEBOOKS = 64, 4


def tiny_config() -> dict[str, Any]:
    """config.json of a tiny model, in the hub's spelling; its token ids are those of ``write_tokenizer``."""
    tokens = token_ids()
    media = {
        "audio_token_id": tokens["<|audio_pad|>"],
        "image_token_id": tokens["<|image_pad|>"],
        "video_token_id": tokens["<|video_pad|>"],
        "audio_start_token_id": tokens["<|audio_start|>"],
        "vision_start_token_id": tokens["<|vision_start|>"],
        "position_id_per_seconds": 13,
        "seconds_per_chunk": 2,
    }
    block = {
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "tie_word_embeddings": False,
    }
    attention = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
    }
    rope = {
        "rope_theta": 1000000,
        "rope_scaling": {"interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
    }
    rope["rope_scaling"]["type"] = "default"
    mixture = {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
    }
    width, talker_width = 64, 48
    thinker = {
        "model_type": "qwen3_omni_moe_thinker",
        "audio_config": {
            "model_type": "qwen3_omni_moe_audio_encoder",
            "num_mel_bins": 128,
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "activation_function": "gelu",
            "max_source_positions": 1500,
            "n_window": 50,
            "n_window_infer": 200,
            "conv_chunksize": 500,
            "downsample_hidden_size": 8,
            "output_dim": width,
        },
        "vision_config": {
            "model_type": "qwen3_omni_moe_vision_encoder",
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": width,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [1, 2],
        },
        "text_config": {
            "model_type": "qwen3_omni_moe_text",
            "vocab_size": 512,
            "hidden_size": width,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            **block,
            **attention,
            **rope,
            **mixture,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 0,
        },
        **media,
        "audio_end_token_id": tokens["<|audio_end|>"],
        "vision_end_token_id": tokens["<|vision_end|>"],
        "user_token_id": tokens["user"],
    }
    talker = {
        "text_config": {
            "model_type": "qwen3_omni_moe_talker_text",
            "vocab_size": CODEBOOK + 1024,
            "hidden_size": talker_width,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            **block,
            **attention,
            **rope,
            **mixture,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 32,
        },
        "code_predictor_config": {
            "model_type": "qwen3_omni_moe_talker_code_predictor",
            "vocab_size": CODEBOOK,
            "hidden_size": talker_width,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            **block,
            **attention,
            "rope_theta": 1000000,
            "rope_scaling": None,
            "num_code_groups": CODEBOOKS,
        },
        **media,
        "accept_hidden_layer": 2,
        "num_code_groups": CODEBOOKS,
        "thinker_hidden_size": width,
        "spatial_merge_size": 2,
        "codec_pad_id": CODEBOOK + 100,
        "codec_bos_id": CODEBOOK + 101,
        "codec_eos_token_id": CODEBOOK + 102,
        "codec_nothink_id": CODEBOOK + 107,
        "codec_think_bos_id": CODEBOOK + 108,
        "codec_think_eos_id": CODEBOOK + 109,
        "speaker_id": {"chelsie": CODEBOOK + 253, "ethan": CODEBOOK + 254, "aiden": CODEBOOK + 255},
    }
    code2wav = {
        "codebook_size": CODEBOOK,
        "num_quantizers": CODEBOOKS,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "attention_bias": False,
        "layer_scale_initial_scale": 0.01,
        "max_position_embeddings": 8000,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000,
        "sliding_window": 8,
        "decoder_dim": 64,
        "upsample_rates": [8, 5, 4, 3],
        "upsampling_ratios": [2, 2],
    }
    return {
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
        "model_type": "qwen3_omni_moe",
        "enable_audio_output": True,
        "im_start_token_id": tokens["<|im_start|>"],
        "im_end_token_id": tokens["<|im_end|>"],
        "system_token_id": tokens["system"],
        "user_token_id": tokens["user"],
        "assistant_token_id": tokens["assistant"],
        "tts_pad_token_id": tokens["<tts_pad>"],
        "tts_bos_token_id": tokens["<tts_text_bos>"],
        "tts_eos_token_id": tokens["<tts_text_eod>"],
        "thinker_config": thinker,
        "talker_config": talker,
        "code2wav_config": code2wav,
    }


def preprocessor(thinker: Mapping[str, Any]) -> dict[str, Any]:
    """preprocessor_config.json, as published, for the sizes of a thinker's configuration."""
    vision = thinker["vision_config"]
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen3OmniMoeProcessor",
        "sampling_rate": 16000,
        "feature_size": thinker["audio_config"]["num_mel_bins"],
        "n_fft": 400,
        "hop_length": 160,
        "n_samples": 4800000,
        "nb_max_frames": 30000,
        "dither": 0.0,
        "padding_value": 0.0,
        "padding_side": "right",
        "return_attention_mask": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "patch_size": vision["patch_size"],
        "merge_size": vision["spatial_merge_size"],
        "temporal_patch_size": vision["temporal_patch_size"],
        "min_pixels": 3136,
        "max_pixels": 12845056,
    }


TINY = TinyFamily(
    dialect=QWEN3,
    preprocessor=preprocessor,
    speaking={
        "talker_max_new_tokens": 4096,
        "talker_repetition_penalty": 1.05,
        "talker_temperature": 0.9,
        "talker_top_k": 50,
        "talker_top_p": 1.0,
    },
    writing={"max_new_tokens": 32768, "repetition_penalty": 1.0, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
    silent=lambda talker: (talker.codec_eos,),
)
