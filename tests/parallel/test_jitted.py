"""Programs with a CPU's own options: the same numbers, in every way that a jitted function is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.parallel import jitted


@pytest.fixture
def double():
    return jitted.jitted(lambda x, *, times: x @ x * times, static_argnames="times")


def test_a_jitted_function_gives_the_same_with_options_and_without(double):
    x = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    np.testing.assert_allclose(double(x, times=2), double.plain(x, times=2), rtol=1e-5, atol=1e-5)
    assert double._cache_size() == 1


def test_inside_another_program_and_for_shapes_alone_it_has_no_options(double):
    x = jnp.ones((3, 3))
    np.testing.assert_array_equal(jax.jit(lambda x: double(x, times=2))(x), 6)
    assert jax.eval_shape(lambda x: double(x, times=2), x).shape == (3, 3)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(double(x, times=1)))(x), 6)


def test_another_platforms_program_is_lowered_as_without(double):
    x = jax.ShapeDtypeStruct((3, 3), jnp.float32)
    assert double.lower(x, times=2).as_text() == double.plain.lower(x, times=2).as_text()


def test_a_compiler_that_does_not_know_the_option_goes_without(monkeypatch, double):
    monkeypatch.setattr(jitted, "EIGEN", {"xla_cpu_no_such_option": ""})
    jitted._options.cache_clear()
    try:
        assert jitted._options() is None
        np.testing.assert_array_equal(double(jnp.ones((3, 3)), times=2), 6)
    finally:
        jitted._options.cache_clear()


def test_other_platforms_have_no_options(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert jitted._options.__wrapped__() is None
