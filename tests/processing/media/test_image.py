"""Pictures of any format, mode, rotation and type become upright RGB; faults are named in one line."""

import base64
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
from PIL import Image, ImageCms, ImageFile

from omni_jax.processing.media import image

HEIGHT, WIDTH = 24, 40
LOSSLESS = {"png": {}, "bmp": {}, "tiff": {}, "ppm": {}, "webp": {"lossless": True}}
LOSSY = ("jpg", "webp", "avif", "mpo")


def picture(height=HEIGHT, width=WIDTH):
    """Gradients whose rotations and flips all differ: uint8 [height, width, 3]."""
    row, column = np.mgrid[:height, :width]
    return np.stack([5 * row, 4 * column, 2 * row + 2 * column], -1).astype(np.uint8)


def encode(picture, format, **options):
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, format, **options)
    return file.getvalue()


def pixels(source):
    loaded = image.load(source)
    assert loaded.mode == "RGB"
    return np.asarray(loaded)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_files_are_read(tmp_path, suffix):
    path = tmp_path / f"a picture.{suffix}"
    Image.fromarray(picture()).save(path, **LOSSLESS[suffix])
    np.testing.assert_array_equal(pixels(path), picture())


@pytest.mark.parametrize("suffix", LOSSY)
def test_lossy_files_are_read(tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    more = {"save_all": True, "append_images": [Image.fromarray(picture())]} if suffix == "mpo" else {}
    Image.fromarray(picture()).save(path, quality=95, **more)
    assert np.abs(pixels(path).astype(int) - picture()).mean() < 3


def test_a_large_jpeg_is_decoded_in_full(tmp_path):
    path = tmp_path / "large.jpg"
    Image.fromarray(picture(800, 1000)).save(path)
    with Image.open(path) as reference:
        np.testing.assert_array_equal(pixels(path), np.asarray(reference))


def test_every_kind_of_path_gives_equal_pixels(tmp_path):
    path = tmp_path / "a b.png"
    Image.fromarray(picture()).save(path)
    content = path.read_bytes()
    sources = [
        path,
        str(path),
        path.as_uri(),
        content,
        bytearray(content),
        memoryview(content),
        f"data:image/png;base64,{base64.b64encode(content).decode()}",
        Image.open(io.BytesIO(content)),
        Image.fromarray(picture()),
        picture(),
        picture().transpose(2, 0, 1),
        picture()[::-1][::-1],
    ]
    for source in sources:
        np.testing.assert_array_equal(pixels(source), picture())


@pytest.mark.parametrize("format", ["png", "tiff", "gif", "webp", "jpeg"])
def test_a_users_file_stays_open_and_is_read_again(tmp_path, format):
    path = tmp_path / "picture"
    path.write_bytes(encode(picture(), format))
    with open(path, "rb") as file, io.BytesIO(path.read_bytes()) as memory:
        for own in (file, memory):
            first = pixels(own)
            assert not own.closed
            assert own.tell() == 0
            np.testing.assert_array_equal(pixels(own), first)


def test_a_users_image_is_not_changed():
    exif = Image.Exif()
    exif[0x0112] = 6
    own = Image.open(io.BytesIO(encode(Image.fromarray(picture()).convert("P"), "png", exif=exif, transparency=3)))
    own.load()
    before = own.tobytes(), own.mode, own.size, dict(own.info), own.getexif()[0x0112], own.getpalette()
    assert image.load(own).size == own.size[::-1]
    assert (own.tobytes(), own.mode, own.size, dict(own.info), own.getexif()[0x0112], own.getpalette()) == before
    plain = Image.fromarray(picture())
    loaded = image.load(plain)
    loaded.paste((1, 2, 3), (0, 0, WIDTH, HEIGHT))
    np.testing.assert_array_equal(np.asarray(plain), picture())


@pytest.mark.parametrize("format", ["gif", "webp", "png", "tiff"])
def test_the_first_frame_of_an_animation_is_read(format):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "lime", "blue")]
    more = {"lossless": True} if format == "webp" else {}
    content = encode(frames[0], format, save_all=True, append_images=frames[1:], **more)
    assert (pixels(content) == (255, 0, 0)).all()
    with Image.open(io.BytesIO(content)) as own:
        own.seek(1)
        assert (pixels(own) == (0, 255, 0)).all()
        assert own.tell() == 1
        own.seek(2)
        assert own.convert("RGB").getpixel((0, 0)) == (0, 0, 255)


