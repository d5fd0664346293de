"""Qwen3-Omni's ``config.json``, in every spelling in use, to our configuration."""

from collections.abc import Mapping
from typing import Any

from omni_jax.buckets import CHUNK_SLOTS
from omni_jax.config.common import (
    CONTEXT,
    PER_SECOND,
    Id,
    decoder,
    equal_widths,
    mel_encoder,
    patch_encoder,
    token_ids,
    within,
)
from omni_jax.config.decoder import DecoderConfig, ExpertsConfig
from omni_jax.config.defaults import QWEN3
from omni_jax.config.encoders import AudioEncoderConfig, VisionEncoderConfig
from omni_jax.config.fields import Fields
from omni_jax.config.parts import Qwen3OmniConfig, ThinkerConfig
from omni_jax.config.speech import Code2WavConfig, TalkerConfig
from omni_jax.config.words import Words, no_words
from omni_jax.errors import cut, shown

EXPERTS = 1 << 12  # upper bound on the experts of a layer


def read(config: Mapping[str, Any], words: Words = no_words) -> Qwen3OmniConfig:
    """The whole configuration.

    Args:
        config: the content of config.json; of a thinker saved alone, its object under ``thinker_config``.
        words: looks up ids in the tokenizer beside the file.

    Raises:
        ValueError: one report of all mistyped and contradictory fields.
    """
    root = Fields(config, defaults=QWEN3)
    fields = root.sub("thinker_config")
    thinker = _thinker(fields, words)
    talker = code2wav = None
    turns = _TURNS
    if root.get("enable_audio_output", bool):
        talker = _talker(root.sub("talker_config"))
        code2wav = _code2wav(root.sub("code2wav_config"))
        turns = {**_TURNS, **_SPOKEN}
    ids = token_ids(root, turns, fields, thinker.vocabulary, words)
    if talker and code2wav and not root.faults:
        _agree(root, thinker, talker, code2wav)
    root.report()
    return Qwen3OmniConfig(family="qwen3_omni_moe", thinker=thinker, talker=talker, code2wav=code2wav, **ids)


_TURNS = {
    "im_start": Id(("im_start_token_id",), "<|im_start|>"),
    "im_end": Id(("im_end_token_id",), "<|im_end|>"),
    "system": Id(("system_token_id",), "system"),
    "user": Id(("user_token_id",), "user"),
    "assistant": Id(("assistant_token_id",), "assistant"),
}
_SPOKEN = {
    "tts_pad": Id(("tts_pad_token_id",), "<tts_pad>"),
    "tts_bos": Id(("tts_bos_token_id",), "<tts_text_bos>"),
    "tts_eos": Id(("tts_eos_token_id",), "<tts_text_eod>"),
}
_MEDIA = {
    "audio_token": Id(("audio_token_id",), "<|audio_pad|>"),
    "image_token": Id(("image_token_id",), "<|image_pad|>"),
    "video_token": Id(("video_token_id",), "<|video_pad|>"),
    "audio_start": Id(("audio_start_token_id",), "<|audio_start|>"),
    "audio_end": Id(("audio_end_token_id",), "<|audio_end|>", 151670),
    "vision_start": Id(("vision_start_token_id",), "<|vision_start|>", 151652),
    "vision_end": Id(("vision_end_token_id",), "<|vision_end|>", 151653),
}


def _decoder(fields: Fields, *, moe: bool = False, sections: bool = False, **rest: Any) -> DecoderConfig:
    fields.must("attention_bias", False, "this family's attention has no bias")
    fields.must("tie_word_embeddings", False, "the published heads are tensors of their own")
    return decoder(fields, sections=sections, mixture=_mixture if moe else None, **rest)


def _mixture(fields: Fields) -> ExpertsConfig:
    fields.must("use_sliding_window", False, "this family attends to the whole context")
    fields.must("mlp_only_layers", [], "every layer of the published models is a mixture of experts")
    fields.must("decoder_sparse_step", 1, "every layer of the published models is a mixture of experts")
    experts = ExpertsConfig(
        count=fields.size(fields.same("num_experts", "num_local_experts"), EXPERTS),
        per_token=fields.size("num_experts_per_tok"),
        ffn_width=fields.size("moe_intermediate_size"),
        normalize=fields.get("norm_topk_prob", bool),
        shared_ffn_width=fields.size("shared_expert_intermediate_size")
        if fields.values.get("shared_expert_intermediate_size")
        else 0,
    )
    if experts.per_token > experts.count and fields.sound:
        fields.fault(f"{fields.path}num_experts_per_tok {experts.per_token} is more than the {experts.count} experts")
    return experts


