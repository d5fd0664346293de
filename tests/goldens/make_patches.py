"""Writes patches.npz: a drawn picture and its patches by Transformers' Qwen2-VL image processor for PIL.

Every seventh value is kept, for size. Run: python tests/goldens/make_patches.py
"""

from pathlib import Path

import numpy as np
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

HERE = Path(__file__).resolve().parent
HEIGHT, WIDTH = 75, 110  # neither a multiple of 32: both are resized, one up and one down
STEP = 7


def draw():
    """A slope in each colour and a disc with sharp edges: uint8 [HEIGHT, WIDTH, 3]."""
    row, column = np.mgrid[:HEIGHT, :WIDTH]
    picture = np.stack([2 * row, 2 * column, row + column], -1)
    picture[(row - 40) ** 2 + (column - 60) ** 2 < 500] = 255, 40, 0
    return picture.astype(np.uint8)


def main():
    picture = draw()
    processor = Qwen2VLImageProcessorPil(
        patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3, min_pixels=3136, max_pixels=12_845_056
    )
    batch = processor(images=[Image.fromarray(picture)], return_tensors="np")
    np.savez_compressed(
        HERE / "patches.npz",
        picture=picture,
        patches=batch["pixel_values"].ravel()[::STEP],
        grid=batch["image_grid_thw"][0],
        step=STEP,
    )


if __name__ == "__main__":
    main()
