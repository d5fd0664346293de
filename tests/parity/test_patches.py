"""Patches and sizes against Transformers' Qwen2-VL image processor, in its variant for PIL (torchvision resizes otherwise)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as reference

from omni_jax.processing.media.patches import PatchConfig, prepare, resize, smart_resize, to_patches
from omni_jax.processing.media.source import DEFAULTS
from omni_jax.processing.options import MediaOptions

QWEN3 = PatchConfig()
QWEN2_5 = PatchConfig(patch=14, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
TOLERANCE = 2e-6
SIZES = (  # height, width
    (1, 1),
    (7, 5),
    (1, 199),
    (597, 3),
    (63, 65),
    (48, 80),  # halfway between blocks
    (224, 224),
    (333, 517),
    (517, 333),
    (720, 1280),
)


def processor(config):
    return reference.Qwen2VLImageProcessorPil(
        patch_size=config.patch,
        temporal_patch_size=config.temporal_patch,
        merge_size=config.merge,
        image_mean=list(config.mean),
        image_std=list(config.std),
        size={"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
    )


def picture(height, width, mode="RGB"):
    """Gradients and noise, so that bicubic resizing overshoots."""
    row, column = np.mgrid[:height, :width]
    pixels = np.stack([row * 255 // height, column * 255 // width, (row * column) % 256], -1)
    pixels = pixels + np.random.default_rng(height * width).integers(-60, 60, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def assert_equal(pictures, config, options=DEFAULTS, theirs=None):
    batch = (theirs or processor(config))(images=pictures, return_tensors="np")
    found = [prepare(one, config, options) for one in pictures]
    assert [list(grid) for _, grid in found] == batch["image_grid_thw"].tolist()
    patches = np.concatenate([patches for patches, _ in found])
    assert patches.dtype == batch["pixel_values"].dtype
    assert patches.shape == batch["pixel_values"].shape
    np.testing.assert_allclose(patches, batch["pixel_values"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("config", [QWEN3, QWEN2_5], ids=["qwen3", "qwen2.5"])
@pytest.mark.parametrize("size", SIZES)
def test_sizes_equal_the_reference(size, config):
    assert_equal([picture(*size)], config)


@pytest.mark.parametrize("bounds", [(1, 1), (1, 5_000), (50_000, 60_000), (300_000, 10**6), (10**6, 10**6 + 1)])
@pytest.mark.parametrize("size", [(40, 44), (333, 517), (199, 1)])
def test_pixel_bounds_of_a_request_equal_the_reference(size, bounds):
    options = MediaOptions(min_pixels=bounds[0], max_pixels=bounds[1])
    theirs = processor(PatchConfig(min_pixels=bounds[0], max_pixels=bounds[1]))
    assert_equal([picture(*size)], QWEN3, options, theirs)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr"])
def test_patches_of_any_mode_equal_the_reference(mode):
    own = picture(70, 100, mode)
    if mode in ("RGBA", "LA"):
        own.putalpha(picture(70, 100, "L"))
    assert_equal([own], QWEN3)


def test_several_pictures_equal_the_reference():
    assert_equal([picture(*size) for size in SIZES[2:8]], QWEN3)


def test_arrays_and_tensors_equal_the_reference():
    pixels = np.asarray(picture(70, 100))
    assert_equal([pixels], QWEN3)
    assert_equal([torch.from_numpy(pixels.transpose(2, 0, 1).copy())], QWEN3)
    expected, grid = prepare(pixels, QWEN3)
    for dtype in (torch.float32, torch.float64):
        fractions = torch.from_numpy(pixels.transpose(2, 0, 1) / 255).to(dtype).requires_grad_()
        found, found_grid = prepare(fractions, QWEN3)
        assert found_grid == grid
        np.testing.assert_array_equal(found, expected)


def test_all_greys_equal_the_reference_bit_for_bit():
    own = Image.fromarray(np.arange(64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8))
    for config in (QWEN3, QWEN2_5):
        resized = resize(own, (2 * config.factor, 2 * config.factor))
        expected = processor(config)(images=[Image.fromarray(resized)], return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(to_patches(resized[None], config)[0], expected)


def test_a_frame_of_a_video_is_laid_out_as_a_picture_is():
    """The reference repeats a picture in time; the frame's half of each patch is compared."""
    frames = np.stack([np.asarray(picture(96, 64).rotate(angle)) for angle in (0, 90, 180, 270, 45)])
    patches, grid = to_patches(frames, QWEN3)
    batch = processor(QWEN3)(images=list(map(Image.fromarray, frames)), return_tensors="np")
    of_pictures = batch["pixel_values"].reshape(5, 6 * 4, 3, 2, -1)[:, :, :, 0]
    of_video = patches.reshape(3, 6 * 4, 3, 2, -1)
    assert grid == (3, 6, 4)
    for place, frame in enumerate([0, 1, 2, 3, 4, 4]):
        np.testing.assert_array_equal(of_video[place // 2, :, :, place % 2], of_pictures[frame])


@settings(max_examples=300)
@given(
    height=st.integers(1, 6000),
    width=st.integers(1, 6000),
    factor=st.sampled_from([1, 14, 28, 32, 64]),
    bounds=st.tuples(st.integers(1, 1 << 24), st.integers(1, 1 << 24)),
)
def test_smart_resize_equals_the_reference(height, width, factor, bounds):
    call = {"factor": factor, "min_pixels": bounds[0], "max_pixels": bounds[1]}
    try:
        expected = reference.smart_resize(height, width, **call)
    except ValueError:
        with pytest.raises(ValueError, match="more than 200 times"):
            smart_resize(height, width, **call)
    else:
        assert smart_resize(height, width, **call) == expected


@pytest.mark.parametrize("config", [QWEN3, QWEN2_5], ids=["qwen3", "qwen2.5"])
def test_the_processors_own_config_is_read(config):
    assert PatchConfig.from_hf(processor(config).to_dict()) == config