COLOUR, GREY = (200, 30, 60), 90
AS_COLOURED = ("RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB", "P", "PA")
AS_GREY = ("L", "LA", "La", "PA")


def in_mode(mode, value):
    """A picture of one colour or grey in a mode."""
    source = Image.new("L" if isinstance(value, int) else "RGB", (WIDTH, HEIGHT), value)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(source, *profiles, outputMode="LAB")
    if mode in ("P", "PA"):
        return source.quantize(4).convert(mode)
    return source.convert({"RGBa": "RGBA", "La": "LA"}.get(mode, mode)).convert(mode)


@pytest.mark.parametrize(
    ("mode", "value"), [*((mode, COLOUR) for mode in AS_COLOURED), *((mode, GREY) for mode in AS_GREY)]
)
def test_images_of_any_mode_become_rgb(mode, value):
    own = in_mode(mode, value)
    assert own.mode == mode
    found = pixels(own)
    assert found.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(found.astype(int) - value).max() <= 3


def test_one_bit_images_become_rgb():
    lit = picture()[..., 0] > 60
    np.testing.assert_array_equal(pixels(encode(lit, "png")), np.repeat(lit[..., None] * 255, 3, -1))


def test_palette_images_become_rgb(tmp_path):
    own = Image.fromarray(picture()).quantize(64)
    expected = np.asarray(own.convert("RGB"))
    for format in ("png", "gif", "bmp", "tiff"):
        np.testing.assert_array_equal(pixels(encode(own, format)), expected)


def test_a_cmyk_jpeg_becomes_rgb():
    own = Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0))
    assert np.abs(pixels(encode(own, "jpeg")).astype(int) - (255, 0, 0)).max() <= 3


def sixteen():
    """A gradient over all 16 bits, [HEIGHT, WIDTH], and the same in 8 bits, as RGB."""
    wide = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    return wide, np.repeat(np.rint(wide / 257).astype(np.uint8)[..., None], 3, -1)


