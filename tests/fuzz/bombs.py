"""Small files that state a huge size or expand to one."""

import io
import random
import struct
import zlib
from collections.abc import Callable

import av
import numpy as np
import soundfile
from PIL import Image

SIDES = [1, 2, 13, 300, 5000, 13_000, 16_383, 65_500, 178_000_000, 2**31 - 1]


def bomb(draw: random.Random) -> tuple[str, bytes, str]:
    """The kind of a file, its bytes, and its description."""
    maker = draw.choice(_MAKERS)
    kind, content, said = maker(draw)
    return kind, content, f"{maker.__name__.strip('_')} {said}"


def _sides(draw: random.Random, most: int = SIDES[-1]) -> tuple[int, int]:
    """A width and a height, among them long strips, and squares near the bounds of decoding."""
    if draw.random() < 0.5:
        area = draw.choice([1e6, 1.2e7, 3.2e7, 3.4e7, 6e7, 1.7e8, 1.78e8, 1.8e8, 1e9])
        ratio = draw.choice([1, 1, 1.7, 100, 199, 250, 10_000, area])
        sides = [max(1, int((area * ratio) ** 0.5)), max(1, int((area / ratio) ** 0.5))]
        draw.shuffle(sides)
    else:
        sides = [draw.choice(SIDES), draw.choice(SIDES)]
    return min(sides[0], most), min(sides[1], most)


def _png(draw: random.Random) -> tuple[str, bytes, str]:
    """A PNG of any size with few rows, or with all of its rows where these are quickly made."""
    width, height = _sides(draw)
    bits, colour = draw.choice([(1, 0), (8, 0), (8, 2), (8, 6), (16, 0), (16, 6), (8, 3)])
    samples = {0: 1, 2: 3, 3: 1, 6: 4}[colour]
    size = (1 + (width * bits * samples + 7) // 8) * height
    rows = zlib.compress(bytes(min(size, 40_000_000)), 1) if draw.random() < 0.5 else zlib.compress(b"\0\0")
    body = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, draw.choice([0, 0, 1])))
    body += _chunk(b"PLTE", bytes(6)) if colour == 3 else b""
    if draw.random() < 0.1:
        body += _chunk(draw.choice([b"zTXt", b"iCCP", b"iTXt"]), b"x\0\0" + zlib.compress(bytes(100_000_000), 9))
    body += _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
    return (
        draw.choice(["image", "image", "video"]),
        b"\x89PNG\r\n\x1a\n" + body,
        f"{width} x {height}, {bits} bits, {colour}",
    )


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _gif(draw: random.Random) -> tuple[str, bytes, str]:
    """Empty frames as large as 16 bits can state."""
    width, height = _sides(draw, 65_535)
    count = draw.choice([1, 2, 8, 1000])
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"!\xf9\x04\0\x01\0\0\0," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02D\x01\0"
    return draw.choice(["video", "video", "image"]), head + frame * count + b";", f"{width} x {height}, {count} frames"


def _tiff(draw: random.Random) -> tuple[str, bytes, str]:
    """One strip, and tags that state any size, bits and compression."""
    width, height = _sides(draw)
    strip = bytes(200)
    tags = {
        256: width, 257: height, 258: draw.choice([1, 8, 16, 32, 64]), 259: draw.choice([1, 5, 7, 8, 32773, 34712]),
        262: draw.choice([0, 1, 2, 3, 5, 6]), 273: 400, 277: draw.choice([1, 1, 3, 4, 500]),
        278: draw.choice([1, height, 2**32 - 1]), 279: draw.choice([len(strip), 2**31]), 339: draw.choice([1, 2, 3]),
    }  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value % 2**32) for tag, value in tags.items())
    head = (
        b"II*\0"
        + struct.pack("<I", 8)
        + struct.pack("<H", len(tags))
        + entries
        + struct.pack("<I", draw.choice([0, 8]))
    )
    return "image", head.ljust(400, b"\0") + strip, f"{width} x {height}, {tags[258]} bits, compression {tags[259]}"


def _bmp(draw: random.Random) -> tuple[str, bytes, str]:
    width, height = _sides(draw)
    bits, packed = draw.choice([(1, 0), (8, 1), (24, 0), (32, 0), (32, 3), (4, 2)])
    sized = draw.choice([height, -height]) if height < 2**31 else height
    info = struct.pack("<IiiHHIIiiII", 40, width, sized, 1, bits, packed, 0, 0, 0, 0, 0)
    body = b"BM" + struct.pack("<IHHI", 2**31 - 1, 0, 0, 54) + info + b"\0" * 1024 + b"\xff\0" * 500
    return "image", body, f"{width} x {height}, {bits} bits, packed {packed}"


