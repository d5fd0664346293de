"""Qwen2.5-Omni's ``config.json``, in every spelling in use, to our configuration.

The published 7B and 3B differ in sizes alone: the talker's heads are 128 wide (12 of them beside a width of 896) or 64, with
M-RoPE sections [16, 24, 24] or [16, 16, 0]; the thinker's are width / heads = 128 in both, and no head_dim is written there.
Ids of the tokens that begin and end a turn are the thinker's bos and eos; voices are no part of this file.
"""

from collections.abc import Mapping
from typing import Any

from omni_jax.config.common import decoder, equal_widths, media_ids, mel_encoder, patch_encoder, within
from omni_jax.config.fields import Fields
from omni_jax.config.parts import (
    DecoderConfig,
    DualTrackTalkerConfig,
    Omni25Config,
    PooledAudioEncoderConfig,
    ThinkerConfig,
    WindowedVisionEncoderConfig,
)
from omni_jax.config.token2wav import BigVGANConfig, DiTConfig, SpeakerEncoderConfig, Token2WavConfig

Thinker = ThinkerConfig[PooledAudioEncoderConfig, WindowedVisionEncoderConfig]


def read(config: Mapping[str, Any]) -> Omni25Config:
    """The whole configuration, or one ValueError with every missing, mistyped or contradictory field."""
    root = Fields(config)
    thinker_fields = root.sub("thinker_config")
    thinker = _thinker(thinker_fields)
    turns = {"im_start": "bos_token_id", "im_end": "eos_token_id", "user": "user_token_id"}
    ids = _ids(thinker_fields, turns, thinker_fields, thinker.vocabulary)
    talker = token2wav = None
    if root.get("enable_audio_output", bool, True):
        talker_fields = root.sub("talker_config")
        token2wav = _token2wav(root.sub("token2wav_config"))
        talker = _talker(talker_fields, token2wav.dit.codes)
        words = {"pad": "pad", "bos": "start", "eos": "end"}
        words = {f"tts_{ours}": f"tts_text_{theirs}_token_id" for ours, theirs in words.items()}
        ids |= _ids(talker_fields, words, thinker_fields, thinker.vocabulary)
        if not root.faults:
            _agree(thinker_fields, thinker, talker_fields, talker)
    if root.faults:
        raise ValueError("config.json: " + "; ".join(root.faults))
    return Omni25Config(family="qwen2_5_omni", thinker=thinker, talker=talker, token2wav=token2wav, **ids)


def _ids(fields: Fields, names: Mapping[str, str], thinker: Fields, vocabulary: int) -> dict[str, int]:
    """Ids in the thinker's vocabulary, wherever they stand."""
    ids = {ours: fields.get(theirs, int) for ours, theirs in names.items()}
    if fields.sound and thinker.sound:
        within(fields, {names[ours]: token for ours, token in ids.items()}, vocabulary)
    return ids


def _decoder(fields: Fields, *, head_dim: bool) -> DecoderConfig:
    whole = "this family attends to the whole context"
    fields.must("use_sliding_window", False, whole)
    kinds = fields.values.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or set(map(str, kinds)) - {"full_attention"}):
        fields.fault(f"{fields.path}layer_types: expected 'full_attention' for each layer, got {kinds!r} ({whole})")
    return decoder(fields, head_dim=head_dim, sections=True, qk_norm=False, bias=True, mrope_interleaved=False)


def _thinker(fields: Fields) -> Thinker:
    text, audio, vision = fields.sub("text_config"), fields.sub("audio_config"), fields.sub("vision_config")
    # The text's own flag is true wherever the library wrote the file, and means nothing there: the head is a tensor.
    fields.must("tie_word_embeddings", False, "the published head is a tensor of its own")
    written, heard, seen = _decoder(text, head_dim=False), _audio_encoder(audio), _vision_encoder(vision)
    equal_widths(text, written.width, (audio, heard), (vision, seen))
    vocabulary = text.size("vocab_size")
    ids = media_ids(fields, text, vocabulary, **_IDS)
    return ThinkerConfig(
        decoder=written,
        audio_encoder=heard,
        vision_encoder=seen,
        vocabulary=vocabulary,
        context=text.size("max_position_embeddings"),
        positions_per_second=fields.positive("position_id_per_seconds"),
        chunk_seconds=fields.size("seconds_per_chunk"),
        **ids,
    )


