"""Pictures of any format, source and array type become upright RGB."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from omni_jax.processing.media import image
from tests.support.pictures import HEIGHT, WIDTH, encode, picture, pixels

LOSSLESS = {"png": {}, "bmp": {}, "tiff": {}, "ppm": {}, "webp": {"lossless": True}}
LOSSY = ("jpg", "webp", "avif", "mpo")


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
