"""Pictures of any mode, depth, transparency and rotation become upright RGB on white."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from omni_jax.processing.media import image
from tests.support.pictures import COLOUR, GREY, HEIGHT, WIDTH, encode, picture, pixels

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
