"""The kernel of spans, interpreted, equals attention in blocks, on one device and on several; TPU programs call it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.nn import packed_attention
from omni_jax.nn.kernels import packed_attention as kernel


def arrays(length, heads, width, dtype=jnp.float32):
    rng = np.random.default_rng(length)
    return [jnp.asarray(rng.normal(size=(length, heads, width)), dtype) for _ in "qkv"]


def ends(lengths, padding):
    """Bounds of consecutive spans, and of padding after them."""
    starts = np.cumsum([0, *lengths[:-1]])
    first, last = np.repeat(starts, lengths), np.repeat(starts + lengths, lengths)
    return jnp.asarray(np.pad(first, (0, padding))), jnp.asarray(np.pad(last, (0, padding)))


STRADDLING = (
    [300, 1, 255, 1, 1, 60],
    300,
    72,
    4096,
)  # spans, one longer than a block, some of one token; a block of padding
SEVERAL = [5, 700, 64, 64], 3, 80, 512  # panels of keys; a block of queries attends to one or both


@pytest.mark.parametrize(
    ("lengths", "padding", "width", "panel", "dtype"),
    [(*STRADDLING, jnp.float32), (*SEVERAL, jnp.float32), (*SEVERAL, jnp.bfloat16)],
)
def test_the_kernel_equals_attention_in_blocks(monkeypatch, lengths, padding, width, panel, dtype):
    monkeypatch.setattr(kernel, "PANEL", panel)
    total = sum(lengths)
    q, k, v = arrays(total + padding, 2, width, dtype)
    found = kernel.attend(q, k, v, *ends(lengths, padding), interpret=True)
    assert found.dtype == dtype
    found, q, k, v = (x.astype(jnp.float32) for x in (found, q, k, v))
    blocks = jax.jit(packed_attention.attend_spans)
    off = np.abs(found - blocks(q, k, v, *ends(lengths, padding)))
    # Eight bits of bfloat16: each weight is off by at most 2^-8 of itself, and so is their sum.
    rounded = 0 if dtype == jnp.float32 else 2**-7 * blocks(q, k, jnp.abs(v), *ends(lengths, padding))
    assert np.all(off <= 2e-6 + rounded)
    np.testing.assert_array_equal(found[total:], 0)


def test_segments_given_by_bounds_equal_segment_ids():
    """Windows of audio, with padding between and after them that attends to nothing."""
    ids = np.repeat([0, 1, -1, 4, 5, -1], [104, 30, 9, 104, 90, 27])
    q, k, v = arrays(len(ids), 2, 64)
    found = kernel.attend(q, k, v, *kernel.bounds(jnp.asarray(ids)), interpret=True)
    expected = jax.jit(partial(packed_attention.attend_segments, max_segment=104))(q, k, v, jnp.asarray(ids))
    np.testing.assert_allclose(found[ids >= 0], expected[ids >= 0], atol=2e-6)
    np.testing.assert_array_equal(found[ids < 0], 0)


@pytest.mark.parametrize("heads", [4, 3])
def test_each_device_attends_for_its_own_heads(heads):
    """Where heads do not divide, each device computes all of them."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    q, k, v = arrays(200, heads, 16)
    first, last = ends([120, 70], 10)
    run = jax.jit(partial(kernel.attend, mesh=mesh.abstract_mesh, interpret=True))
    where = jax.NamedSharding(mesh, jax.P(None, "model" if heads == 4 else None))
    found = run(*(jax.device_put(x, where) for x in (q, k, v)), first, last)
    assert found.sharding.is_equivalent_to(where, 3)
    np.testing.assert_allclose(found, kernel.attend(q, k, v, first, last, interpret=True), atol=2e-6)


@pytest.mark.parametrize("form", ["spans", "segments"])
def test_only_tpu_programs_call_the_kernel(form):
    """Gradients are those of the blocks on every platform; windows as long as the call need no kernel."""

    def attend(q, k, v, first, last, max_segment=104):
        if form == "spans":
            return packed_attention.attend_spans(q, k, v, first, last)
        return packed_attention.attend_segments(q, k, v, first, max_segment=max_segment)

    def lowered(function, platform):
        given = (*arrays(300, 2, 64), *ends([104, 196], 0))
        return jax.jit(function).trace(*given).lower(lowering_platforms=(platform,)).as_text()

    assert 'kernel_name = "attend_spans"' in lowered(attend, "tpu")
    assert "custom_call" not in lowered(attend, "cpu")
    assert "tpu_custom_call" not in lowered(jax.grad(lambda *given: jnp.sum(attend(*given))), "tpu")
    if form == "segments":
        assert "tpu_custom_call" not in lowered(partial(attend, max_segment=300), "tpu")
