"""Frames in calls: every patch once and in order, whole frames, few shapes, and places in the layout of patches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.buckets import CALL_PATCHES, patch_slots
from omni_jax.processing import vision_packing
from omni_jax.processing.media.patches import PatchConfig, to_patches
from omni_jax.processing.vision_packing import pack, places, split_patches

GRID = st.tuples(st.integers(1, 4), st.integers(1, 20).map(lambda n: 2 * n), st.integers(1, 20).map(lambda n: 2 * n))


@settings(max_examples=60, deadline=None)
@given(grids=st.lists(GRID, min_size=1, max_size=6), call=st.sampled_from([4, 256, 1000, CALL_PATCHES]))
def test_calls_hold_every_patch_once_in_whole_frames(grids, call):
    """Numbered patches come out in order, each with its frame's size and beginning; no call exceeds its bound."""
    counts = [t * h * w for t, h, w in grids]
    numbered = np.arange(sum(counts), dtype=np.float32)[:, None]
    media = np.split(numbered, np.cumsum(counts)[:-1])
    expected = [(h, w) for t, h, w in grids for _ in range(t)]
    seen, features = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vision_packing, "CALL_PATCHES", call)
        calls = list(pack(media, grids, 2))
    for item in calls:
        real = item.size[:, 0] > 0
        used = int(real.sum())
        assert real[:used].all()
        assert len(item.patches) == patch_slots(used)
        np.testing.assert_array_equal(item.patches[used:], 0)
        starts = np.unique(item.first[:used])
        assert used <= call or len(starts) == 1
        for start in starts:
            h, w = expected.pop(0)
            frame = slice(start, start + h * w)
            np.testing.assert_array_equal(item.size[frame], np.broadcast_to([h, w], (h * w, 2)))
            np.testing.assert_array_equal(item.first[frame], start)
            np.testing.assert_array_equal(item.place[frame], places(h, w, 2))
        seen.append(item.patches[:used, 0])
        features.append(item.order[item.order >= 0])
        assert (item.order >= 0).sum() == used // 4
    assert not expected
    np.testing.assert_array_equal(np.concatenate(seen), numbered[:, 0])
    np.testing.assert_array_equal(np.concatenate(features), np.arange(sum(counts) // 4))


def test_places_of_a_frame_are_in_groups_of_four():
    """Groups of four in reading order, as the reference lays patches out."""
    assert places(4, 6, 2)[:8].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]


def test_places_match_the_pixels_of_their_patches():
    """A picture in which the grey value of each patch encodes its row and column."""
    rows, columns = np.mgrid[:6, :8]
    grey = np.kron(rows * 8 + columns, np.ones((16, 16))).astype(np.uint8)
    made, _ = to_patches(np.repeat(grey[None, ..., None], 3, axis=3), PatchConfig())
    found = np.rint((made[:, 0] * 0.5 + 0.5) * 255).astype(int)
    np.testing.assert_array_equal(found, places(6, 8, 2) @ [8, 1])


def test_sizes_are_few_and_padding_is_small():
    assert len({patch_slots(n) for n in range(4, CALL_PATCHES + 1, 4)}) == 17
    assert all(n <= patch_slots(n) <= 1.25 * n for n in range(256, 70_000, 4))
    assert all(patch_slots(n) % 64 == 0 for n in range(4, 70_000, 4))


def test_rows_of_another_call_are_masked():
    first, second = list(pack([np.zeros((4096, 1)), np.zeros((8, 1))], [(1, 64, 64), (1, 2, 4)], 2))
    index = np.array([[-1, 0, 1023, 1024, 1025]])
    assert first.rows(index).tolist() == [[-1, 0, 1023, -1, -1]]
    assert second.rows(index).tolist() == [[-1, -1, -1, 0, 1]]


@pytest.mark.parametrize(
    ("array", "grid", "said"),
    [
        (np.zeros((24, 1536)), [(1, 4, 5)], "rows and columns that divide by 2, got"),
        (np.zeros((24, 1536)), [(0, 4, 6)], "at least 1 frame"),
        (np.zeros((24, 1536)), [(1, 4)], "whole numbers .frames, rows, columns. of each medium"),
        (np.zeros((24, 1536)), [(1.0, 4, 6)], "whole numbers"),
        (np.zeros((23, 1536)), [(1, 4, 6)], "expected 24 for the grid"),
        (
            np.zeros((24, 1176)),
            [(1, 4, 6)],
            r"expected numbers of shape \[P, 1536\], got float64 of shape \[24, 1176\]",
        ),
        (np.zeros((1, 24, 1536)), [(1, 4, 6)], "expected numbers of shape"),
        (np.full((24, 1536), "a"), [(1, 4, 6)], "expected numbers of shape"),
        (np.full((24, 1536), np.nan), [(1, 4, 6)], "NaN or infinite"),
    ],
)
def test_wrong_input_raises_one_line(array, grid, said):
    with pytest.raises(ValueError, match=said) as error:
        split_patches(array, grid, width=1536, merge=2)
    assert "\n" not in str(error.value)


def test_no_patches_give_no_calls():
    assert split_patches(np.empty((0, 1536)), np.empty((0, 3), int), width=1536, merge=2) == ([], [])
    assert list(pack([], [], 2)) == []
