"""The vision encoder's laws: windows and frames are independent, and padding is not attended to."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.config import Qwen25VisionEncoderConfig
from omni_jax.models import vision
from omni_jax.models.qwen2_5_omni.vision_encoder import VisionEncoder, windows
from omni_jax.nn.layers import Init
from omni_jax.processing import vision_packing

SMALL = Qwen25VisionEncoderConfig(
    layers=2, width=16, heads=2, ffn_width=20, channels=1, patch=2, temporal_patch=1, merge=2, out_width=12, window=4,
    whole=(1,),
)  # fmt: skip
PUBLISHED = Qwen25VisionEncoderConfig(
    layers=32, width=1280, heads=16, ffn_width=3420, channels=3, patch=14, temporal_patch=2, merge=2, out_width=3584,
    window=8, whole=(7, 15, 23, 31),
)  # fmt: skip
GRIDS = [(3, 4, 6), (1, 2, 8), (1, 12, 10)]


def abstract(config, dtype=jnp.float32):
    return jax.eval_shape(lambda: VisionEncoder(Init(jax.random.key(0), dtype), config))


def filled(config, dtype=jnp.float32):
    """All parameters are random: a zero bias would hide a fault where it is added."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * random.normal(size=leaf.shape), dtype), abstract(config))


@pytest.fixture(scope="module")
def encoder():
    return filled(SMALL)


def pixels(grids):
    count = sum(t * h * w for t, h, w in grids)
    return np.random.default_rng(count).standard_normal((count, SMALL.patch_width), np.float32)


def packed(patches, grids):
    (call,) = vision_packing.pack(*vision_packing.split_patches(patches, grids), SMALL.merge)
    return call.patches, call.place, call.size, call.first


run = jax.jit(lambda encoder, *call: encoder.encode(*call)[0])


def encode(encoder, patches, grids):
    return np.asarray(run(encoder, *packed(patches, grids)))[: len(patches) // SMALL.merge**2]


def close(ours, expected):
    np.testing.assert_allclose(ours, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("grid", "ends"),
    [((1, 20, 12), [0, 64, 96, 160, 192, 224, 240]), ((2, 8, 12), [0, 64, 96, 160, 192]), ((1, 8, 8), [0, 64])],
)
def test_windows_begin_at_the_expected_patches(grid, ends):
    patches = np.zeros((np.prod(grid), SMALL.patch_width), np.float32)
    _, place, size, first = packed(patches, [grid])
    start, area = (np.asarray(each) for each in windows(jnp.asarray(place), jnp.asarray(size), jnp.asarray(first), 8))
    real = slice(0, len(patches))
    spans, counts = np.unique(np.stack([start, start + area], axis=1)[real], axis=0, return_counts=True)
    np.testing.assert_array_equal(spans, np.stack([ends[:-1], ends[1:]], axis=1))
    np.testing.assert_array_equal(counts, np.diff(ends))
    assert not area[len(patches) :].any()


def test_a_window_attends_only_to_itself():
    """Without full-attention blocks, a change in one window changes all features of this window, and no others."""
    encoder, grid, group = filled(replace(SMALL, whole=())), (1, 10, 12), SMALL.merge**2
    patches = pixels([grid])
    place = vision_packing.places(*grid[1:], SMALL.merge)
    inside = (place // SMALL.window == (1, 2)).all(axis=1)
    changed = patches.copy()
    changed[np.flatnonzero(inside)[-1]] += 3
    moved = np.abs(encode(encoder, changed, [grid]) - encode(encoder, patches, [grid])).max(axis=1)
    assert (moved[inside[::group]] > 1e-5).all()
    assert not moved[~inside[::group]].any()


def test_a_full_attention_block_attends_only_to_its_frame(encoder):
    patches = pixels(GRIDS)
    whole = encode(encoder, patches, GRIDS)
    close(whole[6:12], encode(encoder, patches[24:48], [(1, 4, 6)]))
    changed = patches.copy()
    changed[0] += 3
    again = encode(encoder, changed, GRIDS)
    assert (np.abs(again[:6] - whole[:6]).max(axis=1) > 1e-5).all()
    np.testing.assert_array_equal(again[6:], whole[6:])


def test_padding_is_not_attended_to(encoder):
    """The content of padding changes nothing, wherever the padding is."""
    grid = (1, 6, 10)
    patches, place, size, first = packed(pixels([grid]), [grid])
    plain = run(encoder, patches, place, size, first)
    noisy = patches.copy()
    noisy[60:] = 9
    np.testing.assert_array_equal(run(encoder, noisy, place, size, first)[:15], plain[:15])
    assert np.isfinite(plain).all()
    moved = [np.roll(each, 20, axis=0) for each in (noisy, place, size, np.where(size[:, 0] > 0, first + 20, 0))]
    close(run(encoder, *moved)[5:20], plain[:15])


def test_rows_in_blocks_equal_the_whole(encoder, monkeypatch):
    """Wide intermediates are computed for some patches at a time, in blocks that divide the call."""
    call = packed(pixels(GRIDS), GRIDS)
    whole = encoder.encode(*call)[0]
    monkeypatch.setattr(vision, "ROWS", 100)
    close(encoder.encode(*call)[0], whole)


def test_bfloat16_stays_bfloat16():
    encoder = filled(SMALL, jnp.bfloat16)
    features, deep = encoder.encode(*packed(pixels(GRIDS), GRIDS))
    assert features.dtype == deep.dtype == encoder.dtype == jnp.bfloat16
    assert deep.shape == (0, *features.shape)
    assert np.isfinite(np.asarray(features, np.float32)).all()


def test_the_parameter_count_is_the_published_one():
    """676,550,144 parameters in Qwen2.5-Omni-7B."""
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract(PUBLISHED))) == 676_550_144
