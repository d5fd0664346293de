"""The kernels of long prompts, interpreted, equal plain attention, with and without a cache, on any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.nn import causal_attention
from omni_jax.nn.kernels import splash_attention

NEW, SLOTS = 512, 256


def arrays(width, kv_heads=2, groups=2, batch=2):
    rng = np.random.default_rng(width)

    def made(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    q, k, v = (
        made(batch, NEW, kv_heads, groups, width),
        made(batch, NEW, kv_heads, width),
        made(batch, NEW, kv_heads, width),
    )
    past = made(batch, kv_heads, SLOTS, width), made(batch, kv_heads, SLOTS, width)
    return q, k, v, past


@pytest.mark.parametrize("width", splash_attention.WIDTHS)
@pytest.mark.parametrize("lengths", [None, (0, 131)])
def test_kernels_equal_plain_attention(width, lengths):
    """For rows with an empty cache and with some filled slots; slots beyond are never read."""
    q, k, v, past = arrays(width)
    if lengths is not None:
        beyond = jnp.arange(SLOTS)[None, None, :, None] >= jnp.asarray(lengths)[:, None, None, None]
        past = (*(jnp.where(beyond, 1e9, x) for x in past), jnp.asarray(lengths))
    past = None if lengths is None else past
    found = splash_attention.attend(q, k, v, past, interpret=True)
    np.testing.assert_allclose(found, causal_attention._in_blocks(q, k, v, past, window=None), atol=2e-5)


def test_bfloat16_rounds_only_scaled_queries_and_outputs():
    """Nothing is rounded in between: the result is float32 attention, within half a unit of bfloat16's last bit."""
    q, k, v = (x.astype(jnp.bfloat16) for x in arrays(128, kv_heads=1, batch=1)[:3])
    found = splash_attention.attend(q, k, v, interpret=True)
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    scaled = (q * 128**-0.5).astype(jnp.bfloat16).astype(jnp.float32) * 128**0.5
    expected = causal_attention._in_blocks(scaled, k, v, None, window=None)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=2**-8, atol=2e-5)


@pytest.mark.parametrize(("batch", "groups"), [(2, 1), (1, 2)])
def test_each_device_attends_for_its_own_rows_and_heads(batch, groups):
    """For a single row, each device computes some of the query heads of a key head."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    q, k, v, past = arrays(64, groups=groups, batch=batch)
    past = (*past, jnp.asarray([7, 200][:batch]))

    def run(q, k, v, past):
        return splash_attention.attend(q, k, v, past, mesh=mesh.abstract_mesh, interpret=True)

    where = jax.NamedSharding(mesh, jax.P(None, None, "model"))
    found = jax.jit(run)(jax.device_put(q, where), k, v, past)
    assert {shard.data.shape[:4] for shard in found.addressable_shards} == {(1, NEW, 1, 1)}
    np.testing.assert_allclose(found, causal_attention._in_blocks(q, k, v, past, window=None), atol=2e-5)


def test_gradients_of_a_prompt_equal_plain_attention():
    """Without a cache, as in training."""
    q, k, v, _ = arrays(64, batch=1)

    def loss(attend, *given):
        return jnp.sum(jnp.sin(attend(*given)))

    found, expected = (
        jax.grad(lambda *given, attend=attend: loss(attend, *given), argnums=(0, 1, 2))(q, k, v)
        for attend in (
            lambda *given: splash_attention.attend(*given, interpret=True),
            lambda *given: causal_attention._in_blocks(*given, None, window=None),
        )
    )
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4 * np.abs(theirs).max())


def test_sizes_that_the_kernels_support():
    assert splash_attention.fits(4096, 32768, 128)
    assert splash_attention.fits(768, 0, 64)
    assert not splash_attention.fits(256, 0, 128)  # a short turn
    assert not splash_attention.fits(600, 0, 128)
    assert not splash_attention.fits(4096, 100, 128)
    assert not splash_attention.fits(4096, 0, 80)
