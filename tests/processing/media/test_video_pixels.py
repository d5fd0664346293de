"""Rotation, colour space, transparency and pixel formats of a video become upright RGB."""

import struct

import av
import numpy as np
import pytest

from tests.support.numbered_films import MPEG2, RATE, evenly, fault, film, load, numbers, picture

# Pixels


def corners(number):
    """A picture with corners in red, green, blue and white, so that all rotations and mirrorings differ."""
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:32, :64], pixels[:32, 64:], pixels[32:, :64], pixels[32:, 64:] = [*np.diag([255] * 3).tolist(), [255] * 3]
    return pixels


def colours_of_corners(frame):
    height, width = frame.shape[:2]
    quarters = frame[height // 4 :: height // 2, width // 4 :: width // 2].reshape(4, 3) > 127
    names = {(True, False, False): "r", (False, True, False): "g", (False, False, True): "b", (True,) * 3: "w"}
    return "".join(names[tuple(quarter)] for quarter in quarters.tolist())


ONE = 1 << 16
ORIENTATIONS = {
    "upright": ((ONE, 0, 0, ONE), "rgbw"),
    "clockwise": ((0, ONE, -ONE, 0), "brwg"),  # as a phone held upright writes
    "around": ((-ONE, 0, 0, -ONE), "wbgr"),
    "anticlockwise": ((0, -ONE, ONE, 0), "gwrb"),
    "mirrored": ((-ONE, 0, 0, ONE), "grwb"),
    "flipped": ((ONE, 0, 0, -ONE), "bwrg"),
    "transposed": ((0, ONE, ONE, 0), "rbgw"),
    "transversed": ((0, -ONE, -ONE, 0), "wgbr"),
    "tilted a little": ((round(ONE * 0.98), round(ONE * 0.17), -round(ONE * 0.17), round(ONE * 0.98)), "rgbw"),
}


@pytest.mark.parametrize(("matrix", "expected"), ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_rotation_and_mirroring_are_applied(tmp_path, matrix, expected):
    content = bytearray(film(tmp_path / "a.mp4", 4, make=corners, bit_rate=2_000_000).read_bytes())
    at = content.index(b"tkhd") + 44  # version, flags, times and the rest come first
    assert struct.unpack_from(">9i", content, at) == (ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)
    a, b, c, d = matrix
    struct.pack_into(">9i", content, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    frames = load(bytes(content)).frames
    height, width = frames.shape[1:3]
    assert (height > width) == (abs(b) > abs(a))
    assert colours_of_corners(frames[0]) == expected


@pytest.mark.parametrize("form", ["bgra", "bgr24"])
@pytest.mark.parametrize(("height", "expected"), [(-64, "rgbw"), (64, "bwrg")], ids=["top down", "bottom up"])
def test_uncompressed_pictures_are_read_top_down_and_bottom_up(tmp_path, form, height, expected):
    content = bytearray(film(tmp_path / "a.avi", 4, codec="rawvideo", form=form, make=corners).read_bytes())
    at = (
        content.index(b"strf") + 8
    )  # of the stream's BITMAPINFOHEADER; its height is negative where the top row comes first
    assert struct.unpack_from("<Iii", content, at) == (40, 128, -64)
    struct.pack_into("<i", content, at + 8, height)
    frames = load(bytes(content)).frames
    assert [colours_of_corners(frame) for frame in frames] == [expected] * len(frames)


def crimson(number):
    return np.full((36, 66, 3), (200, 20, 60), np.uint8)


@pytest.mark.parametrize(
    ("suffix", "codec", "form"),
    [
        ("mkv", "ffv1", "yuv420p"), ("mkv", "ffv1", "yuv420p10le"), ("mkv", "ffv1", "yuv444p"), ("mkv", "ffv1", "bgra"),
        ("mkv", "ffv1", "yuva420p"), ("mkv", "ffv1", "gbrp10le"), ("avi", "mjpeg", "yuvj420p"), ("mov", "qtrle", "argb"),
        ("mov", "png", "rgb48be"), ("avi", "rawvideo", "bgr24"), ("mkv", "ffv1", "yuv410p"),
    ],
)  # fmt: skip
def test_pixel_formats_are_converted_to_rgb(tmp_path, suffix, codec, form):
    frames = load(film(tmp_path / f"a.{suffix}", 4, codec=codec, form=form, make=crimson)).frames
    np.testing.assert_allclose(
        frames.reshape(-1, 3), np.broadcast_to([[200, 20, 60]], (frames[..., 0].size, 3)), atol=5
    )


def test_grey_pictures_of_odd_size_are_read(tmp_path):
    path = film(
        tmp_path / "a.mkv", 4, codec="ffv1", form="gray", make=lambda number: np.full((17, 33, 3), 99, np.uint8)
    )
    assert set(np.unique(load(path).frames)) == {99}


@pytest.mark.parametrize("space", [1, 6])  # BT.709, BT.601
def test_the_colour_space_of_a_file_is_used(tmp_path, space):
    path = tmp_path / "a.mkv"
    luma = {1: (0.2126, 0.7152, 0.0722), 6: (0.299, 0.587, 0.114)}[space]
    red, green, blue = 0.8, 0.1, 0.25
    bright = np.dot(luma, (red, green, blue))
    planes = (
        16 + 219 * bright,
        128 + 112 * (blue - bright) / (1 - luma[2]),
        128 + 112 * (red - bright) / (1 - luma[0]),
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = space, 1
        values = np.broadcast_to(np.rint(planes).astype(np.uint8)[:, None, None], (3, 64, 64))
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format="yuv444p")
        frame.colorspace, frame.color_range = space, 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    np.testing.assert_allclose(load(path).frames[0, 5, 5] / 255, (red, green, blue), atol=0.012)


def test_pictures_that_change_their_size_are_refused(tmp_path):
    first = film(tmp_path / "a.ts", 30, **MPEG2)
    second = film(tmp_path / "b.ts", 30, make=lambda number: picture(number + 30, (96, 160)), **MPEG2)
    with av.open(str(second)) as source, av.open(str(tmp_path / "c.ts"), "w") as target:
        track = source.streams.video[0]
        copy = target.add_stream_from_template(track)
        for packet in source.demux(track):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts + 108_000, packet.dts + 108_000
                packet.stream = copy
                target.mux(packet)
    content = first.read_bytes() + (tmp_path / "c.ts").read_bytes()
    assert fault(content, nframes=4, name="x") == (
        "x: its frame at 1.56 s is 96 x 160 pixels, but the first is 64 x 128; expected one size; convert it to one, or "
        "cut it into files of one size"
    )
    assert numbers(load(content, nframes=4, video_end=1.1).frames) == evenly(28, 4)


def clear_film(path, codec, form, **options):
    """Four transparent pictures with a red block on the left."""
    pixels = np.zeros((36, 66, 4), np.uint8)
    pixels[:, :32] = 220, 10, 30, 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = 36, 66, form
        stream.metadata["alpha_mode"] = "1"
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format="gbrap", threads=1)
            container.mux(stream.encode(frame.reformat(format=form, threads=1)))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("suffix", "codec", "form"),
    [("mov", "qtrle", "argb"), ("mov", "png", "rgba"), ("mkv", "ffv1", "yuva420p"), ("webm", "libvpx-vp9", "yuva420p")],
)
def test_transparent_pixels_become_white(tmp_path, suffix, codec, form):
    frames = load(clear_film(tmp_path / f"a.{suffix}", codec, form)).frames
    width = frames.shape[2]
    np.testing.assert_allclose(frames[:, :, width // 2 + 20 :], 255, atol=3)
    red = frames[:, :, 20 : width // 2 - 60]
    np.testing.assert_allclose(red, np.broadcast_to([220, 10, 30], red.shape), atol=8)
