"""Videos to frames: choose frames by their times, decode as few others as possible, and resize each at once."""

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from omni_jax.errors import about
from omni_jax.processing.arrays import to_numpy
from omni_jax.processing.media import image, patches, video_track
from omni_jax.processing.media.image import ImageSource
from omni_jax.processing.media.patches import PatchConfig
from omni_jax.processing.media.source import DEFAULTS, MediaSource, describe, opened
from omni_jax.processing.media.video_track import Progress
from omni_jax.processing.options import MediaOptions

# The limits that Qwen's own examples and utilities document.
FPS = 2.0  # frames a second to take from a file, and the assumed rate of frames given without one
MIN_FRAMES, MAX_FRAMES = 4, 768
FRAME_TOKENS = (128, 768)  # of one frame, before frames are paired
RESIZED_TOKENS = (4, 16384)  # of one frame where resized_height and resized_width are given
TOTAL_TOKENS = int(0.9 * 128_000)
CONTEXT_SHARE = 0.75  # of the context, for a video by default: the rest is for text, sound and the reply

VideoSource = MediaSource | np.ndarray | Sequence[ImageSource]


@dataclass(frozen=True)
class Clip:
    """Frames of a video, evenly spaced in time.

    Attributes:
        frames: uint8 [n, h, w, 3], n a multiple of `temporal_patch`, h and w of `factor` (`PatchConfig`).
        interval: Seconds from one frame to the next.
        origin: When the file's first frame is shown, in seconds of the clock that its sound has too.
    """

    frames: np.ndarray
    interval: float
    origin: float = 0.0


def load(
    source: VideoSource,
    config: PatchConfig,
    options: MediaOptions = DEFAULTS,
    *,
    context: int,
    videos: int = 1,
    name: str | None = None,
    progress: Progress | None = None,
) -> Clip:
    """Reads frames of a video, evenly spread in time, and resizes them.

    How many are taken from a file, and how large, follows qwen-omni-utils: `fps` (2) a second, from `min_frames` (4) to
    `max_frames` (768), or `nframes`, in even numbers and no more than there are; each with `min_pixels` (128 tokens) to
    `max_pixels` (768), and together about `total_pixels`. The frames taken are those nearest to even steps by their own
    times, so that a variable rate is not warped. Rotation and mirroring that the file states are applied. Pixels are
    taken to be square. Transparency is laid on white.

    By default `total_pixels` is the lesser of 115,200 tokens and three quarters of the video's share of the context,
    and `max_frames` at most the number that fills it at the least size: a video that does not fit is useless.

    Args:
        source: A path, a `file://`, `http(s)://` or base64 `data:` URL, a file's bytes, or a binary file object, in any
            format that PyAV decodes. Or the frames, all of one size, all of which are taken: an array [n, h, w, 3] or
            [n, 3, h, w], or a list of what `image.load` reads; `options.fps` (2) is then their rate.
        config: Sides of patches.
        options: Sampling, sizes, and the part of a file from video_start to video_end, in seconds from its first frame.
        context: Tokens that the model's context holds.
        videos: Number of videos that share it.
        name: What messages call the source; by default its path, or its kind.
        progress: Called now and then with (done, total, name), done in packets of the file or given frames.

    Returns:
        The frames and their distance in time; for a single frame, that of the requested rate.

    Raises:
        ValueError: in one line, when the source cannot be found or fetched, is no video or is cut off before what is
            asked for, has no frame there or fewer than nframes, or its frames are too many, too large or of several
            sizes.
    """
    name = name or describe(source, "video")
    if isinstance(source, (list, tuple)) or hasattr(source, "__array__"):
        return _from_pictures(source, name, config, options, context, videos, progress)
    with opened(source, name, "video", options) as file:
        _refuse_animated_webp(file, name)
        index = video_track.read_index(file, name)
        clip = None
        if index.packets is not None:
            clip = _from_file(file, name, index, config, options, context, videos, progress)
        if clip is None:  # packets without times, or with other times than their frames'
            index = video_track.decode_index(file, name, index, progress)
            clip = _from_file(file, name, index, config, options, context, videos, progress)
    if clip is None:
        raise ValueError(f"{name}: is damaged: it decodes to other frames each time")
    return clip


