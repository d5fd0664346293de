"""The media of a conversation as features: sound as log-mel clips, pictures and videos as patches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float

from omni_jax.config import ThinkerConfig
from omni_jax.errors import about
from omni_jax.processing.conversation import Media
from omni_jax.processing.media import audio, image, source, video
from omni_jax.processing.media.patches import PatchConfig, image_size, resize, to_patches
from omni_jax.processing.media.video_track import Progress
from omni_jax.processing.options import MediaOptions
from omni_jax.processing.positions import interleave
from omni_jax.processing.processor_files import Numbers, read_processor


@dataclass(frozen=True)
class Visual:
    """An image or a video as input of the vision encoder.

    Attributes:
        patches: frame after frame, as ``patches.to_patches`` makes them.
        grid: frames (pairs of pictures), rows and columns, in patches.
        seconds: time from one frame of the grid to the next; 0 for an image.
    """

    patches: Float[np.ndarray, "P C"]
    grid: tuple[int, int, int]
    seconds: float = 0.0


@dataclass(frozen=True)
class Reader:
    """How media become features: the parameters of a checkpoint's processor and of its thinker.

    Attributes:
        sound: parameters of log-mel frames.
        patches: parameters of images' patches.
        thinker: the thinker's configuration.
        frames: parameters of videos' patches; None if they are those of images.
    """

    sound: audio.FeatureConfig
    patches: PatchConfig
    thinker: ThinkerConfig
    frames: PatchConfig | None = None

    @classmethod
    def from_hf(cls, preprocessor_config: Mapping[str, Any], thinker: ThinkerConfig) -> Self:
        """Reads a published, parsed preprocessor_config.json.

        Raises:
            ValueError: with every missing or impossible value of the audio part, or of the image part, in one line.
        """
        numbers = Numbers("preprocessor_config.json", preprocessor_config)
        return cls(_sound_of(numbers, thinker), _pictures_of(numbers), thinker)


class FolderReader:
    """A ``Reader`` of a checkpoint's folder. Each part is read on first use, so that unused media need no file."""

    def __init__(self, folder: str | Path, thinker: ThinkerConfig):
        self.folder, self.thinker = Path(folder), thinker

    @cached_property
    def sound(self) -> audio.FeatureConfig:
        return _sound_of(read_processor(self.folder, "sound"), self.thinker)

    @cached_property
    def patches(self) -> PatchConfig:
        return _pictures_of(read_processor(self.folder, "image"))

    @cached_property
    def frames(self) -> PatchConfig:
        return _pictures_of(read_processor(self.folder, "video"))


AnyReader = Reader | FolderReader


def _sound_of(numbers: Numbers, thinker: ThinkerConfig) -> audio.FeatureConfig:
    # As in the encoder's training: Qwen2.5-Omni's processor pads all clips, Qwen3-Omni's pads to the longest of a call.
    padded = thinker.audio_encoder.pads_clips
    return audio.FeatureConfig.from_hf(numbers.values, padded=padded, file=numbers.file)


def _pictures_of(numbers: Numbers) -> PatchConfig:
    return PatchConfig.from_hf(numbers.values, file=numbers.file)


@dataclass
class Features:
    """The features of one conversation's media, each kind in the order of its placeholders.

    Attributes:
        mel: clips of sound; a video's sound stands at the place of its video.
        images: the images.
        videos: the videos.
        runs: for each placeholder, what replaces it for each of its media (see ``prompt.expand``).
    """

    mel: list[np.ndarray] = field(default_factory=list)
    images: list[Visual] = field(default_factory=list)
    videos: list[Visual] = field(default_factory=list)
    runs: dict[int, list[int | Sequence[int]]] = field(default_factory=dict)


