"""The media of a conversation as features: sound as log-mel clips, pictures and videos as patches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from omni_jax.config import ThinkerConfig
from omni_jax.processing import audio, source, video, vision
from omni_jax.processing.options import MediaOptions
from omni_jax.processing.positions import interleave
from omni_jax.processing.prompt import Media, audio_tokens

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Visual:
    """An image or a video as the vision encoder takes it.

    Attributes:
        patches: frame after frame, as ``vision.patches`` makes them.
        grid: frames (pairs of pictures), rows and columns, in patches.
        seconds: time from one frame of the grid to the next; 0 for an image.
    """

    patches: Float[np.ndarray, "P C"]
    grid: tuple[int, int, int]
    seconds: float = 0.0


@dataclass(frozen=True)
class Reader:
    """How media become features: the numbers of a checkpoint's preprocessor and of its thinker."""

    sound: audio.FeatureConfig
    patches: vision.PatchConfig
    thinker: ThinkerConfig


@dataclass
class Features:
    """What the media of one conversation became, each kind in the order of its placeholders.

    Attributes:
        mel: clips of sound, those of videos among them at their video's place.
        runs: for each placeholder, what stands for its media in the prompt (see ``prompt.expand``).
    """

    mel: list[np.ndarray] = field(default_factory=list)
    images: list[Visual] = field(default_factory=list)
    videos: list[Visual] = field(default_factory=list)
    runs: dict[int, list[int | Sequence[int]]] = field(default_factory=dict)


def read(media: Sequence[Media], reader: Reader, options: MediaOptions, progress: Progress | None = None) -> Features:
    """Reads each medium; what its part of the message states for itself goes over ``options``.

    Raises:
        ValueError: one line that names the medium and what is wrong with it.
    """
    config = reader.thinker
    made = Features(runs={config.audio_token: [], config.image_token: [], config.video_token: []})
    for item in media:
        try:
            own = options.over(item.options)
            if item.kind == "audio":
                made.mel.append(audio.log_mel(audio.load(item.source, options=own), reader.sound))
                made.runs[config.audio_token].append(int(audio_tokens(made.mel[-1].shape[1])))
            elif item.kind == "image":
                made.images.append(Visual(*vision.prepare(item.source, reader.patches, own)))
                made.runs[config.image_token].append(_size(made.images[-1], config))
            else:
                made.runs[config.video_token].append(_video(item, made, reader, own, progress))
        except ValueError as error:
            raise ValueError(f"{item.where}: {error}") from None
    return made


def _video(item: Media, made: Features, reader: Reader, options: MediaOptions, progress: Progress | None):
    """Adds a video, and its sound if that is wanted; the tokens that stand for both."""
    config, name = reader.thinker, source.describe(item.source, "video")

    def see(pictures: Any) -> Visual:
        seen = video.prepare(pictures, reader.patches, options, context=config.context, name=name, progress=progress)
        made.videos.append(Visual(*seen))
        return made.videos[-1]

    if hasattr(item.source, "__array__") or isinstance(item.source, list | tuple):
        if options.load_audio_from_video:
            raise ValueError(
                f"{name}: frames have no sound; give a video file, or load_audio_from_video=False (in this part alone, if "
                "other videos are to be heard)"
            )
        return _size(see(item.source), config)
    # Both readers take the same open file, so that a URL is fetched once.
    with source.opened(item.source, name, "video", options) as file:
        seen = see(file)
        if not options.load_audio_from_video:
            return _size(seen, config)
        file.seek(0)
        span = MediaOptions(audio_start=options.video_start, audio_end=options.video_end)
        made.mel.append(audio.log_mel(audio.load(file, name=name, options=span), reader.sound))
    heard = int(audio_tokens(made.mel[-1].shape[1]))
    return [config.audio_start, *interleave(seen.grid, seen.seconds, heard, config).tolist(), config.audio_end]


def _size(seen: Visual, config: ThinkerConfig) -> int:
    """Tokens of an image or a silent video."""
    frames, rows, columns = seen.grid
    return frames * rows * columns // config.vision_encoder.merge**2
