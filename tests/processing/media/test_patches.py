"""Pictures become patches of the right size, order and values; a published config is read or refused completely."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from omni_jax.processing.media.image import MAX_PIXELS
from omni_jax.processing.media.patches import PatchConfig, image_size, prepare, resize, smart_resize, to_patches
from omni_jax.processing.options import MediaOptions

GOLDEN = Path(__file__).parents[2] / "goldens" / "patches.npz"
CONFIG = PatchConfig()
PUBLISHED = {
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "min_pixels": 3136,
    "max_pixels": 12845056,
}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


def noise(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_patches_of_the_golden_picture_are_unchanged():
    golden = np.load(GOLDEN)
    patches, grid = prepare(golden["picture"], CONFIG)
    assert grid == tuple(golden["grid"])
    assert patches.dtype == np.float32
    assert patches.shape == (np.prod(grid), 3 * 2 * 16 * 16)
    np.testing.assert_allclose(patches.ravel()[:: golden["step"]], golden["patches"], rtol=0, atol=2e-6)


def test_the_published_file_gives_the_defaults():
    assert PatchConfig.from_hf(json.loads(json.dumps(PUBLISHED))) == CONFIG
    assert CONFIG.factor == 32
    assert hash(CONFIG) == hash(PatchConfig.from_hf(PUBLISHED))


def test_pixel_bounds_are_read_by_their_newer_names():
    size = {"shortest_edge": 1000, "longest_edge": 2000}
    newer = {**PUBLISHED, "min_pixels": None, "size": size, "do_resize": True, "resample": 3, "rescale_factor": 1 / 255}
    del newer["max_pixels"]
    config = PatchConfig.from_hf(newer)
    assert (config.min_pixels, config.max_pixels) == (1000, 2000)
    both = PatchConfig.from_hf({**PUBLISHED, "size": size})
    assert (both.min_pixels, both.max_pixels) == (3136, 12845056)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("patch_size", 16.0, r"patch_size is 16\.0 \(expected a whole number from 1 to 1024\)"),
        ("patch_size", True, "patch_size is True"),
        ("merge_size", 0, "merge_size is 0"),
        ("temporal_patch_size", None, "temporal_patch_size is None"),
        ("image_mean", [0.5, 0.5], r"image_mean is \[0\.5, 0\.5\] \(expected three numbers from 0 to 1\)"),
        ("image_mean", 0.5, "image_mean is 0.5"),
        ("image_mean", [123.7, 116.3, 103.5], "image_mean is"),
        ("image_mean", [0.5, 0.5, float("nan")], "image_mean is"),
        ("image_mean", [0.5, 0.5, "0.5"], "image_mean is"),
        ("image_std", [0.5, 0, 0.5], r"image_std is \[0\.5, 0, 0\.5\] \(expected three numbers above 0, up to 1\)"),
        ("image_std", [0.5, True, 0.5], "image_std is"),
        ("min_pixels", -1, r"min_pixels is -1 \(expected a whole number up to max_pixels\)"),
        ("min_pixels", 12845057, "min_pixels is 12845057"),
        ("max_pixels", "many", r"max_pixels is 'many' \(expected a whole number above 0\)"),
        ("max_pixels", None, "max_pixels is missing"),
        ("do_normalize", False, r"do_normalize is False \(expected True\)"),
        ("resample", 2, r"resample is 2 \(expected 3\)"),
        ("rescale_factor", 1 / 127.5, "rescale_factor is 0.0078"),
    ],
)
def test_an_impossible_value_is_named(key, value, words):
    with pytest.raises(ValueError, match=rf"^preprocessor_config\.json: {words}"):
        PatchConfig.from_hf({**PUBLISHED, key: value})


def test_all_faults_are_reported_in_one_line():
    with pytest.raises(ValueError, match="missing") as caught:
        PatchConfig.from_hf({"image_std": [0, 0, 0], "do_rescale": False})
    words = str(caught.value)
    assert "\n" not in words
    for key in PUBLISHED:
        assert (f"{key} is missing" in words) == (key != "image_std")
    assert "image_std is [0, 0, 0]" in words
    assert "do_rescale is False" in words
    with pytest.raises(ValueError, match=r"^PatchConfig: patch_size is 0 .*; max_pixels is 0"):
        PatchConfig(patch=0, max_pixels=0, min_pixels=0)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 1), (64, 64)),  # enlarged to the minimum area
        ((720, 1280), (704, 1280)),  # 22.5 blocks: Python rounds to the even number
        ((752, 1280), (768, 1280)),  # 23.5 too
        ((1, 200), (32, 800)),
        ((4000, 6000), (2912, 4384)),  # reduced to the maximum area
        ((64, 64), (64, 64)),
    ],
)
def test_sizes_are_multiples_of_a_block_within_bounds(size, expected):
    assert image_size(*size, CONFIG, MediaOptions()) == expected


@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    factor=st.integers(1, 64),
    bounds=st.tuples(st.integers(0, 1 << 24), st.integers(1, 1 << 24)),
)
def test_smart_resize_gives_whole_blocks_within_bounds(height, width, factor, bounds):
    ratio = max(height, width) / min(height, width)
    least, most = min(bounds), max(bounds)
    call = {"factor": factor, "min_pixels": least, "max_pixels": most}
    if ratio > 200:
        with pytest.raises(ValueError, match=rf"^{height} x {width} pixels \(height x width\), one side more than 200"):
            smart_resize(height, width, **call)
        return
    rows, columns = smart_resize(height, width, **call)
    assert rows % factor == columns % factor == 0
    assert min(rows, columns) >= factor
    nearest = round(height / factor) * factor, round(width / factor) * factor
    if nearest[0] * nearest[1] > most:
        assert rows * columns <= most or min(rows, columns) == factor
    elif nearest[0] * nearest[1] < least:
        assert rows * columns >= least
    elif min(nearest):
        assert (rows, columns) == nearest
    assert smart_resize(width, height, **call) == (columns, rows)


def test_the_smallest_size_is_one_block():
    assert smart_resize(500, 500, factor=32, min_pixels=0, max_pixels=1) == (32, 32)
    assert smart_resize(2, 3, factor=32, min_pixels=0, max_pixels=10**6) == (32, 32)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_pixels": 128 * 128}, (96, 160)),
        ({"max_pixels": 1}, (32, 32)),
        ({"min_pixels": 2_000_000}, (1088, 1888)),
        ({"min_pixels": 0}, (704, 1280)),
        ({"resized_height": 100, "resized_width": 300}, (96, 288)),
        ({"resized_height": 100, "resized_width": 300, "max_pixels": 5000}, (96, 288)),
        ({"resized_height": 5, "resized_width": 5}, (64, 64)),
        ({"resized_height": 100_000, "resized_width": 100_000}, (3584, 3584)),
    ],
)
def test_options_change_the_size(options, expected):
    assert image_size(720, 1280, CONFIG, MediaOptions(**options)) == expected


def test_an_excessive_size_is_refused():
    with pytest.raises(ValueError, match=f"pixels .* expected at most {MAX_PIXELS} in all"):
        image_size(720, 1280, CONFIG, MediaOptions(min_pixels=10**12))


def test_resizing_is_bicubic_and_skipped_where_it_changes_nothing():
    picture = Image.fromarray(noise(40, 56))
    np.testing.assert_array_equal(resize(picture, (40, 56)), np.asarray(picture))
    resized = resize(picture, (64, 32))
    assert resized.shape == (64, 32, 3)
    np.testing.assert_array_equal(resized, np.asarray(picture.resize((32, 64), Image.Resampling.BICUBIC)))


def lay_out(frames, config):
    """Patches built from the description, one at a time."""
    count, height, width, _ = frames.shape
    patch, merge, pair = config.patch, config.merge, config.temporal_patch
    pixels = (frames / 255 - np.array(config.mean)) / np.array(config.std)
    rows = []
    for start in range(0, count, pair):
        for top in range(0, height, config.factor):
            for left in range(0, width, config.factor):
                for row in range(merge):
                    for column in range(merge):
                        y, x = top + row * patch, left + column * patch
                        taken = [pixels[min(start + i, count - 1), y : y + patch, x : x + patch] for i in range(pair)]
                        rows.append(np.stack(taken).transpose(3, 0, 1, 2).ravel())
    return np.stack(rows), (-(-count // pair), height // patch, width // patch)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(
    "config",
    [
        PatchConfig(patch=4),
        PatchConfig(patch=3, **CLIP),
        PatchConfig(patch=2, merge=1, temporal_patch=1),
        PatchConfig(patch=2, merge=3, temporal_patch=3),
    ],
)
def test_patches_are_laid_out_as_described(config, count):
    frames = noise(count, 2 * config.factor, 3 * config.factor)
    patches, grid = to_patches(frames, config)
    expected, expected_grid = lay_out(frames, config)
    assert grid == expected_grid
    assert patches.dtype == np.float32
    assert patches.flags.c_contiguous
    np.testing.assert_allclose(patches, expected, rtol=0, atol=2e-6)


def test_frames_may_have_any_memory_order_and_are_not_changed():
    frames = noise(4, 32, 64)
    expected, grid = to_patches(frames, CONFIG)
    frames.flags.writeable = False
    for other in (np.asfortranarray(frames), frames[:, :, ::-1][:, :, ::-1], frames.repeat(2, 0)[::2]):
        found, found_grid = to_patches(other, CONFIG)
        assert found_grid == grid
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (noise(32, 32), r"expected uint8 frames \[n, h, w, 3\], got uint8 \[32, 32, 3\]"),
        (noise(1, 32, 32).astype(np.float32), r"got float32 \[1, 32, 32, 3\]"),
        (noise(1, 32, 32)[..., :1], r"got uint8 \[1, 32, 32, 1\]"),
        (noise(0, 32, 32), r"got uint8 \[0, 32, 32, 3\]"),
        (noise(1, 32, 40), r"frames of 32 x 40; expected multiples of 32"),
    ],
)
def test_wrong_frames_are_refused(frames, words):
    with pytest.raises(ValueError, match=f"^patches: .*{words}"):
        to_patches(frames, CONFIG)


def test_a_picture_is_read_and_cut_into_patches(tmp_path):
    path = tmp_path / "picture.png"
    own = Image.fromarray(noise(50, 90))
    own.save(path)
    expected, grid = to_patches(resize(own, (64, 96))[None], CONFIG)
    found, found_grid = prepare(path, CONFIG)
    assert found_grid == grid == (1, 4, 6)
    np.testing.assert_array_equal(found, expected)
    _, small = prepare(path, CONFIG, MediaOptions(max_pixels=1024))
    assert small == (1, 2, 2)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (noise(1, 300), r"1 x 300 pixels \(height x width\), one side more than 200 times the other; expected at most"),
        (noise(300, 1), "300 x 1 pixels"),
        (noise(0, 7), "0 x 7 pixels .*; expected at least one"),
    ],
)
def test_an_impossible_picture_size_is_reported_with_its_source(picture, words):
    for name in (None, "message 1, image 2"):
        with pytest.raises(ValueError, match=rf"^{name or r'image .ndarray.'}: {words}") as caught:
            prepare(picture, CONFIG, name=name)
        assert "\n" not in str(caught.value)