def _thinker(fields: Fields, words: Words) -> ThinkerConfig[AudioEncoderConfig, VisionEncoderConfig]:
    text, audio, vision = fields.sub("text_config"), fields.sub("audio_config"), fields.sub("vision_config")
    written = _decoder(text, moe=True, sections=True, qk_norm=True)
    heard, seen = _audio_encoder(audio), _vision_encoder(vision, written.layers)
    equal_widths(text, written.width, (audio, heard), (vision, seen))
    vocabulary = text.size("vocab_size")
    ids = token_ids(fields, _MEDIA, text, vocabulary, words)
    return ThinkerConfig(
        decoder=written,
        audio_encoder=heard,
        vision_encoder=seen,
        vocabulary=vocabulary,
        context=text.size("max_position_embeddings", CONTEXT),
        positions_per_second=fields.positive("position_id_per_seconds", PER_SECOND),
        **ids,
    )


def _audio_encoder(audio: Fields) -> AudioEncoderConfig:
    shared, infer = mel_encoder(audio), audio.size("n_window_infer")
    frames = shared["chunk_frames"]
    if frames != 100 and audio.sound:
        audio.fault(
            f"{audio.path}n_window: expected 50, got {frames // 2} (the token count of a chunk, 13, belongs to 100 frames)"
        )
    if infer % frames and audio.sound:
        audio.fault(f"{audio.path}n_window_infer {infer} is no multiple of the chunk of {frames} frames")
    if infer > CHUNK_SLOTS[-1] * frames and audio.sound:
        most = f"{CHUNK_SLOTS[-1] * frames:,} frames ({CHUNK_SLOTS[-1]} chunks)"
        audio.fault(f"{audio.path}n_window_infer {infer}: expected at most {most}, as a call holds")
    channels = audio.size("downsample_hidden_size")
    return AudioEncoderConfig(**shared, channels=channels, window_chunks=max(infer // frames, 1))


def _vision_encoder(vision: Fields, layers: int) -> VisionEncoderConfig:
    """Reads the vision encoder.

    Args:
        vision: the encoder's object.
        layers: number of the thinker's layers; each tap's features are added after one of the first.
    """
    vision.must("hidden_act", "gelu_pytorch_tanh", "the published encoder uses the tanh GELU")
    found = VisionEncoderConfig(
        **patch_encoder(vision),
        positions=vision.size("num_position_embeddings"),
        taps=vision.ints("deepstack_visual_indexes"),
    )
    taps = list(found.taps)
    rising = taps == sorted(set(taps)) and all(0 <= tap < found.layers for tap in taps)
    if not (taps and rising and len(taps) <= layers) and vision.sound:
        vision.fault(
            f"{vision.path}deepstack_visual_indexes {taps}: expected rising blocks from 0 to {found.layers - 1}, of "
            f"depth {found.layers}, at least one and no more than the thinker has layers"
        )
    if round(found.positions**0.5) ** 2 != found.positions and vision.sound:
        vision.fault(f"{vision.path}num_position_embeddings {found.positions}: expected a square number")
    return found


def _talker(fields: Fields) -> TalkerConfig:
    text, predictor = fields.sub("text_config"), fields.sub("code_predictor_config")
    speakers = fields.get("speaker_id", dict)
    if not all(type(token) is int for token in speakers.values()):
        fields.fault(f"{fields.path}speaker_id: expected an integer for each name, got {shown(speakers)}")
        speakers = {}
    found = TalkerConfig(
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
    if fields.sound:
        ids = {f"codec_{name}_id": getattr(found, f"codec_{name}") for name in ("pad", "bos", "nothink")}
        ids |= {f"codec_think_{name}_id": getattr(found, f"codec_think_{name}") for name in ("bos", "eos")}
        ids |= {"codec_eos_token_id": found.codec_eos}
        ids |= {f"speaker_id.{cut(name)}": token for name, token in found.speakers}
        within(fields, ids, found.vocabulary)
    return found


def _code2wav(fields: Fields) -> Code2WavConfig:
    found = Code2WavConfig(
        decoder=_decoder(fields, qk_norm=False, layer_scale=True, window=fields.size("sliding_window", 1 << 12)),
        codebook=fields.size("codebook_size"),
        codebooks=fields.size("num_quantizers"),
        width=fields.size("hidden_size"),
        channels=fields.size("decoder_dim"),
        rates=fields.ints("upsample_rates"),
        ratios=fields.ints("upsampling_ratios"),
    )
    for name, steps in (("upsample_rates", found.rates), ("upsampling_ratios", found.ratios)):
        if (not steps or min(steps) < 1) and fields.sound:
            fields.fault(f"{fields.path}{name} {shown(list(steps))}: expected some numbers of at least 1")
    if found.channels % 2 ** len(found.rates) and fields.sound:
        fields.fault(
            f"{fields.path}decoder_dim {found.channels}: expected a multiple of {2 ** len(found.rates)}, for each of "
            f"{len(found.rates)} stages halves it"
        )
    return found


def _agree(root: Fields, thinker: ThinkerConfig, talker: TalkerConfig, code2wav: Code2WavConfig) -> None:
    """Checks the sizes that two parts must share."""
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
