"""Pictures: any file, PIL image or array, as an upright RGB image."""

import contextlib
import math
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from omni_jax.errors import about, kind_of
from omni_jax.processing.arrays import to_numpy
from omni_jax.processing.media.source import DEFAULTS, MediaSource, describe, opened, reason
from omni_jax.processing.options import MediaOptions

# Sizes are checked before decoding, which takes up to 16 bytes a pixel. A picture in a file, or a frame, has 8K at
# most; no model sees half of that. A photo (phones take 200 million pixels) is decoded at a half, a quarter or an
# eighth of its size.
MAX_PIXELS = 7680 * 4320
MAX_PHOTO_PIXELS = 1 << 28
MAX_JPEG_SCANS = (
    100  # each passes over the whole picture: 25 ms at 8K, for 50 bytes of file; a progressive JPEG has about 10
)
JPEG_SCAN = b"\xff\xda"  # the marker of a scan
MAX_HELD_PIXELS = 178_956_970  # of a picture that is in memory already; Pillow too refuses larger ones by default
MAX_RATIO = 200  # of the longer side to the shorter
LINE_PIXELS = (
    1 << 20
)  # files from this size on are checked by their sides before decoding: a row of one pixel takes 30 bytes
# Formats of pictures only: Pillow's others are documents, are run by other programs, or have no signature.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

ImageSource = MediaSource | Image.Image | np.ndarray

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of arrays, by their number of channels
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = dict(  # by Exif's orientation; 1 is upright already
    enumerate(
        (
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ),
        start=2,
    )
)
_ALONE = (0x00, 0x01, *range(0xD0, 0xDA))  # markers of a JPEG that have no segment; none of them belongs in its head
# The start of a JPEG segment that has a length, and the end of its picture: inside pixel data, 0xFF is followed by 0 or
# by a restart marker.
_JPEG_SEGMENT = re.compile(rb"\xff+([\xc0-\xcf\xd9-\xfe])")
_PILLOW = threading.Lock()


def load(source: ImageSource, *, name: str | None = None, options: MediaOptions = DEFAULTS) -> Image.Image:
    """Reads a picture from nearly any source, as upright RGB.

    Exif's rotation is applied. Transparency is laid on white. 16 bits become 8 by their range. Of an animation the
    first frame is read, and of a PIL image its current frame.

    Args:
        source: A path, a `file://`, `http(s)://` or base64 `data:` URL, a file's bytes, or a binary file object, of a
            JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF of at most 33,177,600 pixels (8K). A JPEG in one scan, as
            cameras write it, may have 268,435,456: it is decoded at the half, quarter or eighth that has at most 8K. Or
            a PIL image, which is not changed. Or an array [h, w], [h, w, c] or [c, h, w] with 1, 3 or 4 channels:
            uint8, uint16, bool, or floats from 0 to 1.
        name: What messages call the source; by default its path, or its kind.
        options: The bounds of a download, and what may be read.

    Returns:
        A new image in mode RGB.

    Raises:
        ValueError: in one line, when the source cannot be found or fetched, is not a picture or is damaged, has too
            many pixels (checked before decoding) or none, or an array's values or shape are not a picture's.
    """
    name = name or describe(source, "image")
    in_memory = isinstance(source, Image.Image) or hasattr(source, "__array__")
    with contextlib.nullcontext(source) if in_memory else opened(source, name, "image", options) as found, about(name):
        return _read(found)


def require_area(height: int, width: int, most: int = MAX_PIXELS):
    """Raises ValueError for a size without pixels, or with so many that it is a mistake or an attack."""
    if height * width > most:
        raise ValueError(
            f"{height} x {width} pixels (height x width); expected at most {most} in all; scale it down first"
        )
    if not height * width:
        raise ValueError(f"{height} x {width} pixels (height x width); expected at least one")


def require_ratio(height: int, width: int):
    """Raises ValueError where one side is so much longer than the other that a model sees nothing."""
    if max(height, width) > MAX_RATIO * min(height, width):
        raise ValueError(
            f"{height} x {width} pixels (height x width), one side more than {MAX_RATIO} times the other; "
            f"expected at most {MAX_RATIO} times; crop or pad it first"
        )


