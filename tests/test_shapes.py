"""Shapes in signatures are checked in all tests (tests/support/shapes.py)."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from omni_jax.nn.layers import Init, Mlp
from omni_jax.nn.rope import rotate
from omni_jax.processing.positions import text_positions
from tests.support.shapes import PACKAGES


def test_a_wrong_shape_is_refused():
    x, half, whole = jnp.zeros((1, 2, 3, 4)), jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 4))
    rotate(x, half, half)
    with pytest.raises(TypeCheckError, match="'cos'"):
        rotate(x, whole, whole)


def test_a_wrong_shape_inside_of_a_program_is_refused():
    with pytest.raises(TypeCheckError, match="'sin'"):
        jax.jit(rotate)(jnp.zeros((1, 2, 3, 4)), jnp.zeros((1, 2, 2)), jnp.zeros((1, 1, 2)))


def test_a_wrong_dtype_is_refused():
    text_positions(np.ones((2, 3), bool))
    with pytest.raises(TypeCheckError, match="'mask'"):
        text_positions(np.ones((2, 3), np.int32))


def test_a_wrong_shape_of_a_result_is_refused(monkeypatch):
    mlp = Mlp(Init(jax.random.key(0), jnp.float32), 2, 3, 4)
    mlp(jnp.zeros((5, 2)))
    monkeypatch.setattr(type(mlp.down), "__call__", lambda self, x: x.astype(jnp.int32))
    with pytest.raises(TypeCheckError, match="return value"):
        mlp(jnp.zeros((5, 2)))


@pytest.mark.parametrize("name", PACKAGES)
def test_the_hook_covers_each_package_that_is_listed(name):
    loader = importlib.import_module(name).__spec__.loader
    assert type(loader).__module__ == "jaxtyping._import_hook"


def test_each_module_with_shapes_is_listed():
    root = Path(__file__).parents[1]
    for path in root.glob("omni_jax/**/*.py"):
        if "from jaxtyping import" in path.read_text():
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            assert any(f"{name}.".startswith(f"{package}.") for package in PACKAGES), name