def read(
    media: Sequence[Media], reader: AnyReader, options: MediaOptions, progress: Progress | None = None
) -> Features:
    """Reads each medium; options in its part of the message take precedence over ``options``.

    Raises:
        ValueError: one line that names the medium and what is wrong with it.
        RetryableError: likewise, where it cannot be fetched or read now.
    """
    config = reader.thinker
    made = Features(runs={config.audio_token: [], config.image_token: [], config.video_token: []})
    room, videos = config.context, sum(item.kind == "video" for item in media)
    for item in media:
        with about(item.where):
            own = options.override(item.options)
            if item.kind == "audio":
                name, limit = source.describe(item.source, "audio"), _seconds(room, config)
                made.mel.append(_sound(audio.load(item.source, name=name, options=own, limit=limit), name, reader))
                token, run = config.audio_token, config.audio_encoder.tokens(made.mel[-1].shape[1])
            elif item.kind == "image":
                made.images.append(_image(item.source, reader, own, room))
                token, run = config.image_token, _size(made.images[-1], config)
            else:
                token, run = config.video_token, _video(item, made, reader, own, room, videos, progress)
            made.runs[token].append(run)
            room -= run if isinstance(run, int) else len(run)
            if room < 0:
                raise ValueError(
                    f"with the media before it, it makes {config.context - room} tokens, but the context holds "
                    f"{config.context}; shorten the media, or bound them by max_pixels, fps, max_frames or video_end"
                )
    return made


def _seconds(room: int, config: ThinkerConfig) -> float:
    """Seconds of sound for which a context has room."""
    return room / config.audio_encoder.tokens(100)


def _sound(samples: Float[np.ndarray, "W"], name: str, reader: AnyReader) -> Float[np.ndarray, "Z A"]:
    """Log-mel features of a clip; raises ValueError if they are too few for a token."""
    mel, tokens = audio.log_mel_of_finite(samples, reader.sound), reader.thinker.audio_encoder.tokens
    if not tokens(mel.shape[1]):
        least = next(frames for frames in count(1) if tokens(frames))
        ms = 1000 * reader.sound.hop // reader.sound.sample_rate
        raise ValueError(
            f"{name}: {samples.size} samples at {reader.sound.sample_rate} Hz make {mel.shape[1]} frames of {ms} ms, too few "
            f"for a token; expected at least {least} frames"
        )
    return mel


def _image(given: Any, reader: AnyReader, options: MediaOptions, room: int) -> Visual:
    """As ``patches.prepare``, but a picture too large for the context is refused before it is resized."""
    name = source.describe(given, "image")
    picture = image.load(given, name=name, options=options)
    with about(name):
        height, width = image_size(picture.height, picture.width, reader.patches, options)
    if (tokens := height * width // reader.patches.factor**2) > room:
        raise ValueError(
            f"{name}: {height} x {width} pixels make {tokens} tokens, but the context has room for {room}; lower max_pixels"
        )
    return Visual(*to_patches(resize(picture, (height, width))[None], reader.patches))


def _video(
    item: Media,
    made: Features,
    reader: AnyReader,
    options: MediaOptions,
    room: int,
    videos: int,
    progress: Progress | None,
) -> int | list[int]:
    """Adds a video, one of several, and its sound if wanted; returns the tokens, or their number, in its place."""
    patches = reader.frames or reader.patches
    config, name = reader.thinker, source.describe(item.source, "video")

    def see(given: Any) -> tuple[Visual, float]:
        clip = video.load(given, patches, options, context=config.context, videos=videos, name=name, progress=progress)
        made.videos.append(Visual(*to_patches(clip.frames, patches), patches.temporal_patch * clip.interval))
        return made.videos[-1], clip.origin

    if hasattr(item.source, "__array__") or isinstance(item.source, list | tuple):
        if options.load_audio_from_video:
            raise ValueError(
                f"{name}: frames have no sound; give a video file, or load_audio_from_video=False (in this part alone, if "
                "other videos are to be heard)"
            )
        return _size(see(item.source)[0], config)
    # Pictures and sound are read from the same open file, so that a URL is fetched once.
    with source.opened(item.source, name, "video", options) as file:
        seen, origin = see(file)
        if not options.load_audio_from_video:
            return _size(seen, config)
        limit = _seconds(max(room - _size(seen, config), 0), config)
        made.mel.append(_sound(audio.load_track(file, name, options, origin=origin, limit=limit), name, reader))
    heard = config.audio_encoder.tokens(made.mel[-1].shape[1])
    return [config.audio_start, *interleave(seen.grid, seen.seconds, heard, config).tolist(), config.audio_end]


def _size(seen: Visual, config: ThinkerConfig) -> int:
    """Number of tokens of an image or a silent video."""
    frames, rows, columns = seen.grid
    return frames * rows * columns // config.vision_encoder.merge**2
