"""Keywords of the methods that answer, with their types: the one list of a request's options.

``RequestOptions.from_mapping`` reads them. The command line and batch lines take their names from here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, get_type_hints

from omni_jax.decoding.sampling import Sampling
from omni_jax.processing.media.video_track import Progress
from omni_jax.processing.options import MediaOptions

Tokens = int | Sequence[int]
Strings = str | Sequence[str]


class MediaKeywords(TypedDict, total=False):
    """How images, videos and sound are read (``MediaOptions``): for all conversations, or a list of one a conversation."""

    media: MediaOptions | None
    min_pixels: int | Sequence[int] | None
    max_pixels: int | Sequence[int] | None
    resized_height: int | Sequence[int] | None
    resized_width: int | Sequence[int] | None
    fps: float | Sequence[float] | None
    nframes: int | Sequence[int] | None
    min_frames: int | Sequence[int] | None
    max_frames: int | Sequence[int] | None
    total_pixels: int | Sequence[int] | None
    video_start: float | Sequence[float] | None
    video_end: float | Sequence[float] | None
    audio_start: float | Sequence[float] | None
    audio_end: float | Sequence[float] | None
    load_audio_from_video: bool | Sequence[bool] | None
    use_audio_in_video: bool | Sequence[bool] | None
    sample_fps: float | Sequence[float] | None
    max_bytes: int | None
    timeout: float | None
    allow_private: bool | None
    allow_local: bool | None


class SpeechKeywords(TypedDict, total=False):
    """How replies are spoken. ``talker`` chooses a frame's first code, ``predictor`` its other codes."""

    seed: int | Sequence[int]
    speaker: str | Sequence[str] | None
    compat: str | None
    talker: Sampling | None
    talker_max_new_tokens: int | None
    talker_min_new_tokens: int | None
    talker_do_sample: bool | None
    talker_temperature: float | None
    talker_top_k: int | None
    talker_top_p: float | None
    talker_repetition_penalty: float | None
    talker_eos_token_id: Tokens | None
    predictor: Sampling | None
    predictor_do_sample: bool | None
    predictor_temperature: float | None
    predictor_top_k: int | None
    predictor_top_p: float | None


class TransformersKeywords(TypedDict, total=False):
    """Names by which Transformers' ``generate`` takes some of these options (engine/transformers_keywords.py)."""

    spk: str | None
    generation_mode: str | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    stop_strings: Strings | None


class SpeakKeywords(SpeechKeywords, MediaKeywords, total=False):
    """Options of a text that is only to be spoken."""

    conversation: Sequence[Any] | None
    progress: Progress | None


class JobKeywords(SpeechKeywords, MediaKeywords, TransformersKeywords, total=False):
    """Options of all requests of a job, whose own ``progress`` counts lines."""

    return_audio: bool | None
    tools: Sequence[Mapping[str, Any]] | None
    template: Mapping[str, Any] | None
    thinker: Sampling | None
    thinker_max_new_tokens: int | None
    thinker_min_new_tokens: int | None
    thinker_do_sample: bool | None
    thinker_temperature: float | None
    thinker_top_k: int | None
    thinker_top_p: float | None
    thinker_repetition_penalty: float | None
    thinker_eos_token_id: Tokens | None
    thinker_stop_strings: Strings | None


class RequestKeywords(JobKeywords, total=False):
    """Options of a request; ``Omni.generate_batch`` documents them."""

    progress: Progress | None


NAMES = frozenset(get_type_hints(RequestKeywords)) - frozenset(get_type_hints(TransformersKeywords))
