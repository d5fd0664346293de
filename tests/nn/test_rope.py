"""Rotary positions: which coordinate rotates which frequency, and the laws of both layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.nn.rope import frequencies, interleaved_axes, rotate, rotation, run_axes

THETA = 1e6
# The published ones: thinker and talker of Qwen2.5-Omni 7B, talker of its 3B, thinker and talker of Qwen3-Omni.
SECTIONS = {
    "runs": {"head_width": 128, "section": (16, 24, 24), "interleaved": False},
    "runs without a width": {"head_width": 64, "section": (16, 16, 0), "interleaved": False},
    "interleaved": {"head_width": 128, "section": (24, 20, 20), "interleaved": True},
}


def turned(x, positions, **layout):
    return rotate(x, *rotation(jnp.asarray(positions), theta=THETA, dtype=jnp.float32, **layout))


def heads(width, length=1, seed=0):
    return jax.random.normal(jax.random.key(seed), (1, length, 2, width))


def random_positions(length, seed=0):
    return np.random.default_rng(seed).integers(0, 500, (3, 1, length))


@pytest.mark.parametrize("section", [(16, 24, 24), (16, 16, 0), (2, 3, 3), (1, 1, 0)])
def test_section_axes_in_runs(section):
    assert run_axes(section).tolist() == [axis for axis, count in enumerate(section) for _ in range(count)]


def test_section_axes_interleaved():
    assert interleaved_axes((24, 20, 20), 64).tolist() == [0, 1, 2] * 20 + [0] * 4


@pytest.mark.parametrize("layout", SECTIONS.values(), ids=SECTIONS.keys())
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_coordinate_rotates_only_its_own_frequencies(layout, axis):
    width, section = layout["head_width"], layout["section"]
    axes = interleaved_axes(section, width // 2) if layout["interleaved"] else run_axes(section)
    here, there = np.full((3, 1, 1), 7), np.full((3, 1, 1), 7)
    there[axis] = 900
    changed = turned(heads(width), here, **layout) != turned(heads(width), there, **layout)
    for half in jnp.split(changed[0, 0, 0], 2):
        # 893 steps of the slowest frequency are 1e-3 of a turn, which is still visible.
        np.testing.assert_array_equal(half, axes == axis)


@pytest.mark.parametrize("layout", SECTIONS.values(), ids=SECTIONS.keys())
def test_text_is_rotated_as_with_one_coordinate(layout):
    """The three coordinates of text are equal."""
    positions = np.broadcast_to(np.arange(40), (3, 1, 40))
    plain = {"head_width": layout["head_width"], "section": None}
    x = heads(layout["head_width"], 40)
    np.testing.assert_array_equal(turned(x, positions, **layout), turned(x, positions, **plain))


@pytest.mark.parametrize("layout", SECTIONS.values(), ids=SECTIONS.keys())
def test_scores_depend_only_on_distances(layout):
    """The product of a query and a key does not change when both are shifted by the same amount on each axis."""
    q, k = heads(layout["head_width"], 5), heads(layout["head_width"], 5, seed=1)
    at, of = random_positions(5), random_positions(5, seed=1)
    away = np.array([13, 7, 400])[:, None, None]
    here = jnp.sum(turned(q, at, **layout) * turned(k, of, **layout), axis=-1)
    there = jnp.sum(turned(q, at + away, **layout) * turned(k, of + away, **layout), axis=-1)
    np.testing.assert_allclose(here, there, atol=2e-3)
    other = jnp.sum(turned(q, at + away, **layout) * turned(k, of, **layout), axis=-1)
    assert jnp.abs(here - other).max() > 1


@pytest.mark.parametrize("layout", SECTIONS.values(), ids=SECTIONS.keys())
def test_rotation_keeps_norms(layout):
    x = heads(layout["head_width"], 9)
    found = jnp.linalg.norm(turned(x, random_positions(9), **layout), axis=-1)
    np.testing.assert_allclose(found, jnp.linalg.norm(x, axis=-1), rtol=1e-6)


def test_position_zero_is_not_rotated():
    x = heads(64)
    np.testing.assert_array_equal(turned(x, np.zeros((3, 1, 1)), **SECTIONS["runs without a width"]), x)


@pytest.mark.parametrize("layout", SECTIONS.values(), ids=SECTIONS.keys())
def test_angles_are_float32_in_any_dtype(layout):
    """Positions beyond 256 are not exact in bfloat16."""
    positions = random_positions(12) + 30_000
    exact = rotation(jnp.asarray(positions), theta=THETA, dtype=jnp.float32, **layout)
    rounded = rotation(jnp.asarray(positions), theta=THETA, dtype=jnp.bfloat16, **layout)
    for value, expected in zip(rounded, exact, strict=True):
        assert value.dtype == jnp.bfloat16
        np.testing.assert_array_equal(value, expected.astype(jnp.bfloat16))


@pytest.mark.parametrize("width", [64, 128])
def test_frequencies_are_powers_of_theta(width):
    exact = THETA ** (-np.arange(0, width, 2) / width)
    found = frequencies(width, THETA)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=2e-7)
