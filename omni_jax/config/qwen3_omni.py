"""Qwen3-Omni's ``config.json``, in every spelling in use, to our configuration."""

import math
from collections.abc import Mapping
from typing import Any

from omni_jax.buckets import CHUNK_SLOTS
from omni_jax.config.fields import Fields
from omni_jax.config.parts import (
    AudioEncoderConfig,
    Code2WavConfig,
    DecoderConfig,
    ExpertsConfig,
    OmniConfig,
    TalkerConfig,
    ThinkerConfig,
    VisionEncoderConfig,
)


def read(config: Mapping[str, Any]) -> OmniConfig:
    """The whole configuration, or one ValueError with every missing, mistyped or contradictory field."""
    root = Fields(config)
    thinker = _thinker(root.sub("thinker_config"))
    talker = code2wav = None
    names = ["im_start", "im_end", "system", "user", "assistant"]
    if root.get("enable_audio_output", bool, True):
        talker = _talker(root.sub("talker_config"))
        code2wav = _code2wav(root.sub("code2wav_config"))
        names += ["tts_pad", "tts_bos", "tts_eos"]
    ids = {name: root.get(f"{name}_token_id", int) for name in names}
    if not root.faults:
        _within(root, {f"{name}_token_id": token for name, token in ids.items()}, thinker.vocabulary)
    if talker and code2wav and not root.faults:
        _agree(root, thinker, talker, code2wav)
    if root.faults:
        raise ValueError("config.json: " + "; ".join(root.faults))
    return OmniConfig(family="qwen3_omni_moe", thinker=thinker, talker=talker, code2wav=code2wav, **ids)


def _within(fields: Fields, ids: Mapping[str, int], vocabulary: int) -> None:
    for name, token in ids.items():
        if not 0 <= token < vocabulary:
            fields.fault(f"{fields.path}{name} {token} is outside the vocabulary of {vocabulary}")


def _rope(fields: Fields, head_width: int, *, sections: bool) -> tuple[float, tuple[int, int, int] | None]:
    """Base and sections from ``rope_theta`` + ``rope_scaling`` (the hub's files) or ``rope_parameters`` (newer files)."""
    nested = {}
    for name in ("rope_scaling", "rope_parameters"):
        value = fields.values.get(name)
        if isinstance(value, Mapping):
            for key, item in value.items():
                if key in nested and nested[key] != item:
                    both = f"rope_scaling.{key} = {nested[key]!r} and rope_parameters.{key} = {item!r}"
                    fields.fault(f"{fields.path}{both} contradict each other")
                nested[key] = item
    kind = nested.get("rope_type", nested.get("type", "default"))
    if kind not in ("default", "mrope"):
        fields.fault(f"{fields.path}rope_type: expected 'default', got {kind!r} (no scaled rope in this family)")
    theta = fields.values.get("rope_theta", nested.get("rope_theta"))
    if "rope_theta" in fields.values and "rope_theta" in nested and nested["rope_theta"] != theta:
        fields.fault(
            f"{fields.path}rope_theta = {theta!r} and rope_parameters.rope_theta = {nested['rope_theta']!r} contradict each other"
        )
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta < math.inf:
        fields.fault(
            f"{fields.path}rope_theta: expected a positive number, got {'nothing' if theta is None else repr(theta)}"
        )
        theta = 1.0
    if not sections:
        return float(theta), None
    section = nested.get("mrope_section")
    if not isinstance(section, list) or len(section) != 3 or not all(isinstance(item, int) for item in section):
        fields.fault(
            f"{fields.path}mrope_section: expected three integers, got {'nothing' if section is None else repr(section)}"
        )
        return float(theta), (0, 0, 0)
    if sum(section) != head_width // 2 and fields.sound:
        fields.fault(
            f"{fields.path}mrope_section {section} adds up to {sum(section)}, expected head_dim / 2 = {head_width // 2}"
        )
    return float(theta), (section[0], section[1], section[2])