def _read(source: Any) -> Image.Image:
    """Decodes a PIL image, an array or an open file into a new upright RGB image."""
    if hasattr(source, "__array__"):
        return to_rgb(_from_array(to_numpy(source)))
    if isinstance(source, Image.Image):
        image = source
        require_area(image.height, image.width, MAX_HELD_PIXELS)
    else:
        image = _opened(source)
    with _pillow():
        image.load()
        # After decoding: only then has Pillow read all Exif of a PNG, and turned a TIFF.
        orientation = _orientation(image)
    rgb = to_rgb(image)
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _opened(file: Any) -> Image.Image:
    """A file's picture before decoding, its size checked; a large photo is set to be decoded at a smaller size."""
    photo = _is_jpeg_of_one_scan(file)
    file.seek(0)
    with _pillow():
        # With its own class, because Image.open refuses sizes that phones take.
        image = JpegImageFile(file) if photo else Image.open(file, formats=FORMATS)
    height, width = image.height, image.width
    require_area(height, width, MAX_PHOTO_PIXELS if photo else MAX_PIXELS)
    if image.format in ("JPEG", "MPO") and not photo:
        _require_few_scans(file)
    if height * width > LINE_PIXELS:
        require_ratio(height, width)
    share = next(share for share in (1, 2, 4, 8) if -(-height // share) * -(-width // share) <= MAX_PIXELS)
    if share > 1:
        with _pillow():
            image.draft(None, (width // share, height // share))
    return image


def _is_jpeg_of_one_scan(file: Any) -> bool:
    """Whether a file is a JPEG that is decoded row by row: for others, decoders hold all coefficients, 2 bytes each."""
    components, progressive = 0, True
    if file.read(2) != b"\xff\xd8":
        return False
    while (mark := file.read(2))[:1] == b"\xff":
        while mark == b"\xff\xff":  # any number of 0xFF bytes may stand before a marker
            mark = mark[1:] + file.read(1)
        marker, length = mark[-1], int.from_bytes(file.read(2), "big")
        if marker in _ALONE or length < 2:  # no camera writes that, and decoders differ in where they continue
            return False
        body = file.read(length - 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) > 5:
            components, progressive = body[5], marker % 4 == 2
        if marker == 0xDA:
            return not progressive and body[:1] == bytes([components])
    return False


def _require_few_scans(file: Any):
    """Raises ValueError for a JPEG with so many scans that it is an attack."""
    at = file.tell()  # where Pillow continues to read
    file.seek(0)
    data = file.read()
    file.seek(at)
    scans, position = 0, 2
    while found := _JPEG_SEGMENT.search(data, position):
        marker, position = found[1], found.end()
        if marker == b"\xd9":  # the picture's end: behind it phones append a film
            return
        scans += marker == JPEG_SCAN[1:]
        if scans > MAX_JPEG_SCANS:
            raise ValueError(f"a JPEG of more than {MAX_JPEG_SCANS} scans; expected at most those; save it anew")
        position += max(2, int.from_bytes(data[position : position + 2], "big"))


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # damaged Exif is no reason to fail: the picture is shown as stored, as in every viewer
        return None


@contextlib.contextmanager
def _pillow() -> Iterator[None]:
    """Runs Pillow on bytes that may be anything: without warnings, and with its errors as one-line ValueErrors.

    Pillow's warnings (of size, which is checked here, and of damaged Exif) can only be silenced for the whole process,
    so one thread works at a time.
    """
    try:
        with _PILLOW, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            yield
    except UnidentifiedImageError:
        raise ValueError(f"not an image, or damaged; expected {', '.join(FORMATS)}; convert others first") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{reason(error)}; scale it down first") from None
    except Exception as error:  # a decoder may raise anything on damaged bytes
        words = reason(error) or type(error).__name__
        if isinstance(error, OSError) and error.errno:  # not the decoder's, but the file's
            raise kind_of(error)(f"cannot be read ({words})") from None
        raise ValueError(f"cannot be decoded ({words}); expected an undamaged image") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """A new RGB image, without metadata, from an image in any mode."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = _grey(image)
    if image.mode == "La":  # Pillow converts it only to LA
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        rgb = Image.new("RGB", image.size, "white")
        rgb.paste(image, mask=image.getchannel("A"))
        return rgb
    rgb = image.convert("RGB")  # a copy if it is RGB already
    rgb.info = {}  # otherwise its Exif would turn it again
    return rgb


def _grey(image: Image.Image) -> Image.Image:
    """An 8-bit grey image from wider numbers; values that its file marks as transparent become white."""
    values = np.asarray(image)
    if image.mode == "I":  # 32 bits: Pillow holds 16-bit pictures in them, and other programs 8-bit ones
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ValueError(f"32-bit greys from {low} to {high}; expected 0 to 65535; scale them first")
        values = values.astype(np.uint8 if high <= 255 else np.uint16)
    grey = _to_uint8(values)
    if isinstance(clear := image.info.get("transparency"), int):
        grey[values == clear] = 255
    return Image.fromarray(grey)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Bools, 8 or 16 bits, or floats from 0 to 1, as 8 bits, rounded; uint8 input is returned itself, not copied."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values * np.uint8(255)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # in either byte order
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if values.dtype.kind != "f":
        raise ValueError(f"pixels of dtype {values.dtype}; expected uint8, uint16, bool, or floats from 0 to 1")
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("pixels that are NaN or infinite; expected numbers from 0 to 1")
    if low * 255 < -0.5 or high * 255 > 255.5:  # smaller deviations vanish by rounding
        raise ValueError(
            f"float pixels from {low:g} to {high:g}; expected 0 to 1; scale them, or convert 0 to 255 to uint8"
        )
    return np.rint(values.astype(np.float32) * 255).clip(0, 255).astype(np.uint8)


def _from_array(values: np.ndarray) -> Image.Image:
    """An image from an array of one picture."""
    shape = list(values.shape)
    if values.ndim == 2:
        values = values[..., None]
    elif values.ndim == 3 and shape[0] in _MODES and shape[-1] not in _MODES:
        values = np.moveaxis(values, 0, -1)
    if values.ndim != 3 or values.shape[-1] not in _MODES:
        raise ValueError(
            f"an array of shape {shape}; expected one picture: [h, w], [h, w, c] or [c, h, w] with 1, 3 or 4 channels"
        )
    require_area(*values.shape[:2], most=MAX_HELD_PIXELS)
    pixels = _to_uint8(values)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
