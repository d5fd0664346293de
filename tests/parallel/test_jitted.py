"""Programs with CPU compiler options give the same results, in every use of a jitted function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.parallel import jitted


@pytest.fixture
def double():
    return jitted.jitted(lambda x, *, times: x @ x * times, static_argnames="times")


def test_compiler_options_do_not_change_results(double):
    x = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    np.testing.assert_allclose(double(x, times=2), double.plain(x, times=2), rtol=1e-5, atol=1e-5)
    assert double._cache_size() == 1


def test_no_options_inside_another_program_and_for_eval_shape(double):
    x = jnp.ones((3, 3))
    np.testing.assert_array_equal(jax.jit(lambda x: double(x, times=2))(x), 6)
    assert jax.eval_shape(lambda x: double(x, times=2), x).shape == (3, 3)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(double(x, times=1)))(x), 6)


def test_no_options_for_a_program_of_another_platform(double):
    x = jax.ShapeDtypeStruct((3, 3), jnp.float32)
    assert double.lower(x, times=2).as_text() == double.plain.lower(x, times=2).as_text()


def test_unknown_options_are_dropped(monkeypatch, double):
    monkeypatch.setattr(jitted, "EIGEN", {"xla_cpu_no_such_option": ""})
    jitted._options.cache_clear()
    try:
        assert jitted._options() is None
        np.testing.assert_array_equal(double(jnp.ones((3, 3)), times=2), 6)
    finally:
        jitted._options.cache_clear()


def test_no_options_on_other_platforms(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert jitted._options.__wrapped__() is None