def _decoder(fields: Fields, *, moe: bool = False, sections: bool = False, **rest: Any) -> DecoderConfig:
    head_width = fields.size("head_dim") if "head_dim" in fields.values or moe else 0
    width, heads, kv_heads = (
        fields.size("hidden_size"),
        fields.size("num_attention_heads"),
        fields.size("num_key_value_heads"),
    )
    if not head_width:
        head_width = width // heads
        if width % heads and fields.sound:
            fields.fault(
                f"{fields.path}hidden_size {width} is no multiple of num_attention_heads {heads}, and head_dim is missing"
            )
    if heads % kv_heads and fields.sound:
        fields.fault(f"{fields.path}num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    fields.must("hidden_act", "silu", "the gated feed-forward uses SiLU")
    fields.must("attention_bias", False, "this family's attention has no bias")
    fields.must("tie_word_embeddings", False, "the published heads are tensors of their own")
    experts = None
    if moe:
        fields.must("use_sliding_window", False, "this family attends to the whole context")
        fields.must("mlp_only_layers", [], "every layer of the published models is a mixture of experts")
        fields.must("decoder_sparse_step", 1, "every layer of the published models is a mixture of experts")
        experts = ExpertsConfig(
            count=fields.size(fields.same("num_experts", "num_local_experts")),
            per_token=fields.size("num_experts_per_tok"),
            ffn_width=fields.size("moe_intermediate_size"),
            normalize=fields.get("norm_topk_prob", bool),
            shared_ffn_width=fields.get("shared_expert_intermediate_size", int, 0),
        )
        if experts.per_token > experts.count and fields.sound:
            fields.fault(
                f"{fields.path}num_experts_per_tok {experts.per_token} is more than the {experts.count} experts"
            )
    theta, section = _rope(fields, head_width, sections=sections)
    return DecoderConfig(
        layers=fields.size("num_hidden_layers"),
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        ffn_width=0 if moe else fields.size("intermediate_size"),
        norm_eps=fields.positive("rms_norm_eps"),
        rope_theta=theta,
        mrope_section=section,
        experts=experts,
        **rest,
    )


def _thinker(fields: Fields) -> ThinkerConfig:
    text, audio, vision = fields.sub("text_config"), fields.sub("audio_config"), fields.sub("vision_config")
    decoder = _decoder(text, moe=True, sections=True, qk_norm=True)
    audio.must("activation_function", "gelu", "the published encoder uses the exact GELU")
    n_window, infer = audio.size("n_window"), audio.size("n_window_infer")
    if n_window != 50 and audio.sound:
        audio.fault(
            f"{audio.path}n_window: expected 50, got {n_window} (the token count of a chunk, 13, belongs to 100 frames)"
        )
    if infer % (2 * n_window) and audio.sound:
        audio.fault(f"{audio.path}n_window_infer {infer} is no multiple of the chunk of {2 * n_window} frames")
    if infer > CHUNK_SLOTS[-1] * 2 * n_window and audio.sound:
        most = f"{CHUNK_SLOTS[-1] * 2 * n_window:,} frames ({CHUNK_SLOTS[-1]} chunks)"
        audio.fault(f"{audio.path}n_window_infer {infer}: expected at most {most}, as a call holds")
    audio_encoder = AudioEncoderConfig(
        mel_bins=audio.size("num_mel_bins"),
        layers=audio.size("encoder_layers"),
        width=audio.size("d_model"),
        heads=audio.size("encoder_attention_heads"),
        ffn_width=audio.size("encoder_ffn_dim"),
        channels=audio.size("downsample_hidden_size"),
        chunk_frames=2 * n_window,
        window_chunks=max(infer // (2 * n_window), 1),
        out_width=audio.size("output_dim"),
    )
    if audio_encoder.width % audio_encoder.heads and audio.sound:
        audio.fault(
            f"{audio.path}d_model {audio_encoder.width} is no multiple of encoder_attention_heads {audio_encoder.heads}"
        )
    vision.must("hidden_act", "gelu_pytorch_tanh", "the published encoder uses the tanh GELU")
    vision_encoder = VisionEncoderConfig(
        layers=vision.size("depth"),
        width=vision.size("hidden_size"),
        heads=vision.size("num_heads"),
        ffn_width=vision.size("intermediate_size"),
        channels=vision.get("in_channels", int, vision.values.get("in_chans", 3)),
        patch=vision.size("patch_size"),
        temporal_patch=vision.size("temporal_patch_size"),
        merge=vision.size("spatial_merge_size"),
        positions=vision.size("num_position_embeddings"),
        taps=vision.ints("deepstack_visual_indexes"),
        out_width=vision.size("out_hidden_size"),
    )
    taps = list(vision_encoder.taps)
    rising = taps == sorted(set(taps)) and all(0 <= tap < vision_encoder.layers for tap in taps)
    if not (taps and rising and len(taps) <= decoder.layers) and vision.sound:
        vision.fault(
            f"{vision.path}deepstack_visual_indexes {taps}: expected rising blocks from 0 to {vision_encoder.layers - 1}, of "
            f"depth {vision_encoder.layers}, at least one and no more than the thinker has layers"
        )
    if vision_encoder.width % vision_encoder.heads and vision.sound:
        vision.fault(
            f"{vision.path}hidden_size {vision_encoder.width} is no multiple of num_heads {vision_encoder.heads}"
        )
    elif vision_encoder.width // vision_encoder.heads % 4 and vision.sound:
        vision.fault(
            f"{vision.path}hidden_size / num_heads: expected a multiple of 4, for rows and columns turn half each"
        )
    if (1 << 6) % vision_encoder.merge**2 and vision.sound:
        vision.fault(f"{vision.path}spatial_merge_size {vision_encoder.merge}: expected 1, 2, 4 or 8")
    if round(vision_encoder.positions**0.5) ** 2 != vision_encoder.positions and vision.sound:
        vision.fault(f"{vision.path}num_position_embeddings {vision_encoder.positions}: expected a square number")
    for part, encoder, name in ((audio, audio_encoder, "output_dim"), (vision, vision_encoder, "out_hidden_size")):
        if encoder.out_width != decoder.width and part.sound and text.sound:
            part.fault(f"{part.path}{name} {encoder.out_width} differs from the thinker's hidden_size {decoder.width}")
    names = dict(
        audio_token="audio_token_id",
        image_token="image_token_id",
        video_token="video_token_id",
        audio_start="audio_start_token_id",
        audio_end="audio_end_token_id",
        vision_start="vision_start_token_id",
        vision_end="vision_end_token_id",
    )
    vocabulary = text.size("vocab_size")
    ids = {ours: fields.get(theirs, int) for ours, theirs in names.items()}
    if text.sound:
        _within(fields, {names[ours]: token for ours, token in ids.items()}, vocabulary)
    return ThinkerConfig(
        decoder=decoder,
        audio_encoder=audio_encoder,
        vision_encoder=vision_encoder,
        vocabulary=vocabulary,
        context=text.size("max_position_embeddings"),
        positions_per_second=fields.positive("position_id_per_seconds"),
        **ids,
    )


def _talker(fields: Fields) -> TalkerConfig:
    text, predictor = fields.sub("text_config"), fields.sub("code_predictor_config")
    speakers = fields.get("speaker_id", dict)
    if not all(type(token) is int for token in speakers.values()):
        fields.fault(f"{fields.path}speaker_id: expected an integer for each name, got {speakers!r}")
        speakers = {}
    return TalkerConfig(
        decoder=_decoder(text, moe=True, sections=True, qk_norm=True),
        predictor=_decoder(predictor, qk_norm=True),
        vocabulary=text.size("vocab_size"),
        codebook=predictor.size("vocab_size"),
        codebooks=fields.size("num_code_groups"),
        thinker_width=fields.size("thinker_hidden_size"),
        projection_width=text.size("intermediate_size"),
        accept_layer=fields.size("accept_hidden_layer"),
        codec_pad=fields.get("codec_pad_id", int),
        codec_bos=fields.get("codec_bos_id", int),
        codec_eos=fields.get("codec_eos_token_id", int),
        codec_nothink=fields.get("codec_nothink_id", int),
        codec_think_bos=fields.get("codec_think_bos_id", int),
        codec_think_eos=fields.get("codec_think_eos_id", int),
        speakers=tuple(sorted(speakers.items(), key=lambda item: item[1])),
    )


def _code2wav(fields: Fields) -> Code2WavConfig:
    return Code2WavConfig(
        decoder=_decoder(fields, qk_norm=False, layer_scale=True, window=fields.size("sliding_window")),
        codebook=fields.size("codebook_size"),
        codebooks=fields.size("num_quantizers"),
        width=fields.size("hidden_size"),
        channels=fields.size("decoder_dim"),
        rates=fields.ints("upsample_rates"),
        ratios=fields.ints("upsampling_ratios"),
    )


def _agree(root: Fields, thinker: ThinkerConfig, talker: TalkerConfig, code2wav: Code2WavConfig) -> None:
    """Sizes that two parts must share."""
    pairs = {
        "talker_config.thinker_hidden_size / thinker hidden_size": (talker.thinker_width, thinker.decoder.width),
        "talker_config.num_code_groups / code2wav_config.num_quantizers": (talker.codebooks, code2wav.codebooks),
        "code_predictor_config.vocab_size / code2wav_config.codebook_size": (talker.codebook, code2wav.codebook),
        "code_predictor_config.hidden_size / talker hidden_size": (talker.predictor.width, talker.decoder.width),
    }
    for names, (left, right) in pairs.items():
        if left != right:
            root.fault(f"{names}: expected equal sizes, got {left} and {right}")
    if talker.accept_layer > thinker.decoder.layers:
        root.fault(
            f"talker_config.accept_hidden_layer {talker.accept_layer} is beyond the thinker's {thinker.decoder.layers} layers"
        )
