"""Damaged, foreign and oversized pictures are refused in one line, before they fill memory."""

import contextlib
import io
import struct
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from omni_jax.errors import UserError
from omni_jax.processing.media import image
from tests.support.pictures import COLOUR, HEIGHT, WIDTH, encode, picture, pixels

BAD_ARRAYS = {
    "none": (np.zeros((0, 5, 3), np.uint8), "0 x 5 pixels .*; expected at least one"),
    "one axis": (np.zeros(5, np.uint8), r"shape \[5\]; expected one picture"),
    "a batch": (np.zeros((1, 5, 5, 3), np.uint8), r"shape \[1, 5, 5, 3\]; expected one picture"),
    "two channels": (np.zeros((5, 6, 2), np.uint8), r"shape \[5, 6, 2\]; expected one picture"),
    "integers": (np.zeros((5, 5, 3), np.int64), "dtype int64; expected uint8, uint16, bool, or floats"),
    "text": (np.full((5, 5), "a"), "dtype <U1; expected"),
    "objects": (np.full((5, 5), None), "dtype object; expected"),
    "0 to 255": (np.full((5, 5, 3), 255.0), "float pixels from 255 to 255; expected 0 to 1"),
    "-1 to 1": (np.linspace(-1, 1, 25).reshape(5, 5), "float pixels from -1 to 1; expected 0 to 1"),
    "NaN": (np.full((5, 5), np.nan), "NaN or infinite"),
    "infinite": (np.full((5, 5), np.inf, np.float32), "NaN or infinite"),
    "wide": (
        Image.fromarray(np.full((5, 5), 70_000, np.int32)),
        "32-bit greys from 70000 to 70000; expected 0 to 65535",
    ),
    "negative": (Image.fromarray(np.full((5, 5), -1, np.int32)), "32-bit greys from -1 to -1"),
    "floats of a PIL image": (Image.fromarray(np.full((5, 5), 9, np.float32)), "float pixels from 9 to 9"),
    "no pixels": (Image.new("RGB", (0, 5)), r"^image \(Image\): 5 x 0 pixels"),
    "None": (None, r"image \(NoneType\): expected a path"),
    "a list": ([[1, 2]], r"image \(list\): expected a path"),
}


