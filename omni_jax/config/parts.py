"""The configuration of each part: frozen, hashable, and without defaults; see ``defaults.py``."""

from dataclasses import dataclass, replace
from typing import Generic, Self, TypeVar

import numpy as np

from omni_jax.config.token2wav import Token2WavConfig

Frames = TypeVar("Frames", int, np.ndarray)


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
        mrope_interleaved: time, height and width take frequencies in turn; False for a run of them each, in that order.
        qk_norm: RMSNorm over the head width on queries and keys, before rope.
        bias: biases of the query, key and value projections; the output projection has none.
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
    mrope_interleaved: bool = True
    bias: bool = False
    layer_scale: bool = False
    window: int | None = None


@dataclass(frozen=True, kw_only=True)
class MelEncoderConfig:
    """What the audio encoders of both families have: chunks of mel frames, convolutions, blocks of attention.

    Attributes:
        chunk_frames: mel frames of a chunk (2 * n_window); a convolution sees none beyond its own.
        out_width: width of the features, equal to the thinker's.
    """

    mel_bins: int
    layers: int
    width: int
    heads: int
    ffn_width: int
    chunk_frames: int
    out_width: int

    @property
    def chunk_tokens(self) -> int:
        """Tokens that a full chunk becomes."""
        return int(self.tokens(self.chunk_frames))

    def tokens(self, frames: Frames) -> Frames:
        """Tokens that a clip of so many mel frames (an integer or an array of them, at least 0) becomes."""
        # A full chunk's number of tokens is the same in any clip.
        full, rest = frames // self.chunk_frames, frames % self.chunk_frames
        return full * self._of_chunk(self.chunk_frames) + self._of_chunk(rest)

    def _of_chunk(self, frames: Frames) -> Frames:
        """Tokens of a chunk of so many frames."""
        raise TypeError(f"{type(self).__name__} does not say what its convolutions leave of a chunk")


@dataclass(frozen=True, kw_only=True)
class AudioEncoderConfig(MelEncoderConfig):
    """The audio encoder of Qwen3-Omni: three convolutions over mel and time, then attention in windows of chunks.

    Attributes:
        window_chunks: chunks that attend to each other (n_window_infer / chunk_frames).
        channels: channels of the convolution stem.
    """

    channels: int
    window_chunks: int

    def _of_chunk(self, frames: Frames) -> Frames:
        return halve(halve(halve(frames)))  # three convolutions of stride 2: 13 of 100 frames

    @property
    def window_tokens(self) -> int:
        """Tokens in a full attention window."""
        return self.chunk_tokens * self.window_chunks


@dataclass(frozen=True, kw_only=True)
class PooledAudioEncoderConfig(MelEncoderConfig):
    """The audio encoder of Qwen2.5-Omni: two convolutions over time, attention inside a chunk, then pairs averaged."""

    @property
    def chunk_places(self) -> int:
        """Places of a full chunk, which attend to each other: one convolution of stride 2. Each pair becomes a token."""
        return halve(self.chunk_frames)

    def _of_chunk(self, frames: Frames) -> Frames:
        return halve(frames) // 2  # an odd last place is dropped, so one or two frames are no token


@dataclass(frozen=True, kw_only=True)
class PatchEncoderConfig:
    """What the vision encoders of both families have: patches, blocks of attention, a merger of squares of patches.

    Attributes:
        patch, temporal_patch: rows (and columns) of pixels, and pictures, that make a patch.
        merge: rows (and columns) of patches that become one token.
        out_width: width of the features, equal to the thinker's.
    """

    layers: int
    width: int
    heads: int
    ffn_width: int
    channels: int
    patch: int
    temporal_patch: int
    merge: int
    out_width: int

    @property
    def patch_width(self) -> int:
        """Numbers that make a patch: channels, pictures of a pair, rows and columns."""
        return self.channels * self.temporal_patch * self.patch**2


