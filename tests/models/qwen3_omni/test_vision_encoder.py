"""The vision encoder's laws: a frame does not depend on other frames, on padding or on its call."""

import numpy as np
import pytest

from omni_jax.processing import vision_packing

GRIDS = [(3, 4, 6), (1, 2, 8), (1, 12, 10)]


def pixels(grids):
    count = sum(t * h * w for t, h, w in grids)
    return np.random.default_rng(count).normal(size=(count, 1536)).astype(np.float32)


def close(ours, expected):
    np.testing.assert_allclose(ours, expected, atol=1e-6 * np.abs(expected).max())


def test_a_frame_attends_only_to_itself(omni):
    """A medium among others, and a video's frame among its neighbours, equal themselves alone."""
    patches = pixels(GRIDS)
    whole, deep = omni.encode_vision(patches, GRIDS)
    frame, frame_deep = omni.encode_vision(patches[24:48], [(1, 4, 6)])
    close(whole[6:12], frame)
    close(deep[:, 6:12], frame_deep)
    changed = patches.copy()
    changed[:24] += 1
    again, deep_again = omni.encode_vision(changed, GRIDS)
    np.testing.assert_array_equal(again[6:], whole[6:])
    np.testing.assert_array_equal(deep_again[:, 6:], deep[:, 6:])
    assert (np.abs(again[:6] - whole[:6]).max(axis=1) > 1e-3).all()


@pytest.mark.parametrize("call", [24, 256])
def test_several_calls_equal_one(omni, monkeypatch, call):
    patches = pixels(GRIDS)
    whole, deep = omni.encode_vision(patches, GRIDS)
    monkeypatch.setattr(vision_packing, "CALL_PATCHES", call)
    cut, deep_cut = omni.encode_vision(patches, GRIDS)
    close(cut, whole)
    close(deep_cut, deep)


def test_padding_is_not_attended_to(omni):
    """The content of a call's padding changes nothing."""
    encoder = omni.parts.vision_encoder
    (call,) = vision_packing.pack([pixels([(1, 4, 6)])], [(1, 4, 6)], 2)
    plain, deep = encoder.encode(call.patches, call.place, call.size, call.first)
    noisy = call.patches.copy()
    noisy[24:] = 9.0
    other, deep_other = encoder.encode(noisy, call.place, call.size, call.first)
    np.testing.assert_array_equal(other[:6], plain[:6])
    np.testing.assert_array_equal(deep_other[:, :6], deep[:, :6])
    assert np.isfinite(np.asarray(plain)).all()


def test_rows_in_blocks_equal_the_whole(omni, monkeypatch):
    """Wide intermediates are computed for some patches at a time, in blocks that divide the call."""
    from omni_jax.models import vision

    (call,) = vision_packing.pack(*vision_packing.split_patches(pixels(GRIDS), GRIDS), 2)
    arrays = (call.patches, call.place, call.size, call.first)
    encoder = omni.parts.vision_encoder
    whole, deep = encoder.encode(*arrays)
    monkeypatch.setattr(vision, "ROWS", 100)
    cut, deep_cut = encoder.encode(*arrays)
    close(cut, whole)
    close(deep_cut, deep)