def assert_refused(source, pattern, **options):
    with pytest.raises(ValueError, match=pattern) as caught:
        image.load(source, **options)
    assert type(caught.value) in (ValueError, UserError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_bad_arrays_and_images_are_refused(kind):
    assert_refused(*BAD_ARRAYS[kind])
    assert_refused(BAD_ARRAYS[kind][0], "^message 2, image 1: ", name="message 2, image 1")


def png_header(width, height):
    """A grey PNG that states a size and has almost no pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_bad_files_are_named_with_their_fault(tmp_path):
    cut = encode(picture(), "png")
    files = {
        "empty.png": (b"", r"is empty \(0 bytes\)"),
        "text.png": (b"not a picture at all\n" * 100, "not an image, or damaged; expected JPEG, PNG"),
        "page.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image, or damaged"),
        "cut.png": (cut[: len(cut) // 2], r"cannot be decoded \(image file is truncated.*\); expected an undamaged"),
        "cut.jpg": (encode(picture(400, 400), "jpeg")[:2000], r"cannot be decoded \(image file is truncated"),
        "cut.webp": (encode(picture(), "webp")[:100], "cannot be decoded|not an image"),
        "bomb.png": (png_header(20_000, 20_000), "20000 x 20000 pixels|exceeds limit of .*; scale it down first"),
        "large.png": (png_header(10_000, 9_500), "9500 x 10000 pixels .*; expected at most 33177600 in all; scale it"),
        "8k.png": (png_header(7680, 4320), r"cannot be decoded \(image file is truncated"),
        "none.ppm": (b"P6 0 5 255\n", "not an image|cannot be decoded|at least one"),
    }
    for name, (content, pattern) in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        message = assert_refused(path, pattern)
        assert message.startswith(f"{path}: ")
        assert_refused(content, pattern)
    assert_refused(tmp_path, "is a folder; expected an image file")
    assert_refused(tmp_path / "missing.png", "no such file")
    assert_refused("data:image/png;base64,aGVsbG8h", "^image data URL: not an image")


def of_scans(count, behind=b""):
    """A progressive JPEG with a given number of scans, and bytes after its end."""
    content = encode(picture(), "jpeg", progressive=True)
    last, own = content.rfind(b"\xff\xda"), content.count(b"\xff\xda")
    return content[:last] + content[last:-2] * (1 + count - own) + content[-2:] + behind


def test_a_jpeg_of_so_many_scans_that_decoding_takes_hours_is_refused():
    assert image.load(of_scans(100)).size == (WIDTH, HEIGHT)
    assert_refused(of_scans(101), "a JPEG of more than 100 scans; expected at most those; save it anew")
    # Fill bytes before a marker, a comment that contains an end marker, and a camera's data after the end.
    comment = b"\xff\xfe\0\4\xff\xd9"
    assert_refused(of_scans(101).replace(b"\xff\xda", comment + b"\xff\xff\xda"), "more than 100 scans")
    assert image.load(of_scans(10, behind=b"\xff\xda" * 200)).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("format", ["eps", "pdf", "ico", "tga", "pcx", "icns", "jpeg2000"])
def test_formats_other_than_raster_pictures_are_refused(format):
    assert_refused(encode(Image.new("RGB", (32, 32), COLOUR), format), "not an image, or damaged; expected JPEG")


def test_pillows_limits_and_warnings_are_not_changed(monkeypatch):
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    for content in (png_header(20_000, 20_000), png_header(10_000, 9_500)):
        assert_refused(content, "pixels|truncated")
    assert limit == Image.MAX_IMAGE_PIXELS
    assert filters == warnings.filters
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(png_header(10_000, 9_500)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert_refused(png_header(20_000, 20_000), "20000 x 20000 pixels .*; expected at most 33177600 in all")
    with Image.open(io.BytesIO(png_header(20_000, 20_000))) as own:
        assert_refused(own, "20000 x 20000 pixels")


def test_a_closed_image_is_refused():
    own = Image.open(io.BytesIO(encode(picture(), "png")))
    own.close()
    assert_refused(own, "cannot be decoded")


def test_threads_read_one_at_a_time_and_keep_the_warning_filters(monkeypatch):
    """Python's warning filters are global: two threads that silence Pillow at the same time could leave it silenced."""
    filters, content, found, inside, together = list(warnings.filters), encode(picture(), "png"), [], [], []
    open_image = Image.open

    def slowly(*args, **options):
        inside.append(1)
        time.sleep(0.002)
        together.append(len(inside))
        inside.pop()
        return open_image(*args, **options)

    monkeypatch.setattr(Image, "open", slowly)
    threads = [threading.Thread(target=lambda: found.extend(pixels(content) for _ in range(5))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1] * 20
    assert len(found) == 20
    assert all(np.array_equal(one, picture()) for one in found)
    assert filters == warnings.filters


# No TIFF, because libtiff prints lines to the terminal for damaged files.
WHOLE = {format: encode(picture(), format) for format in ("png", "jpeg", "gif", "webp", "bmp", "ppm")}


@settings(max_examples=100, deadline=None)
@given(
    format=st.sampled_from(sorted(WHOLE)),
    length=st.integers(1, 400),
    places=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), max_size=5),
)
def test_damaged_bytes_are_read_or_refused_in_one_line(format, length, places):
    content = bytearray(WHOLE[format][:length] if length < 200 else WHOLE[format])
    for place, value in places:
        content[place % len(content)] = value
    try:
        assert image.load(bytes(content)).mode == "RGB"
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    else:
        return
    assert message.startswith(("ValueError: image (bytes): ", "UserError: image (bytes): "))
    assert "\n" not in message


# --- pictures that would fill memory


