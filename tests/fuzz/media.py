"""Sound, pictures and videos: damaged files, false headers, files that expand, and arrays of odd shapes."""

import base64
import io
import os
import random
import tempfile
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

from omni_jax.processing.options import MediaOptions

from . import bombs, ground
from .cases import Case
from .mutations import damaged, huge, shown, wild

PICTURES = {"png": {}, "jpeg": {}, "gif": {}, "webp": {}, "tiff": {}, "bmp": {}, "ppm": {}, "avif": {}}
SOUNDS = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III", "w64": "FLOAT", "aiff": "PCM_24"}
FILMS = {
    "mp4": ("mpeg4", "aac"),
    "mkv": ("mpeg4", "flac"),
    "webm": ("libvpx", "libopus"),
    "mov": ("mjpeg", "pcm_s16le"),
}
OF = (
    dict.fromkeys(PICTURES, "image")
    | dict.fromkeys([*SOUNDS, "m4a", "opus"], "audio")
    | dict.fromkeys([*FILMS, "avi", "gif_film", "webp_film"], "video")
)
STATED = {
    "fps": (0.5, 1, 2.0, 1000), "nframes": (2, 5, 100), "min_frames": (1, 4), "max_frames": (1, 2, 768), "min_pixels": (0, 3136),
    "max_pixels": (784, 50_176, 10**9), "resized_height": (28, 500, 10**6), "resized_width": (28, 500, 10**6),
    "total_pixels": (784, 10**8), "video_start": (0, 0.3, 5), "video_end": (0.1, 1, 10**6), "audio_start": (0, 0.1, 9),
    "audio_end": (0.2, 3), "load_audio_from_video": (True, False), "sample_fps": (1, 2.0),
}  # fmt: skip


def prepare(folder: Path) -> Any:
    good()
    writers = [ground.model(folder, family, speech=False) for family in ground.FAMILIES]
    for writer in writers:
        writer.prepare([{"role": "user", "content": "Hello"}])
    return writers


def case(draw: random.Random, writers: Any) -> Case:
    writer = draw.choice(writers)
    kind, content, said = draw.choices([_damaged, bombs.bomb, _array], [10, 2, 1])[0](draw)
    if draw.random() < 0.1:
        kind = draw.choice(["audio", "image", "video"])
    given = content
    if isinstance(content, bytes):
        given, how = draw.choice(
            [
                lambda: (content, "bytes"),
                lambda: (content, "bytes"),
                lambda: (as_file(content), "file object"),
                lambda: (as_path(content, "medium"), "path"),
                lambda: (data_url(content, kind), "data URL"),
            ]
        )()
        said = f"{said} as {how}"
    part = {"type": kind, kind: given}
    if draw.random() < 0.4:
        for name in draw.sample(list(STATED), draw.choice([1, 1, 2, 3])):
            part[name] = draw.choice(STATED[name])
    options = {"use_audio_in_video": True} if kind == "video" and draw.random() < 0.5 else {}
    stated = {name: value for name, value in part.items() if name not in ("type", kind)} | options
    what = f"{kind}: {said} {stated or ''}"

    def run() -> None:
        try:
            writer.prepare([{"role": "user", "content": [part]}], **options)
        finally:
            if how_path := given if isinstance(given, str) and given.startswith(tempfile.gettempdir()) else None:
                os.unlink(how_path)

    return Case(what, run)


def _damaged(draw: random.Random) -> tuple[str, bytes, str]:
    name, other = draw.choice(list(OF)), draw.choice(list(OF))
    content, said = damaged(good()[name], draw, good()[other], draw.choice([64, 256, 2000]))
    return OF[name], content, f"{name}, {said}"


