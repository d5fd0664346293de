"""The configuration of the parts that speak: talkers, code2wav, and token2wav, which turns codes into mel frames (flow
matching) and mel frames into samples.

``DiTConfig.codes`` counts the rows of the table: one more than ``num_embeds`` of the published file. That file also has
names of sizes that Transformers' class does not (``depth`` for layers, ``dim`` for width).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from omni_jax.config.decoder import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class SpeakerEncoderConfig:
    """An ECAPA-TDNN network: reference mel frames to one vector.

    Attributes:
        channels: output channels of the first convolution, of each squeeze-excitation block, and of the convolution
            that joins the blocks; the last number is the sum of the blocks'.
        kernels: kernel widths of the same convolutions.
        dilations: dilations of the same convolutions.
        parts: groups into which a block divides its channels (Res2Net).
        squeeze_width: hidden width of the squeeze-excitation.
        attention_width: hidden width of the attention over time.
    """

    mel_bins: int
    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    dilations: tuple[int, ...]
    parts: int
    squeeze_width: int
    attention_width: int
    out_width: int

    @property
    def min_frames(self) -> int:
        """The fewest mel frames that the convolutions can reflect: at an end, the end itself is not repeated."""
        return 1 + max(
            (width - 1) * dilation // 2 for width, dilation in zip(self.kernels, self.dilations, strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """The diffusion transformer, which gives the velocity of the flow from noise to mel frames.

    Attributes:
        codes: rows of the table of codes.
        code_width: width of the table of codes.
        repeats: mel frames a code.
        speaker_width: width of the given speaker embedding.
        block_frames: mel frames in a block; the frames of a block attend to each other.
        look_ahead: layers that also see the next block.
        look_back: layers that also see the previous block.
        context: upper bound on the mel frames of a row.
    """

    layers: int
    width: int
    heads: int
    head_width: int
    ffn_width: int
    rope_theta: float
    context: int
    codes: int
    code_width: int
    repeats: int
    mel_bins: int
    speaker_width: int
    block_frames: int
    look_ahead: tuple[int, ...]
    look_back: tuple[int, ...]
    speaker_encoder: SpeakerEncoderConfig


@dataclass(frozen=True, kw_only=True)
class BigVGANConfig:
    """The vocoder proper: stages of a transposed convolution that halves the channels and a mean of residual blocks.

    Attributes:
        channels: channels before the first stage.
        rates: stride of each stage's transposed convolution.
        kernels: width of each stage's transposed convolution; it exceeds the stride by an even number.
        block_kernels: kernel width of each residual block of a stage; all stages are alike.
        dilations: dilations of each residual block of a stage, one convolution each; all stages are alike.
    """

    mel_bins: int
    channels: int
    rates: tuple[int, ...]
    kernels: tuple[int, ...]
    block_kernels: tuple[int, ...]
    dilations: tuple[tuple[int, ...], ...]

    @property
    def frame_samples(self) -> int:
        """Samples a mel frame."""
        return math.prod(self.rates)


@dataclass(frozen=True, kw_only=True)
class Token2WavConfig:
    """Codes to samples: ``dit`` turns codes into mel frames, ``bigvgan`` mel frames into samples."""

    dit: DiTConfig
    bigvgan: BigVGANConfig

    @property
    def code_samples(self) -> int:
        """Samples a code: 480 at 24 kHz in the published checkpoints, 50 codes a second."""
        return self.dit.repeats * self.bigvgan.frame_samples


@dataclass(frozen=True, kw_only=True)
class TalkerConfig:
    """The talker and its code predictor.

    Attributes:
        speakers: pairs of a name and its codec id.
        sampling: what Transformers samples codes with where a generation config says nothing.
        reads_reply: whether it reads the thinker's states at the reply's tokens, and not at the prompt's alone.
    """

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
    sampling: ClassVar[Mapping[str, float]] = {"top_k": 50, "top_p": 1.0}
    reads_reply: ClassVar[bool] = False

    @property
    def frame_width(self) -> int:
        """Width of what it reads at each frame."""
        return self.decoder.width

    def read_layer(self, layers: int) -> int:
        """After how many of the thinker's ``layers`` it reads states at the prompt."""
        return self.accept_layer

    @property
    def ends(self) -> tuple[int, ...]:
        """Codec ids that end speech."""
        return (self.codec_eos,)


@dataclass(frozen=True, kw_only=True)
class Qwen25TalkerConfig:
    """The talker of Qwen2.5-Omni, which reads the thinker's states and words and writes one codec id a frame.

    Its speakers are no codec ids: they come with the checkpoint, in spk_dict.pt.

    Attributes:
        embedding_width: width of its inputs and of its table of codec ids, equal to the thinker's; it is projected to
            the decoder's width.
        codec_pad: ends speech, as ``codec_eos`` does.
        codec_eos: ends speech.
        codec_bos: begins speech, and is never spoken.
        codec_mask: stands for the prompt where ids are counted, as for the repetition penalty.
        codes: ids below this number are sound; it equals the rows of the vocoder's table. Of the ids from it on, only
            the special ones have a meaning.
        sampling: what Transformers samples codes with where a generation config says nothing.
        reads_reply: whether it reads the thinker's states at the reply's tokens, and not at the prompt's alone.
        speakers: None, for they are in a file beside the weights.
    """

    decoder: DecoderConfig
    vocabulary: int
    codes: int
    embedding_width: int
    codec_pad: int
    codec_bos: int
    codec_eos: int
    codec_mask: int
    sampling: ClassVar[Mapping[str, float]] = {"top_k": 40, "top_p": 0.8}
    reads_reply: ClassVar[bool] = True
    speakers: ClassVar[None] = None

    @property
    def frame_width(self) -> int:
        """Width of what it reads at each frame."""
        return self.embedding_width

    def read_layer(self, layers: int) -> int:
        """After how many of the thinker's ``layers`` it reads states at the prompt."""
        return layers

    @property
    def ends(self) -> tuple[int, ...]:
        """Codec ids that end speech."""
        return (self.codec_pad, self.codec_eos)


@dataclass(frozen=True, kw_only=True)
class Code2WavConfig:
    """The vocoder, codes to 24 kHz samples: a sliding-window transformer and causal (transposed) convolutions."""

    decoder: DecoderConfig
    codebook: int
    codebooks: int
    width: int
    channels: int
    rates: tuple[int, ...]
    ratios: tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Speaker:
    """A speaker of Qwen2.5-Omni.

    Attributes:
        bos_token: id in the thinker's vocabulary; its embedding begins the text that the talker reads.
        cond: speaker embedding, float32 [1, width].
        ref_mel: mel frames of a recording of the speaker, float32 [1, frames, mel bins].
    """

    bos_token: int
    cond: np.ndarray
    ref_mel: np.ndarray