def jpeg_of(height, width, **how):
    """A small JPEG whose header states another size."""
    content = bytearray(encode(picture(64, 64), "jpeg", **how))
    at = content.index(b"\xff\xc2" if how.get("progressive") else b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def decoding(monkeypatch):
    """Makes a test fail if pixels of a file are decoded."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decodes"))


def test_a_file_too_large_or_too_narrow_is_refused_before_it_is_decoded(monkeypatch):
    decoding(monkeypatch)
    for content, expected in {
        png_header(1, 178_000_000): "178000000 x 1 pixels",  # 67 bytes; decoded, 3.4 GB
        png_header(
            1, 30_000_000
        ): "30000000 x 1 pixels .*, one side more than 200 times the other; expected at most 200",
        png_header(30_000_000, 1): "1 x 30000000 pixels .*, one side more than 200 times",
        png_header(7681, 4320): "4320 x 7681 pixels .*; expected at most 33177600 in all; scale it down first",
        jpeg_of(5000, 7000, progressive=True): "5000 x 7000 pixels .*; expected at most 33177600 in all",
        jpeg_of(17_000, 16_000): "17000 x 16000 pixels .*; expected at most 268435456 in all",
    }.items():
        assert_refused(content, expected)


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_frames_of_an_animation_are_bounded(monkeypatch, kind):
    frames = [Image.fromarray(picture(48, 64)), Image.fromarray(255 - picture(48, 64))]
    content = io.BytesIO()
    frames[0].save(content, kind, save_all=True, append_images=frames[1:])
    assert image.load(content.getvalue()).size == (64, 48)
    monkeypatch.setattr(image, "MAX_PIXELS", 3071)
    decoding(monkeypatch)
    assert_refused(content.getvalue(), "48 x 64 pixels .*; expected at most 3071 in all")


def test_a_large_photo_is_decoded_at_a_fraction(monkeypatch):
    whole = Image.fromarray(picture()).resize((1600, 960), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[0x0112] = 6
    for exif in (Image.Exif(), turned):
        content = encode(whole, "jpeg", quality=95, exif=exif)
        original = image.load(content)
        for most, share in ((1600 * 960, 1), (1600 * 960 - 1, 2), (400 * 240, 4), (200 * 120, 8)):
            monkeypatch.setattr(image, "MAX_PIXELS", most)
            found = image.load(content)
            assert found.size == (original.width // share, original.height // share)
            expected = np.asarray(original.reduce(share), float)
            assert np.abs(np.asarray(found, float) - expected).mean() < 2
        monkeypatch.undo()


def test_a_jpeg_of_several_scans_is_not_taken_for_one_of_one_scan():
    assert image._is_jpeg_of_one_scan(io.BytesIO(jpeg_of(64, 64)))
    assert not image._is_jpeg_of_one_scan(io.BytesIO(jpeg_of(64, 64, progressive=True)))
    scattered = bytearray(jpeg_of(64, 64))
    scattered[scattered.index(b"\xff\xda") + 4] = 1  # of three components, its first scan has one
    assert not image._is_jpeg_of_one_scan(io.BytesIO(scattered))
    for other in (b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\0\0", b"\xff\xd8\xff\xda\0\0", png_header(1, 1)):
        assert not image._is_jpeg_of_one_scan(io.BytesIO(other))


class Bounded(io.BytesIO):
    """A file that must not be read to its end."""

    def read(self, size=-1, /):
        assert size >= 0
        return super().read(size)


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("marker", [0xE0, 0xC0, 0xDB, 0xDA])
def test_a_jpeg_segment_with_an_impossible_length_is_not_followed(marker, length):
    head = b"\xff\xd8" + bytes([0xFF, marker, 0, length])
    assert not image._is_jpeg_of_one_scan(Bounded(head + jpeg_of(64, 64)[2:]))
    with contextlib.suppress(ValueError):  # Pillow refuses it or shows it
        assert image.load(head + jpeg_of(64, 64)[2:]).size == (64, 64)
    large = head + jpeg_of(8000, 9000)[2:]  # of which a photo may be
    assert_refused(large, "8000 x 9000 pixels .*; expected at most 33177600|not an image|cannot be decoded")


def filled(content, count):
    """A JPEG with a given number of fill bytes before each marker of its header, as the standard allows."""
    at, parts = 2, [content[:2]]
    while content[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        parts.append(b"\xff" * count + content[at:end])
        at = end
    return b"".join([*parts, b"\xff" * count, content[at:]])


@pytest.mark.parametrize("count", [1, 2, 15])
def test_fill_bytes_before_jpeg_markers_are_skipped(monkeypatch, count):
    content = encode(Image.fromarray(picture()).resize((160, 96)), "jpeg")
    assert image._is_jpeg_of_one_scan(Bounded(filled(content, count)))
    np.testing.assert_array_equal(pixels(filled(content, count)), pixels(content))
    assert not image._is_jpeg_of_one_scan(Bounded(filled(jpeg_of(64, 64, progressive=True), count)))
    monkeypatch.setattr(image, "MAX_PIXELS", 160 * 96 - 1)
    assert image.load(filled(content, count)).size == (80, 48)
    assert not image._is_jpeg_of_one_scan(Bounded(b"\xff\xd8" + b"\xff" * count))


@pytest.mark.parametrize("alone", [b"\xff\0", b"\xff\x01", b"\xff\xd0", b"\xff\xd7", b"\xff\xd8"])
def test_markers_without_a_segment_do_not_hide_several_scans(alone):
    """The bytes after such a marker are no length, though they look like one that skips the true header."""
    several, one = jpeg_of(64, 64, progressive=True)[2:], jpeg_of(64, 64)[2:]
    several += bytes(int.from_bytes(several[:2], "big") - len(several))
    assert not image._is_jpeg_of_one_scan(Bounded(b"\xff\xd8" + alone + several + one))
