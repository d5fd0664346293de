"""Qwen2.5-Omni's ``config.json``, in every spelling in use, to our configuration.

The published 7B and 3B differ only in sizes. The talker's heads are 128 wide (12 of them, with a width of 896) or 64,
with M-RoPE sections [16, 24, 24] or [16, 16, 0]. The thinker's are width / heads = 128 wide in both, and its object has
no head_dim. The tokens that begin and end a turn are the thinker's bos and eos. Speakers are not in this file.
"""

from collections.abc import Mapping
from typing import Any

from omni_jax.config.common import (
    CONTEXT,
    LAYERS,
    PER_SECOND,
    Id,
    decoder,
    equal_widths,
    mel_encoder,
    patch_encoder,
    token_ids,
    within,
)
from omni_jax.config.decoder import DecoderConfig
from omni_jax.config.defaults import QWEN2_5
from omni_jax.config.encoders import Qwen25AudioEncoderConfig, Qwen25VisionEncoderConfig
from omni_jax.config.fields import MOST, Fields
from omni_jax.config.parts import Qwen25OmniConfig, ThinkerConfig
from omni_jax.config.speech import (
    BigVGANConfig,
    DiTConfig,
    Qwen25TalkerConfig,
    SpeakerEncoderConfig,
    Token2WavConfig,
)
from omni_jax.config.words import UNKNOWN, Words, no_words
from omni_jax.errors import shown

Thinker = ThinkerConfig[Qwen25AudioEncoderConfig, Qwen25VisionEncoderConfig]


def read(config: Mapping[str, Any], words: Words = no_words) -> Qwen25OmniConfig:
    """The whole configuration.

    Args:
        config: the content of config.json; of a thinker saved alone, its object under ``thinker_config``.
        words: looks up ids in the tokenizer beside the file.

    Raises:
        ValueError: one report of all mistyped and contradictory fields.
    """
    root = Fields(config, defaults=QWEN2_5)
    fields = root.sub("thinker_config")
    thinker = _thinker(fields, words)
    ids = token_ids(fields, _TURNS, fields, thinker.vocabulary, words)
    talker = token2wav = None
    if root.get("enable_audio_output", bool):
        talker_fields = root.sub("talker_config")
        token2wav = _token2wav(root.sub("token2wav_config"))
        talker = _talker(talker_fields, token2wav.dit.codes)
        ids |= token_ids(talker_fields, _SPOKEN, fields, thinker.vocabulary, words)
        if not root.faults:
            _agree(thinker, talker_fields, talker)
    root.report()
    return Qwen25OmniConfig(family="qwen2_5_omni", thinker=thinker, talker=talker, token2wav=token2wav, **ids)


_TURNS = {
    "im_start": Id(("bos_token_id",), "<|im_start|>", 151644),
    "im_end": Id(("eos_token_id",), "<|im_end|>", 151645),
    "user": Id(("user_token_id",), "user"),
}
# Rows of the thinker's table that have no text in the tokenizer.
_SPOKEN = {
    "tts_pad": Id(("tts_text_pad_token_id",)),
    "tts_bos": Id(("tts_text_start_token_id",)),
    "tts_eos": Id(("tts_text_end_token_id",)),
}
_MEDIA = {
    "audio_token": Id(("audio_token_index", "audio_token_id"), "<|AUDIO|>"),
    "image_token": Id(("image_token_index", "image_token_id"), "<|IMAGE|>"),
    "video_token": Id(("video_token_index", "video_token_id"), "<|VIDEO|>"),
    "audio_start": Id(("audio_start_token_id",), "<|audio_bos|>"),
    "audio_end": Id(("audio_end_token_id",), "<|audio_eos|>"),
    "vision_start": Id(("vision_start_token_id",), "<|vision_bos|>", 151652),
    "vision_end": Id(("vision_end_token_id",), "<|vision_eos|>", 151653),
}


def _decoder(fields: Fields) -> DecoderConfig:
    whole = "this family attends to the whole context"
    fields.must("use_sliding_window", False, whole)
    kinds = fields.values.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or set(map(str, kinds)) - {"full_attention"}):
        fields.fault(
            f"{fields.path}layer_types: expected 'full_attention' for each layer, got {shown(kinds)} ({whole})"
        )
    return decoder(fields, sections=True, qk_norm=False, bias=True, mrope_interleaved=False)