def _array(draw: random.Random) -> tuple[str, Any, str]:
    """Arrays and lists of odd shapes and dtypes, some far larger than memory."""
    kind = draw.choice(["audio", "image", "video"])
    shape = tuple(draw.choice([0, 1, 2, 3, 4, 5, 30, 64, 400]) for _ in range(draw.randrange(5)))
    shape = shape if np.prod(shape, dtype=float) < 2e6 else shape[:2]
    dtype = draw.choice(["u1", "i1", "u2", ">u2", "i4", "f2", "f4", "f8", "?", "c8", "O", "U1", "M8[s]", "i8"])
    with np.errstate(all="ignore"):
        array = (
            np.random.default_rng(draw.getrandbits(32)).standard_normal(shape) * draw.choice([0.2, 1, 300])
        ).astype(dtype)
    array = np.asarray(array)  # without axes it is a scalar
    if draw.random() < 0.2 and array.size and array.dtype.kind == "f":
        array.flat[0] = draw.choice([np.nan, np.inf])
    made = draw.choice(
        [
            lambda: array,
            lambda: huge(draw),
            lambda: (array, draw.choice([8000, 16_000, 0, -1, 1, 2**31, 10**12, 44_100.5, "x", None])),
            lambda: (huge(draw), draw.choice([16_000, 8000])),
            lambda: [array] * draw.choice([0, 1, 3, 2000]),
            lambda: [huge(draw)] * 2,
            lambda: [array, np.atleast_1d(array)[:1], wild(draw)],
            lambda: Image.new(draw.choice(["1", "L", "P", "RGBA", "CMYK", "I", "F", "LA", "I;16", "YCbCr"]), (30, 40)),
            lambda: Image.new("L", draw.choice([(0, 5), (1, 3000), (40_000, 3000)])),
            lambda: wild(draw),
        ]
    )()
    return kind, made, shown(made)


@cache
def good() -> dict[str, bytes]:
    """Valid small files of every format that this machine can write."""
    tone = (np.sin(np.arange(12_000) * 0.1) * 9000).astype(np.int16)
    shades = [
        np.full((48, 64, 3), 12 * number, np.uint8) + np.arange(64, dtype=np.uint8)[:, None] for number in range(8)
    ]
    pictures = [Image.fromarray(shade) for shade in shades]
    found = {}
    for name in PICTURES:
        with io.BytesIO() as file:
            pictures[3].save(file, name)
            found[name] = file.getvalue()
    for name in ("gif", "webp"):
        with io.BytesIO() as file:
            pictures[0].save(file, name, save_all=True, append_images=pictures[1:], duration=120)
            found[f"{name}_film"] = file.getvalue()
    for name, how in SOUNDS.items():
        with io.BytesIO() as file:
            soundfile.write(file, tone, 16_000, how, format=name)
            found[name] = file.getvalue()
    found["m4a"] = _film("mp4", None, "aac", shades, tone)
    found["opus"] = _film("webm", None, "libopus", shades, tone)
    found["avi"] = _film("avi", "mpeg4", "mp3", shades, tone)
    for name, (seen, heard) in FILMS.items():
        found[name] = _film("matroska" if name == "mkv" else name, seen, heard, shades, tone)
    return found


def _film(form: str, seen: str | None, heard: str, shades: list[np.ndarray], tone: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        with av.open(file, "w", format=form) as container:
            rate = 48_000 if heard == "libopus" else 16_000
            sound: Any = container.add_stream(heard, rate=rate, layout="mono")
            if seen is not None:
                film: Any = container.add_stream(seen, rate=8)
                film.width, film.height = 64, 48
                film.pix_fmt = "yuvj420p" if seen == "mjpeg" else "yuv420p"
                for shade in shades:
                    container.mux(film.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
                container.mux(film.encode(None))
            frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
            resampler = av.AudioResampler(sound.format, "mono", rate, frame_size=sound.codec_context.frame_size or None)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(sound.encode(piece))
            container.mux(sound.encode(None))
        return file.getvalue()


def data_url(content: bytes, kind: str) -> str:
    return f"data:{kind}/x;base64,{raw(content)}"


def raw(content: bytes) -> str:
    return base64.b64encode(content).decode()


def as_path(content: bytes, name: str) -> str:
    handle, path = tempfile.mkstemp(suffix=f".{name}", prefix="omni_jax_fuzz_")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    return path


def as_file(content: bytes) -> io.BytesIO:
    return io.BytesIO(content)


assert STATED.keys() <= {*MediaOptions.__dataclass_fields__, "sample_fps"}
