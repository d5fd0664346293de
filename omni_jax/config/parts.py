"""The configuration of each part: frozen, hashable, and without a default that a checkpoint should decide."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """A mixture of SwiGLU experts. ``shared_ffn_width`` is 0 where no shared expert exists."""

    count: int
    per_token: int
    ffn_width: int
    normalize: bool
    shared_ffn_width: int = 0


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A stack of pre-norm decoder blocks: thinker, talker, code predictor and the transformer of code2wav.

    Attributes:
        layers, width, heads, kv_heads, head_width: sizes (head_width is the file's, never width / heads).
        ffn_width: width of the dense SwiGLU; 0 where every layer is a mixture of experts.
        experts: the mixture, or None for a dense stack.
        mrope_section: frequencies for time, height and width; None for one-dimensional rope.
        qk_norm: RMSNorm over the head width on queries and keys, before rope.
        layer_scale: a learned scale a channel on each residual branch.
        window: keys a query may see, itself included; None for all.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    ffn_width: int
    norm_eps: float
    rope_theta: float
    qk_norm: bool
    experts: ExpertsConfig | None = None
    mrope_section: tuple[int, int, int] | None = None
    layer_scale: bool = False
    window: int | None = None


@dataclass(frozen=True, kw_only=True)
class AudioEncoderConfig:
    """The audio encoder of Qwen3-Omni: chunks of mel frames through three convolutions, then attention in windows.

    Attributes:
        chunk_frames: mel frames a convolution chunk (2 * n_window).
        window_chunks: chunks that attend to each other (n_window_infer / chunk_frames).
        channels: channels of the convolution stem.
        out_width: width of the features, equal to the thinker's.
    """

    mel_bins: int
    layers: int
    width: int
    heads: int
    ffn_width: int
    channels: int
    chunk_frames: int
    window_chunks: int
    out_width: int

    @property
    def chunk_tokens(self) -> int:
        """Tokens that a full chunk becomes: three convolutions of stride 2."""
        return halve(halve(halve(self.chunk_frames)))

    @property
    def window_tokens(self) -> int:
        """Tokens in a full attention window."""
        return self.chunk_tokens * self.window_chunks


@dataclass(frozen=True, kw_only=True)
class VisionEncoderConfig:
    """The vision encoder of Qwen3-Omni. ``taps`` are the blocks whose output goes through a deepstack merger."""

    layers: int
    width: int
    heads: int
    ffn_width: int
    channels: int
    patch: int
    temporal_patch: int
    merge: int
    positions: int
    taps: tuple[int, ...]
    out_width: int

    @property
    def patch_width(self) -> int:
        """Numbers that make a patch: channels, pictures of a pair, rows and columns."""
        return self.channels * self.temporal_patch * self.patch**2


@dataclass(frozen=True, kw_only=True)
class ThinkerConfig:
    """The thinker: the text decoder, its two encoders and the token ids that mark media in its vocabulary."""

    decoder: DecoderConfig
    audio_encoder: AudioEncoderConfig
    vision_encoder: VisionEncoderConfig
    vocabulary: int
    context: int
    audio_token: int
    image_token: int
    video_token: int
    audio_start: int
    audio_end: int
    vision_start: int
    vision_end: int
    positions_per_second: float


@dataclass(frozen=True, kw_only=True)
class TalkerConfig:
    """The talker and its code predictor. ``speakers`` pairs each name with its codec id."""

    decoder: DecoderConfig
    predictor: DecoderConfig
    vocabulary: int
    codebook: int
    codebooks: int
    thinker_width: int
    projection_width: int
    accept_layer: int
    codec_pad: int
    codec_bos: int
    codec_eos: int
    codec_nothink: int
    codec_think_bos: int
    codec_think_eos: int
    speakers: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class Code2WavConfig:
    """The vocoder: a sliding-window transformer and causal (transposed) convolutions, codes to 24 kHz samples."""

    decoder: DecoderConfig
    codebook: int
    codebooks: int
    width: int
    channels: int
    rates: tuple[int, ...]
    ratios: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class OmniConfig:
    """A whole checkpoint. ``talker`` and ``code2wav`` are None for the text-only releases (Thinking,
    Captioner), which have no tts ids either."""

    family: str
    thinker: ThinkerConfig
    talker: TalkerConfig | None
    code2wav: Code2WavConfig | None
    im_start: int
    im_end: int
    system: int
    user: int
    assistant: int
    tts_pad: int = -1
    tts_bos: int = -1
    tts_eos: int = -1


def halve(frames):
    """Length after one convolution of width 3, stride 2, padding 1: ceil(frames / 2), and 0 for 0."""
    return (frames - 1) // 2 + 1
