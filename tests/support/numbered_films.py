"""Videos whose pictures state their own number."""

from fractions import Fraction

import av
import numpy as np
import pytest

from omni_jax.processing.media import patches, video
from omni_jax.processing.options import MediaOptions

CONFIG = patches.PatchConfig()
CONTEXT = 65_536
ROWS, COLUMNS = 2, 8  # size of the black and white blocks that encode a picture's number
RATE = 25

H264 = {"codec": "libx264", "options": {"g": "12", "bf": "3"}}
OPEN_GOP = {"codec": "libx264", "options": {"g": "12", "bf": "3", "x264-params": "open-gop=1"}}
REFRESH = {"codec": "libx264", "options": {"g": "25", "bf": "0", "x264-params": "intra-refresh=1"}}
HEVC = {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=12:open-gop=1"}}
MPEG4 = {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}, "bit_rate": 2_000_000}
MPEG2 = {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}, "bit_rate": 2_000_000}
VP9 = {"codec": "libvpx-vp9", "options": {"g": "12", "deadline": "realtime", "cpu-used": "8"}}
LOSSLESS = {"codec": "ffv1", "options": {"g": "12"}}
GIF = {"codec": "gif", "form": "rgb8"}
FILMS = [
    ("mp4", H264), ("mp4", OPEN_GOP), ("mkv", OPEN_GOP), ("ts", OPEN_GOP), ("avi", H264), ("mov", REFRESH), ("ts", REFRESH),
    ("mp4", HEVC), ("mp4", MPEG4), ("avi", MPEG4), ("mpg", MPEG2), ("ts", MPEG2), ("webm", VP9), ("mkv", LOSSLESS),
    ("gif", GIF), ("flv", {"codec": "flv", "options": {"g": "12"}, "bit_rate": 2_000_000}),
    ("avi", {"codec": "mjpeg", "form": "yuvj420p"}),
]  # fmt: skip


def picture(number, size=(64, 128)):
    """A grey picture with its number in blocks, black for 0: the lowest bit at the top left."""
    bits = (number >> np.arange(ROWS * COLUMNS)) & 1
    blocks = (40 + 170 * bits).astype(np.uint8).reshape(ROWS, COLUMNS)
    grey = blocks.repeat(size[0] // ROWS, axis=0).repeat(size[1] // COLUMNS, axis=1)
    return np.stack([grey] * 3, axis=-1)


def numbers(frames):
    """The numbers that the frames of a clip encode."""
    rows = (np.arange(ROWS) * 2 + 1) * frames.shape[1] // (2 * ROWS)
    columns = (np.arange(COLUMNS) * 2 + 1) * frames.shape[2] // (2 * COLUMNS)
    bits = frames[:, rows][:, :, columns].mean(axis=-1).reshape(len(frames), -1) > 127
    return (bits << np.arange(ROWS * COLUMNS)).sum(axis=1).tolist()


def film(
    path, count=100, *, codec="mpeg4", options=None, bit_rate=None, form="yuv420p", rate=RATE, times=None, make=picture
):
    """Writes a video of numbered pictures, at times in milliseconds where given; returns its path."""
    tick = Fraction(1, rate) if times is None else Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = make(0).shape[:2]
        stream.pix_fmt = form
        stream.codec_context.time_base = tick
        if bit_rate:
            stream.bit_rate = bit_rate
        for number in range(count):
            # By one thread: with several threads some formats get a seam.
            frame = av.VideoFrame.from_ndarray(make(number), format="rgb24").reformat(format=form, threads=1)
            frame.pts, frame.time_base = number if times is None else times[number], tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def load(source, *, context=CONTEXT, name=None, progress=None, **options):
    return video.load(source, CONFIG, MediaOptions(**options), context=context, name=name, progress=progress)


def fault(*args, **options):
    with pytest.raises(ValueError, match=r".") as caught:
        load(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def evenly(total, count, first=0):
    """The frames by Qwen's documented rule: linspace over their numbers, rounded, halves to even."""
    return [first + round(Fraction(step * (total - 1), count - 1)) for step in range(count)]
