"""A picture whose rotations and flips all differ, encoded and read."""

import io

import numpy as np
from PIL import Image

from omni_jax.processing.media import image

HEIGHT, WIDTH = 24, 40


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


COLOUR, GREY = (200, 30, 60), 90