def test_values_of_32_bits_up_to_255_are_read_as_8_bits(tmp_path):
    """With a largest value up to 255 they are read as 8 bits, otherwise as 16."""
    values = np.arange(0, 250).reshape(10, 25).astype(np.int32)
    np.testing.assert_array_equal(pixels(Image.fromarray(values))[..., 0], values)
    values[0, 0] = 256
    assert pixels(Image.fromarray(values)).max() == 1


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_are_scaled_by_their_range(mode):
    wide, expected = sixteen()
    if mode == "I":
        own = Image.fromarray(wide.astype(np.int32))
    else:
        own = Image.frombytes(mode, (WIDTH, HEIGHT), wide.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    assert own.mode == mode
    np.testing.assert_array_equal(pixels(own), expected)


@pytest.mark.parametrize("format", ["png", "tiff", "ppm"])
def test_sixteen_bit_files_are_scaled_by_their_range(format):
    wide, expected = sixteen()
    np.testing.assert_array_equal(pixels(encode(wide, format)), expected)


def test_a_transparent_value_of_a_16_bit_file_becomes_white():
    wide, expected = sixteen()
    found = pixels(encode(wide, "png", transparency=int(wide[3, 5])))
    expected[wide == wide[3, 5]] = 255
    np.testing.assert_array_equal(found, expected)


def on_white(colours, alpha):
    alpha = np.asarray(alpha)[..., None] / 255
    return np.asarray(colours) * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("format", ["png", "webp", "tiff", None])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La"])
def test_transparency_is_blended_on_white(mode, format):
    if mode in ("RGBa", "La") or (mode, format) == ("LA", "webp"):
        format = None
    row = np.repeat(np.arange(HEIGHT)[:, None], WIDTH, 1)
    alpha = (row * 255 // (HEIGHT - 1)).astype(np.uint8)
    colours = picture() if mode.startswith("RGB") else np.repeat(picture()[..., :1], 3, -1)
    own = Image.fromarray(np.concatenate([colours, alpha[..., None]], -1)).convert(mode.upper()).convert(mode)
    found = pixels(encode(own, format, lossless=True, exact=True) if format else own)
    most = 1 if mode.isupper() else 2  # premultiplied colours are rounded once more
    assert np.abs(found - on_white(colours, alpha)).max() <= most


@pytest.mark.parametrize("format", ["png", "gif"])
def test_a_transparent_palette_entry_becomes_white(format):
    own = Image.fromarray((picture()[..., 0] > 60).astype(np.uint8))
    own = Image.frombytes("P", own.size, own.tobytes())
    own.putpalette([10, 20, 30, 200, 100, 50])
    found = pixels(encode(own, format, transparency=1))
    expected = np.where(picture()[..., :1] > 60, 255, (10, 20, 30))
    np.testing.assert_array_equal(found, expected)


def test_a_palette_with_alpha_is_blended_on_white():
    own = Image.frombytes("P", (4, 1), bytes([0, 1, 2, 3]))
    own.putpalette([0, 0, 0, 100, 0, 0, 0, 100, 0, 0, 0, 100])
    found = pixels(encode(own, "png", transparency=bytes([0, 51, 255, 255])))
    assert found[0].tolist() == [[255, 255, 255], [224, 204, 204], [0, 100, 0], [0, 0, 100]]


@pytest.mark.parametrize(("mode", "key", "drawn"), [("RGB", COLOUR, COLOUR), ("L", 7, (7, 7, 7)), ("1", 0, (0, 0, 0))])
def test_a_transparent_colour_becomes_white(mode, key, drawn):
    own = Image.new(mode, (WIDTH, HEIGHT), key)
    assert (pixels(own) == drawn).all()
    assert (pixels(encode(own, "png", transparency=key)) == 255).all()


TURNS = {  # how a camera's picture is stored, by orientation, for it to be upright when shown
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("format", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", TURNS)
def test_pictures_are_turned_upright_once(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(np.ascontiguousarray(TURNS[orientation](picture())), format, exif=exif, lossless=True)
    loaded = image.load(content)
    np.testing.assert_array_equal(np.asarray(loaded), picture())
    np.testing.assert_array_equal(pixels(loaded), picture())
    with Image.open(io.BytesIO(content)) as own:
        np.testing.assert_array_equal(pixels(own), picture())


def test_a_rotated_jpeg_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    found = pixels(encode(np.ascontiguousarray(np.rot90(picture())), "jpeg", exif=exif, quality=95))
    assert np.abs(found.astype(int) - picture()).mean() < 3


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0II*\0\x08\0\0\0\x09\0"]
)
def test_damaged_exif_is_ignored_without_a_warning(exif):
    np.testing.assert_array_equal(pixels(encode(picture(), "png", exif=exif)), picture())


FRACTIONS = picture() / 255


@pytest.mark.parametrize(
    "array",
    [
        picture(),
        picture().astype(np.uint16) * 257,
        picture().astype(">u2") * 257,
        FRACTIONS,
        FRACTIONS.astype(np.float32),
        FRACTIONS.astype(np.float16),
        FRACTIONS.transpose(2, 0, 1),
        np.asfortranarray(picture()),
        np.concatenate([picture(), np.full((HEIGHT, WIDTH, 1), 255, np.uint8)], -1),
        np.concatenate([FRACTIONS, np.ones((HEIGHT, WIDTH, 1))], -1).transpose(2, 0, 1),
    ],
)
def test_arrays_are_read(array):
    np.testing.assert_array_equal(pixels(array), picture())


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 1), (1, HEIGHT, WIDTH)])
def test_grey_arrays_become_rgb(shape):
    grey = picture()[..., 0]
    np.testing.assert_array_equal(pixels(grey.reshape(shape)), np.repeat(grey[..., None], 3, -1))
    lit = grey > 60
    np.testing.assert_array_equal(pixels(lit.reshape(shape)), np.repeat(lit[..., None] * np.uint8(255), 3, -1))


def test_a_transparent_array_is_blended_on_white():
    assert (pixels(np.zeros((3, 5, 4), np.uint8)) == 255).all()


def test_the_last_axis_is_channels_where_both_could_be():
    narrow = picture()[:3, :5]
    np.testing.assert_array_equal(pixels(narrow), narrow)


def test_floats_just_outside_0_to_1_are_accepted():
    assert pixels(np.full((4, 4), 1 + 1e-6))[0, 0].tolist() == [255] * 3
    assert pixels(np.full((4, 4), -1e-6))[0, 0].tolist() == [0] * 3


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
    assert type(caught.value) is ValueError
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
    assert message.startswith("ValueError: image (bytes): ")
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