_IDS = {
    "audio_token": ("audio_token_index", "audio_token_id"),
    "image_token": ("image_token_index", "image_token_id"),
    "video_token": ("video_token_index", "video_token_id"),
    "audio_start": ("audio_start_token_id",),
    "audio_end": ("audio_end_token_id",),
    "vision_start": ("vision_start_token_id",),
    "vision_end": ("vision_end_token_id",),
}


def _audio_encoder(audio: Fields) -> PooledAudioEncoderConfig:
    audio.same("encoder_layers", "num_hidden_layers")
    found = PooledAudioEncoderConfig(**mel_encoder(audio))
    places, table = found.chunk_places, audio.size("max_source_positions")
    if places % 2 and audio.sound:
        audio.fault(
            f"{audio.path}n_window: expected an even number, got {places} (pairs of places are averaged, within a chunk)"
        )
    if places > table and audio.sound:
        audio.fault(f"{audio.path}max_source_positions {table}: expected at least n_window, {places}")
    return found


def _vision_encoder(vision: Fields) -> WindowedVisionEncoderConfig:
    vision.must("hidden_act", "silu", "the published encoder's feed-forward uses SiLU")
    for names in (("hidden_size", "embed_dim"), ("patch_size", "spatial_patch_size"), ("in_channels", "in_chans")):
        vision.same(*names)
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
    return WindowedVisionEncoderConfig(**shared, window=size // shared["patch"], whole=whole)


def _talker(fields: Fields, codes: int) -> DualTrackTalkerConfig:
    fields.must("tie_word_embeddings", False, "the published head is a tensor of its own")
    found = DualTrackTalkerConfig(
        decoder=_decoder(fields, head_dim=True),
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


def _agree(thinker_fields: Fields, thinker: Thinker, fields: Fields, talker: DualTrackTalkerConfig) -> None:
    """What the talker's object repeats of the thinker's, it must repeat as it is."""
    if talker.embedding_width != thinker.decoder.width:
        fields.fault(
            f"{fields.path}embedding_size / thinker hidden_size: expected equal sizes, got {talker.embedding_width} and "
            f"{thinker.decoder.width}"
        )
    repeated = {ours: getattr(thinker, ours) for ours in _IDS}
    spelt = {name: repeated[ours] for ours, names in _IDS.items() for name in names}
    for name in ("position_id_per_seconds", "seconds_per_chunk"):
        spelt[name] = thinker_fields.values[name]
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
    """The published file leaves out what the others give as defaults here: no checkpoint has anything else."""
    width, mel_bins = dit.size(dit.same("hidden_size", "dim")), dit.size("mel_dim")
    rope = dit.sub("rope_parameters") if dit.values.get("rope_parameters") else dit
    found = DiTConfig(
        layers=dit.size(dit.same("num_hidden_layers", "depth")),
        width=width,
        heads=dit.size(dit.same("num_attention_heads", "heads")),
        head_width=dit.size("head_dim"),
        ffn_width=width * dit.size("ff_mult"),
        rope_theta=rope.positive("rope_theta") if "rope_theta" in rope.values else 1e4,
        context=dit.size("max_position_embeddings") if "max_position_embeddings" in dit.values else 32768,
        codes=dit.size("num_embeds") + 1,
        code_width=dit.size("emb_dim"),
        repeats=dit.size("repeats"),
        mel_bins=mel_bins,
        speaker_width=dit.size("enc_emb_dim"),
        block_frames=dit.size("block_size") if "block_size" in dit.values else 24,
        look_ahead=dit.ints("look_ahead_layers") if "look_ahead_layers" in dit.values else (10,),
        look_back=dit.ints("look_backward_layers") if "look_backward_layers" in dit.values else (0, 20),
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
    listed = fields.get("resblock_dilation_sizes", list)
    whole = all(isinstance(row, list) and row and all(type(size) is int and size > 0 for size in row) for row in listed)
    if not whole:
        fields.fault(f"{fields.path}resblock_dilation_sizes: expected lists of integers of at least 1, got {listed!r}")
    found = BigVGANConfig(
        mel_bins=fields.size("mel_dim"),
        channels=fields.size("upsample_initial_channel"),
        rates=fields.ints("upsample_rates"),
        kernels=fields.ints("upsample_kernel_sizes"),
        block_kernels=fields.ints("resblock_kernel_sizes"),
        dilations=tuple(tuple(row) for row in listed) if whole else (),
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
