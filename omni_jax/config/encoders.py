"""The configuration of the encoders of sound and of pictures."""

from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np

Frames = TypeVar("Frames", int, np.ndarray)


@dataclass(frozen=True, kw_only=True)
class MelEncoderConfig:
    """What the audio encoders of both families share: chunks of mel frames, convolutions, blocks of attention.

    Attributes:
        chunk_frames: mel frames of a chunk (2 * n_window); a convolution never sees past its chunk.
        out_width: width of the features, equal to the thinker's.
        pads_clips: whether the encoder was trained on clips padded to one length.
        windowed: whether chunks attend to each other, in windows, by a kernel.
    """

    mel_bins: int
    layers: int
    width: int
    heads: int
    ffn_width: int
    chunk_frames: int
    out_width: int
    pads_clips: ClassVar[bool] = False
    windowed: ClassVar[bool] = False

    @property
    def span_chunks(self) -> int:
        """Chunks that attend to each other."""
        return 1

    @property
    def window_tokens(self) -> int:
        """Tokens in a full attention window."""
        return self.chunk_tokens * self.span_chunks

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a full chunk."""
        return int(self.tokens(self.chunk_frames))

    def tokens(self, frames: Frames) -> Frames:
        """Tokens of a clip of so many mel frames (an integer or an array of them, at least 0)."""
        # A full chunk has the same number of tokens in any clip.
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
    windowed: ClassVar[bool] = True

    def _of_chunk(self, frames: Frames) -> Frames:
        return halve(halve(halve(frames)))  # three convolutions of stride 2: 13 of 100 frames

    @property
    def span_chunks(self) -> int:
        return self.window_chunks


@dataclass(frozen=True, kw_only=True)
class Qwen25AudioEncoderConfig(MelEncoderConfig):
    """The audio encoder of Qwen2.5-Omni: two convolutions over time, attention inside a chunk, then pairs averaged."""

    pads_clips: ClassVar[bool] = True

    @property
    def chunk_places(self) -> int:
        """Places of a full chunk after the convolution of stride 2. All attend to each other; each pair is a token."""
        return halve(self.chunk_frames)

    def _of_chunk(self, frames: Frames) -> Frames:
        return halve(frames) // 2  # an odd last place is dropped, so one or two frames give no token


@dataclass(frozen=True, kw_only=True)
class PatchEncoderConfig:
    """What the vision encoders of both families share: patches, blocks of attention, a merger of squares of patches.

    Attributes:
        patch: rows (and columns) of pixels in a patch.
        temporal_patch: pictures in a patch.
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
        """Values in a patch: channels x pictures x rows x columns."""
        return self.channels * self.temporal_patch * self.patch**2


@dataclass(frozen=True, kw_only=True)
class VisionEncoderConfig(PatchEncoderConfig):
    """The vision encoder of Qwen3-Omni. ``taps`` are the blocks whose output goes through a deepstack merger."""

    positions: int
    taps: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Qwen25VisionEncoderConfig(PatchEncoderConfig):
    """The vision encoder of Qwen2.5-Omni: attention in square windows, in some blocks over the whole frame.

    Attributes:
        window: rows (and columns) of patches in a window, a multiple of ``merge`` (window_size / patch_size).
        whole: indices of the blocks that attend to the whole frame.
    """

    window: int
    whole: tuple[int, ...]

    @property
    def taps(self) -> tuple[int, ...]:
        """None: no block has a deepstack merger."""
        return ()


def halve(frames):
    """Length after one convolution of width 3, stride 2, padding 1: ceil(frames / 2), and 0 for 0."""
    return (frames - 1) // 2 + 1
