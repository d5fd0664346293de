"""The configuration of the thinker and of a whole model: frozen, hashable, without defaults (see ``defaults.py``)."""

from dataclasses import dataclass, replace
from typing import Generic, Self, TypeVar

from omni_jax.config.decoder import DecoderConfig
from omni_jax.config.encoders import (
    AudioEncoderConfig,
    MelEncoderConfig,
    PatchEncoderConfig,
    Qwen25AudioEncoderConfig,
    Qwen25VisionEncoderConfig,
    VisionEncoderConfig,
)
from omni_jax.config.speech import Code2WavConfig, Qwen25TalkerConfig, TalkerConfig, Token2WavConfig

AudioConfigT = TypeVar("AudioConfigT", bound=MelEncoderConfig)
VisionConfigT = TypeVar("VisionConfigT", bound=PatchEncoderConfig)


@dataclass(frozen=True, kw_only=True)
class ThinkerConfig(Generic[AudioConfigT, VisionConfigT]):
    """The thinker: the text decoder, its two encoders and the token ids that mark media in its vocabulary.

    Attributes:
        positions_per_second: steps of the time coordinate (the first rotary coordinate) for a second of video, as
            config.json says; it is not compared with the audio encoder. In released models it is the number of audio
            tokens of a whole second: 13 in Qwen3-Omni, whose encoder makes 13 tokens of each chunk of 100 mel frames
            (12.5 strides of 80 ms), and 25 in Qwen2.5-Omni, a token each 40 ms.
        chunk_seconds: a video and its sound alternate in chunks of so many seconds (Qwen2.5-Omni, whose coordinates are
            whole numbers); None where they are merged token by token.
    """

    decoder: DecoderConfig
    audio_encoder: AudioConfigT
    vision_encoder: VisionConfigT
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
class OmniConfig:
    """The configuration of a whole model of either family.

    Attributes:
        talker: None for a release that only writes text; it has no tts ids either.
        im_start: id that begins a turn.
        im_end: id that ends a turn.
        tts_pad: id in the thinker's vocabulary that pads the text that the talker reads.
        tts_bos: id in the thinker's vocabulary that begins the text that the talker reads.
        tts_eos: id in the thinker's vocabulary that ends the text that the talker reads.
    """

    family: str
    thinker: ThinkerConfig
    talker: TalkerConfig | Qwen25TalkerConfig | None
    im_start: int
    im_end: int
    user: int
    tts_pad: int = -1
    tts_bos: int = -1
    tts_eos: int = -1

    def silent(self) -> Self:
        """This configuration without the parts that speak."""
        spoken = {name: None for name in ("talker", "code2wav", "token2wav") if hasattr(self, name)}
        return replace(self, **spoken, tts_pad=-1, tts_bos=-1, tts_eos=-1)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class Qwen3OmniConfig(OmniConfig):
    """A whole Qwen3-Omni. ``talker`` and ``code2wav`` are None for the text-only releases (Thinking, Captioner)."""

    thinker: ThinkerConfig[AudioEncoderConfig, VisionEncoderConfig]
    talker: TalkerConfig | None
    code2wav: Code2WavConfig | None
    system: int
    assistant: int


@dataclass(frozen=True, kw_only=True)
class Qwen25OmniConfig(OmniConfig):
    """A whole Qwen2.5-Omni. Its speakers are in a file of their own, spk_dict.pt."""

    thinker: ThinkerConfig[Qwen25AudioEncoderConfig, Qwen25VisionEncoderConfig]
    talker: Qwen25TalkerConfig | None
    token2wav: Token2WavConfig | None