@dataclass(frozen=True, kw_only=True)
class VisionEncoderConfig(PatchEncoderConfig):
    """The vision encoder of Qwen3-Omni. ``taps`` are the blocks whose output goes through a deepstack merger."""

    positions: int
    taps: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class WindowedVisionEncoderConfig(PatchEncoderConfig):
    """The vision encoder of Qwen2.5-Omni: attention in square windows, in some blocks over the whole frame.

    Attributes:
        window: rows (and columns) of patches in a window, a multiple of ``merge`` (window_size / patch_size).
        whole: the blocks that attend to the whole frame.
    """

    window: int
    whole: tuple[int, ...]

    @property
    def taps(self) -> tuple[int, ...]:
        """None: no block has a deepstack merger."""
        return ()


Hears = TypeVar("Hears", bound=MelEncoderConfig)
Sees = TypeVar("Sees", bound=PatchEncoderConfig)


@dataclass(frozen=True, kw_only=True)
class ThinkerConfig(Generic[Hears, Sees]):
    """The thinker: the text decoder, its two encoders and the token ids that mark media in its vocabulary.

    Attributes:
        positions_per_second: of time, the first rotary coordinate, in a video; as many as sound has tokens.
        chunk_seconds: a video and its sound take turns of so many seconds (Qwen2.5-Omni, whose coordinates are whole
            numbers); None where they are merged token by token.
    """

    decoder: DecoderConfig
    audio_encoder: Hears
    vision_encoder: Sees
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
    chunk_seconds: int | None = None


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

    @property
    def ends(self) -> tuple[int, ...]:
        """Codec ids that end speech."""
        return (self.codec_eos,)


@dataclass(frozen=True, kw_only=True)
class DualTrackTalkerConfig:
    """The talker of Qwen2.5-Omni, which reads the thinker's states and words and writes one codec id a frame.

    Its voices are no ids of its own: they come with the checkpoint, in spk_dict.pt.

    Attributes:
        embedding_width: of what it reads and of its table of codec ids: the thinker's width, projected to its own.
        codec_pad, codec_eos: both end speech. codec_bos: begins it, and is never spoken.
        codec_mask: stands for the prompt where ids are counted, as the penalty of repetition does.
        codes: ids below it are sound, as many as the vocoder's table has rows; of the others only marks have a meaning.
    """

    decoder: DecoderConfig
    vocabulary: int
    codes: int
    embedding_width: int
    codec_pad: int
    codec_bos: int
    codec_eos: int
    codec_mask: int

    @property
    def ends(self) -> tuple[int, ...]:
        """Codec ids that end speech."""
        return (self.codec_pad, self.codec_eos)


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
    """What the whole of either family has. ``talker`` is None for a release that only writes; then there are no tts ids.

    Attributes:
        im_start, im_end: begin and end a turn.
        tts_pad, tts_bos, tts_eos: ids in the thinker's vocabulary, which mark the words that the talker reads.
    """

    family: str
    thinker: ThinkerConfig
    talker: TalkerConfig | DualTrackTalkerConfig | None
    im_start: int
    im_end: int
    user: int
    tts_pad: int = -1
    tts_bos: int = -1
    tts_eos: int = -1

    def silent(self) -> Self:
        """The same without the parts that speak."""
        spoken = {name: None for name in ("talker", "code2wav", "token2wav") if hasattr(self, name)}
        return replace(self, **spoken, tts_pad=-1, tts_bos=-1, tts_eos=-1)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class Omni3Config(OmniConfig):
    """A whole Qwen3-Omni. ``talker`` and ``code2wav`` are None for the text-only releases (Thinking, Captioner)."""

    thinker: ThinkerConfig[AudioEncoderConfig, VisionEncoderConfig]
    talker: TalkerConfig | None
    code2wav: Code2WavConfig | None
    system: int
    assistant: int


@dataclass(frozen=True, kw_only=True)
class Omni25Config(OmniConfig):
    """A whole Qwen2.5-Omni. Its voices come beside it, in spk_dict.pt."""

    thinker: ThinkerConfig[PooledAudioEncoderConfig, WindowedVisionEncoderConfig]
    talker: DualTrackTalkerConfig | None
    token2wav: Token2WavConfig | None


def halve(frames):
    """Length after one convolution of width 3, stride 2, padding 1: ceil(frames / 2), and 0 for 0."""
    return (frames - 1) // 2 + 1