def _thinker(fields: Fields, words: Words) -> Thinker:
    text, audio, vision = fields.sub("text_config"), fields.sub("audio_config"), fields.sub("vision_config")
    # text_config's own flag is true in any file that Transformers wrote, and has no effect: the head is a tensor of its
    # own.
    fields.must("tie_word_embeddings", False, "the published head is a tensor of its own")
    written, heard, seen = _decoder(text), _audio_encoder(audio), _vision_encoder(vision)
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
        chunk_seconds=fields.size("seconds_per_chunk", 1 << 12),
        **ids,
    )


def _audio_encoder(audio: Fields) -> Qwen25AudioEncoderConfig:
    found = Qwen25AudioEncoderConfig(**mel_encoder(audio))
    places, table = found.chunk_places, audio.size("max_source_positions")
    if places % 2 and audio.sound:
        audio.fault(
            f"{audio.path}n_window: expected an even number, got {places} (pairs of places are averaged, within a chunk)"
        )
    if places > table and audio.sound:
        audio.fault(f"{audio.path}max_source_positions {table}: expected at least n_window, {places}")
    return found


def _vision_encoder(vision: Fields) -> Qwen25VisionEncoderConfig:
    vision.must("hidden_act", "silu", "the published encoder's feed-forward uses SiLU")
    shared, size, whole = patch_encoder(vision), vision.size("window_size"), vision.ints("fullatt_block_indexes")
    cell = shared["patch"] * shared["merge"]
    if size % cell and vision.sound:
        vision.fault(
            f"{vision.path}window_size {size} is no multiple of patch_size x spatial_merge_size, {cell} pixels"
        )
    if list(whole) != sorted({block for block in whole if 0 <= block < shared["layers"]}) and vision.sound:
        vision.fault(
            f"{vision.path}fullatt_block_indexes {list(whole)}: expected rising blocks from 0 to {shared['layers'] - 1}, "
            f"of depth {shared['layers']}"
        )
    return Qwen25VisionEncoderConfig(**shared, window=size // shared["patch"], whole=whole)


def _talker(fields: Fields, codes: int) -> Qwen25TalkerConfig:
    fields.must("tie_word_embeddings", False, "the published head is a tensor of its own")
    found = Qwen25TalkerConfig(
        decoder=_decoder(fields),
        vocabulary=fields.size("vocab_size"),
        codes=codes,
        embedding_width=fields.size("embedding_size"),
        codec_pad=fields.get("tts_codec_pad_token_id", int),
        codec_bos=fields.get("tts_codec_start_token_id", int),
        codec_eos=fields.get("tts_codec_end_token_id", int),
        codec_mask=fields.get("tts_codec_mask_token_id", int),
    )
    if fields.sound:
        ids = {"pad": found.codec_pad, "start": found.codec_bos, "end": found.codec_eos, "mask": found.codec_mask}
        within(fields, {f"tts_codec_{name}_token_id": token for name, token in ids.items()}, found.vocabulary)
    return found


def _agree(thinker: Thinker, fields: Fields, talker: Qwen25TalkerConfig) -> None:
    """Checks that the fields that the talker's object repeats equal the thinker's."""
    if talker.embedding_width != thinker.decoder.width:
        fields.fault(
            f"{fields.path}embedding_size / thinker hidden_size: expected equal sizes, got {talker.embedding_width} and "
            f"{thinker.decoder.width}"
        )
    spelt: dict[str, Any] = {
        name: getattr(thinker, ours)
        for ours, known in _MEDIA.items()
        for name in known.names
        if getattr(thinker, ours) != UNKNOWN
    }
    spelt["position_id_per_seconds"] = thinker.positions_per_second
    spelt["seconds_per_chunk"] = thinker.chunk_seconds
    spelt["spatial_merge_size"] = thinker.vision_encoder.merge
    for name, wanted in spelt.items():
        fields.must(name, wanted, "the thinker's own")


def _token2wav(fields: Fields) -> Token2WavConfig:
    dit, bigvgan = fields.sub("dit_config"), fields.sub("bigvgan_config")
    found = Token2WavConfig(dit=_dit(dit), bigvgan=_bigvgan(bigvgan))
    if found.dit.mel_bins != found.bigvgan.mel_bins and dit.sound and bigvgan.sound:
        fields.fault(
            f"{fields.path}dit_config.mel_dim / bigvgan_config.mel_dim: expected equal sizes, got {found.dit.mel_bins} and "
            f"{found.bigvgan.mel_bins}"
        )
    return found


def _dit(dit: Fields) -> DiTConfig:
    width, mel_bins = dit.size(dit.same("hidden_size", "dim")), dit.size("mel_dim")
    rope = dit.sub("rope_parameters") if dit.values.get("rope_parameters") else dit
    found = DiTConfig(
        layers=dit.size(dit.same("num_hidden_layers", "depth"), LAYERS),
        width=width,
        heads=dit.size(dit.same("num_attention_heads", "heads")),
        head_width=dit.size("head_dim"),
        ffn_width=width * dit.size("ff_mult"),
        rope_theta=(rope if "rope_theta" in rope.values else dit).positive("rope_theta"),
        context=dit.size("max_position_embeddings"),
        codes=dit.size("num_embeds") + 1,
        code_width=dit.size("emb_dim"),
        repeats=dit.size("repeats", 1 << 6),
        mel_bins=mel_bins,
        speaker_width=dit.size("enc_emb_dim"),
        block_frames=dit.size("block_size"),
        look_ahead=dit.ints("look_ahead_layers"),
        look_back=dit.ints("look_backward_layers"),
        speaker_encoder=_speaker_encoder(dit, mel_bins),
    )
    for name, layers in (("look_ahead_layers", found.look_ahead), ("look_backward_layers", found.look_back)):
        if not all(0 <= layer < found.layers for layer in layers) and dit.sound:
            dit.fault(f"{dit.path}{name} {list(layers)}: expected layers from 0 to {found.layers - 1}")
    if found.head_width % 2 and dit.sound:
        dit.fault(f"{dit.path}head_dim: expected an even number, got {found.head_width} (rope turns pairs)")
    return found


def _speaker_encoder(dit: Fields, mel_bins: int) -> SpeakerEncoderConfig:
    found = SpeakerEncoderConfig(
        mel_bins=mel_bins,
        channels=dit.ints("enc_channels"),
        kernels=dit.ints("enc_kernel_sizes"),
        dilations=dit.ints("enc_dilations"),
        parts=dit.size("enc_res2net_scale"),
        squeeze_width=dit.size("enc_se_channels"),
        attention_width=dit.size("enc_attention_channels"),
        out_width=dit.size("enc_dim"),
    )
    if not dit.sound:
        return found
    first, inner, last = found.channels[:1], found.channels[1:-1], found.channels[-1:]
    if not first or not inner or sum(inner) != last[0] or any(count % found.parts for count in inner):
        dit.fault(
            f"{dit.path}enc_channels {list(found.channels)}: expected a first, one or more that are multiples of "
            f"enc_res2net_scale {found.parts}, and their sum"
        )
    for name, sizes in (("enc_kernel_sizes", found.kernels), ("enc_dilations", found.dilations)):
        if found.channels and (len(sizes) != len(found.channels) or any(size < 1 for size in sizes)):
            dit.fault(
                f"{dit.path}{name} {list(sizes)}: expected a number of at least 1 for each of {len(found.channels)} enc_channels"
            )
    return found


def _bigvgan(fields: Fields) -> BigVGANConfig:
    dilations = fields.get("resblock_dilation_sizes", list)
    whole = len(dilations) <= 64 and all(map(_is_row, dilations))
    if not whole:
        fields.fault(
            f"{fields.path}resblock_dilation_sizes: expected lists of integers of at least 1, got {shown(dilations)}"
        )
    found = BigVGANConfig(
        mel_bins=fields.size("mel_dim"),
        channels=fields.size("upsample_initial_channel"),
        rates=fields.ints("upsample_rates"),
        kernels=fields.ints("upsample_kernel_sizes"),
        block_kernels=fields.ints("resblock_kernel_sizes"),
        dilations=tuple(tuple(row) for row in dilations) if whole else (),
    )
    if not fields.sound:
        return found
    rates, kernels, blocks = list(found.rates), list(found.kernels), list(found.block_kernels)
    pairs = zip(kernels, rates, strict=False)
    if not rates or len(rates) != len(kernels) or any(r < 1 or k < r or (k - r) % 2 for k, r in pairs):
        fields.fault(
            f"{fields.path}upsample_kernel_sizes {kernels}: expected, for each of upsample_rates {rates}, a size as large as the "
            "rate or larger by an even number"
        )
    if not blocks or len(blocks) != len(found.dilations) or any(size < 1 or size % 2 == 0 for size in blocks):
        fields.fault(
            f"{fields.path}resblock_kernel_sizes {blocks}: expected odd sizes, one for each list of resblock_dilation_sizes"
        )
    if found.channels % 2 ** len(rates):
        fields.fault(
            f"{fields.path}upsample_initial_channel {found.channels}: expected a multiple of {2 ** len(rates)}, for each of "
            f"{len(rates)} stages halves it"
        )
    return found


def _is_row(value: Any) -> bool:
    """Whether a value is a list of 1 to 64 dilations."""
    return (
        isinstance(value, list)
        and 0 < len(value) <= 64
        and all(type(size) is int and 0 < size <= MOST for size in value)
    )