def _ppm(draw: random.Random) -> tuple[str, bytes, str]:
    width, height = _sides(draw)
    head = draw.choice([b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf"]) + f" {width} {height} 255\n".encode()
    return "image", head + bytes(100), f"{width} x {height}"


def _picture(draw: random.Random) -> tuple[str, bytes, str]:
    """A complete picture of one colour, in a format that compresses it well."""
    width, height = _sides(draw, 60_000)
    scale = max(1.0, (width * height / 6e7) ** 0.5)  # more would take too long to make here
    form = draw.choice(["jpeg", "png", "webp", "tiff"])
    most = {"webp": 16_383, "jpeg": 65_500}.get(form, 10**6)
    size = (min(most, max(1, int(width / scale))), min(most, max(1, int(height / scale))))
    size = (min(size[0], 4000), min(size[1], 4000)) if form == "webp" else size
    with io.BytesIO() as file:
        mode = draw.choice(["L", "RGB", "CMYK"] if form == "jpeg" else ["L", "RGB", "RGBA"])
        mode = draw.choice(["F", "I;16", mode]) if form == "tiff" else mode
        packed = {"compression": "tiff_adobe_deflate"} if form == "tiff" else {}
        Image.new(mode, size).save(file, form, **packed)
        content = bytearray(file.getvalue())
    if form == "jpeg" and draw.random() < 0.5:  # its header states more than there is
        at = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2")) + 5
        content[at : at + 4] = struct.pack(
            ">HH", *draw.choice([(65_500, 2700), (13_000, 13_000), (65_500, 65_500), (1, 65_500)])
        )
    return draw.choice(["image", "image", "video"]), bytes(content), f"{form} {mode} {size[0]} x {size[1]}"


def _wave(draw: random.Random) -> tuple[str, bytes, str]:
    """A header with any number of channels, rate, width and length before a few samples."""
    tag = draw.choice([1, 3, 6, 7, 17, 0xFFFE, 0x55])
    channels = draw.choice([0, 1, 2, 255, 1024, 65_535])
    rate = draw.choice([0, 1, 8000, 16_000, 44_100, 655_350, 2**31, 2**32 - 1])
    bits = draw.choice([0, 1, 4, 8, 16, 24, 32, 64, 65_535])
    said = draw.choice([0, 4000, 2**31 - 1, 2**32 - 1])
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * channels % 2**32, channels * bits // 8 % 65_536, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", said) + bytes(4000)
    content = b"RIFF" + struct.pack("<I", draw.choice([len(body), 2**32 - 1])) + body
    return (
        draw.choice(["audio", "audio", "video"]),
        content,
        f"{channels} channels, {rate} Hz, {bits} bits, format {tag}",
    )


def _silence(draw: random.Random) -> tuple[str, bytes, str]:
    """Very long sound that compresses well, at a low or a high rate."""
    rate, count = draw.choice(
        [(1, 5_000_000), (10, 10_000_000), (8000, 30_000_000), (192_000, 30_000_000), (655_350, 10_000_000)]
    )
    channels = draw.choice([1, 2, 8])
    with io.BytesIO() as file:
        with soundfile.SoundFile(file, "w", rate, channels, "PCM_16", format="FLAC") as out:
            piece = np.zeros((1_000_000, channels), np.int16)
            for _ in range(count // channels // len(piece)):
                out.write(piece)
        content = file.getvalue()
    return "audio", content, f"{count} samples, {channels} channels, {rate} Hz"


def _scans(draw: random.Random) -> tuple[str, bytes, str]:
    """A progressive JPEG that repeats its last scan many times, as a picture or as a frame of a video."""
    width, height = (min(side, 5000) for side in _sides(draw))
    count = draw.choice([1, 50, 99, 1000, 100_000])
    with io.BytesIO() as file:
        Image.new("RGB", (width, height), (90, 120, 200)).save(file, "JPEG", progressive=True)
        content = file.getvalue()
    start = content.rfind(b"\xff\xda")
    content = content[:start] + content[start:-2] * count + content[-2:]
    said = f"{width} x {height}, {count} scans"
    if draw.random() < 0.5:
        return "image", content, said
    with io.BytesIO() as file:
        with av.open(file, "w", format="avi") as container:
            stream = container.add_stream("mjpeg", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"  # pyright: ignore
            packet = av.Packet(content)
            packet.pts = packet.dts = 0
            packet.stream, packet.is_keyframe = stream, True  # pyright: ignore
            container.mux(packet)
        return "video", file.getvalue(), said


def _film(draw: random.Random) -> tuple[str, bytes, str]:
    """Few packets with large frames, or with extreme time stamps."""
    side = draw.choice([64, 64, 1000, 4096])
    codec, form = draw.choice([("mpeg4", "mp4"), ("mjpeg", "matroska"), ("ffv1", "matroska"), ("libvpx", "webm")])
    times = draw.choice(
        [[0, 1, 2], [0, 2**31 - 1], [0, 10**6, 10**9], [5 * 10**8, 5 * 10**8 + 1], [0] * 3, list(range(300))]
    )
    times = times[:4] if side > 64 else times
    with io.BytesIO() as file:
        with av.open(file, "w", format=form) as container:
            stream = container.add_stream(codec, rate=draw.choice([1, 30, 1000]))
            stream.width = stream.height = side  # pyright: ignore
            stream.pix_fmt = {"mjpeg": "yuvj420p"}.get(codec, "yuv420p")  # pyright: ignore
            frame = av.VideoFrame.from_ndarray(np.zeros((side, side, 3), np.uint8), format="rgb24")
            try:
                for time in times:
                    frame.pts = time
                    container.mux(stream.encode(frame))  # pyright: ignore
                container.mux(stream.encode(None))  # pyright: ignore
            except av.FFmpegError:
                pass  # some times cannot be written; the file so far is a case too
        return "video", file.getvalue(), f"{codec}, {side} x {side}, at {times[:3]}"


_MAKERS: list[Callable[[random.Random], tuple[str, bytes, str]]] = [
    _png, _png, _gif, _gif, _tiff, _bmp, _ppm, _picture, _wave, _wave, _silence, _film, _scans,
]  # fmt: skip