def frame_count(
    total: int, rate: float, config: PatchConfig, options: MediaOptions, *, context: int, videos: int = 1
) -> int:
    """The number of frames to take of a file's `total`, at `rate` a second: a multiple of `config.temporal_patch`.

    Raises:
        ValueError: in one line, when nframes or max_frames is impossible.
    """
    pair = config.temporal_patch
    if options.nframes is not None:
        count = round(options.nframes / pair) * pair
        if not pair <= count <= total:
            raise ValueError(
                f"nframes is {options.nframes} (rounded to a multiple of {pair}: {count}), of {total} frames there are; "
                f"expected {pair} to {total}; give fewer, or leave it out"
            )
        return count
    least = math.ceil((options.min_frames or MIN_FRAMES) / pair) * pair
    most = options.max_frames or min(MAX_FRAMES, total)
    if most < pair and options.max_frames:
        raise ValueError(f"max_frames is {most}; expected at least {pair}, the frames of a patch")
    if options.max_frames is None and options.total_pixels is None:
        least_area = max(_least_area(config, options), 1)
        most = min(most, int(pair * _total_area(config, options, context / videos) / least_area))
    count = min(max(total / rate * (options.fps or FPS), least), most // pair * pair, total)
    return max(math.floor(count / pair), 1) * pair


def frame_size(
    height: int, width: int, count: int, config: PatchConfig, options: MediaOptions, *, context: int, videos: int = 1
) -> tuple[int, int]:
    """The size (height, width) that each of `count` frames is resized to.

    Raises:
        ValueError: in one line, when a side is more than 200 times the other, or the context cannot hold all frames.
    """
    cell, pair = config.factor**2, config.temporal_patch
    if options.resized_height is not None and options.resized_width is not None:
        height, width = options.resized_height, options.resized_width
        low, high = RESIZED_TOKENS[0] * cell, RESIZED_TOKENS[1] * cell
    else:
        low = _least_area(config, options)
        share = _total_area(config, options, context / videos) / count * pair
        high = max(min(FRAME_TOKENS[1] * cell, share), int(low * 1.05))
        high = high if options.max_pixels is None else min(high, options.max_pixels)
    height, width = patches.smart_resize(height, width, factor=config.factor, min_pixels=low, max_pixels=int(high))
    tokens = count // pair * (height * width // cell)
    if tokens > context:
        raise ValueError(
            f"{count} frames of {height} x {width} pixels make {tokens} tokens, but the context holds {context}; "
            "take fewer frames (fps, max_frames) or smaller ones (max_pixels)"
        )
    return height, width


def _least_area(config: PatchConfig, options: MediaOptions) -> int:
    if options.min_pixels is not None:
        return options.min_pixels
    least = FRAME_TOKENS[0] * config.factor**2
    return least if options.max_pixels is None else min(least, options.max_pixels)


def _total_area(config: PatchConfig, options: MediaOptions, context: float) -> float:
    if options.total_pixels is not None:
        return options.total_pixels
    return min(TOTAL_TOKENS, CONTEXT_SHARE * context) * config.factor**2


def nearest_frames(times: np.ndarray, count: int) -> np.ndarray:
    """Indices of the frames nearest to `count` even steps, of frames shown at `times` (integers, ascending).

    At a constant rate they are `round(linspace(0, len(times) - 1, count))`: of two equally near ones, that of even
    number.
    """
    shown = (times - times[0]) * (count - 1)  # all times are scaled by the steps, to stay in whole numbers
    wanted = np.arange(count) * (times[-1] - times[0])
    after = np.searchsorted(shown, wanted)
    before = np.maximum(after - 1, 0)
    late = (wanted - shown[before]) - (shown[after] - wanted)
    return np.where((late < 0) | ((late == 0) & (before % 2 == 0)), before, after)


def _refuse_animated_webp(file: BinaryIO, name: str):
    head = file.read(21)
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and head[20] & 2:
        raise ValueError(f"{name}: is an animated WebP, which FFmpeg cannot read; convert it to MP4 or GIF")


def _frame(source: Any, name: str, options: MediaOptions) -> Image.Image:
    try:
        return image.load(source, name=name, options=options)
    except ValueError as error:
        if isinstance(source, (str, os.PathLike)) and "not an image" in str(error):
            raise ValueError(f"{error}; of a video file, give the path alone, not in a list") from None
        raise


def _from_pictures(
    source: Any,
    name: str,
    config: PatchConfig,
    options: MediaOptions,
    context: int,
    videos: int,
    progress: Progress | None,
) -> Clip:
    """A clip of frames given one by one: all are taken, because the user has chosen them."""
    pictures = source if isinstance(source, (list, tuple)) else to_numpy(source)
    if isinstance(pictures, np.ndarray) and pictures.ndim != 4:
        raise ValueError(f"{name}: an array of shape {list(pictures.shape)}; expected frames [n, h, w, 3]")
    if not (given := len(pictures)):
        raise ValueError(f"{name}: holds no frames; expected at least one")
    loaded = (_frame(picture, f"{name}, frame {number}", options) for number, picture in enumerate(pictures))
    first = next(loaded)
    count = math.ceil(given / config.temporal_patch) * config.temporal_patch
    frames = _allocate(name, first.height, first.width, count, config, options, context, videos)
    for number, picture in enumerate(itertools.chain([first], loaded)):
        if picture.size != first.size:
            # One camera has one size: mixed sizes are a list of images, and resizing would warp them.
            raise ValueError(
                f"{name}: frame {number} is {picture.height} x {picture.width} pixels, but the first is "
                f"{first.height} x {first.width}; expected one size; crop or resize them, or give them as images"
            )
        frames[number] = patches.resize(picture, frames.shape[1:3])
        if progress:
            progress(number + 1, given, name)
    frames[given:] = frames[given - 1]
    return Clip(frames, 1 / (options.fps or FPS))


def _from_file(
    file: BinaryIO,
    name: str,
    index: video_track.Index,
    config: PatchConfig,
    options: MediaOptions,
    context: int,
    videos: int,
    progress: Progress | None,
) -> Clip | None:
    """A clip of the frames that an index chooses; None where not all of them are decoded."""
    start, stop = _range(index, name, options)
    times = index.times[start:stop]
    seconds = float(times[-1] - times[0]) * index.tick
    steps = len(times) - 1
    # Times in a file may be rounded, and its stated rate may be wrong: it is used if the times agree to half a frame.
    stated = index.rate > 0 and abs(seconds * index.rate - steps) <= 0.5
    rate = index.rate if stated or not steps else steps / seconds
    with about(name):
        count = frame_count(len(times), rate or FPS, config, options, context=context, videos=videos)
    chosen = start + nearest_frames(times, count)
    frames = _allocate(name, index.height, index.width, count, config, options, context, videos)
    found = np.zeros(count, bool)
    for number, pixels in video_track.decode(file, name, index, np.unique(chosen), progress):
        height, width, _ = pixels.shape
        if (height, width) != (index.height, index.width):
            at = float(index.times[number] - index.times[0]) * index.tick
            raise ValueError(
                f"{name}: its frame at {at:.2f} s is {height} x {width} pixels, but the first is {index.height} x "
                f"{index.width}; expected one size; convert it to one, or cut it into files of one size"
            )
        slots = chosen == number
        frames[slots] = patches.resize(Image.fromarray(pixels), frames.shape[1:3])
        found |= slots
        del pixels  # otherwise it would stay in memory while the next is decoded
    if not found.all():
        return None
    return Clip(frames, seconds / max(count - 1, 1) if steps else 1 / (options.fps or FPS), index.origin)


def _range(index: video_track.Index, name: str, options: MediaOptions) -> tuple[int, int]:
    """First frame, and the one after the last, of the part that the options ask for."""
    if not index.times.size:
        raise ValueError(f"{name}: is cut off or damaged in its first frame; give the whole file")
    seconds = (index.times - index.times[0]) * index.tick
    start = options.video_start or 0.0
    stop = math.inf if options.video_end is None else options.video_end
    slack = min(index.tick / 2, 0.0005)  # many files round their times, by up to a millisecond's half
    last = seconds[-1] + slack
    if index.cut and stop > last:
        whole = math.floor(seconds[-1] * 100) / 100
        raise ValueError(
            f"{name}: is cut off or damaged after {seconds[-1]:.2f} s; give the whole file, or video_end={whole:g} for "
            "what there is"
        )
    first, after = np.searchsorted(seconds, start - slack), np.searchsorted(seconds, stop + slack, side="right")
    if first >= after:
        raise ValueError(
            f"{name}: no frame from {start:g} to {stop:g} s; its frames are shown from 0 to {seconds[-1]:.6g} s; check "
            "video_start and video_end, which are in seconds"
        )
    return int(first), int(after)


def _allocate(
    name: str,
    height: int,
    width: int,
    count: int,
    config: PatchConfig,
    options: MediaOptions,
    context: int,
    videos: int,
) -> np.ndarray:
    """An empty array for frames at their resized size: uint8 [count, h, w, 3]."""
    with about(name):
        size = frame_size(height, width, count, config, options, context=context, videos=videos)
    return np.empty((count, *size, 3), np.uint8)
