"""Causal convolutions against their definitions, and in pieces against the whole."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.nn.conv import CausalState, Conv1d, ConvTranspose1d, SnakeBeta, sin_squared
from omni_jax.nn.layers import Init

BATCH, FRAMES = 3, 12


def layer(kind, *sizes):
    """A layer with a random bias: a zero bias would hide faults at the beginning."""
    made = kind(Init(jax.random.key(0), jnp.float32), *sizes)
    made.bias[...] = jax.random.normal(jax.random.key(1), made.bias.shape)
    return made


def signal(steps, channels):
    return np.random.default_rng([steps, channels]).normal(size=(BATCH, steps, channels)).astype(np.float32)


def beginning(frames):
    zeros = jnp.zeros(BATCH, jnp.int32)
    return CausalState(None, zeros, zeros + frames, frames)


def in_pieces(run, x, lengths, pieces):
    """Runs ``run(piece, past)`` over pieces of x, whose rows have ``lengths`` frames, and joins the results."""

    @partial(jax.jit, static_argnums=4)
    def step(x, tails, seen, new, size):
        past = CausalState(tails, seen, new, size)
        return run(x, past), past.tails

    rows, tails, seen = [[] for _ in range(BATCH)], None, np.zeros(BATCH, np.int32)
    rate, start = x.shape[1] // FRAMES, 0
    for size in pieces:
        new = np.clip(np.asarray(lengths) - start, 0, size)
        y, tails = step(x[:, start * rate : (start + size) * rate], tails, seen, new, size)
        for row in range(BATCH):
            rows[row].append(np.asarray(y[row])[: new[row] * (y.shape[1] // size)])
        seen, start = seen + new, start + size
    return [np.concatenate(row) for row in rows]


def numbers(layer):
    return np.asarray(layer.kernel[...], np.float64), np.asarray(layer.bias[...], np.float64)


def convolved(x, kernel, bias, dilation=1):
    """The definition, in float64."""
    width = len(kernel)
    x = np.pad(x.astype(np.float64), [(0, 0), ((width - 1) * dilation, 0), (0, 0)])
    steps = x.shape[1] - (width - 1) * dilation
    return sum(x[:, tap * dilation :][:, :steps] @ kernel[tap] for tap in range(width)) + bias


def transposed(x, kernel, bias, rate):
    """The definition, in float64: every step adds its kernel to the output; width - rate samples are cut off both ends."""
    width, cut = len(kernel), len(kernel) - rate
    y = np.zeros((len(x), (x.shape[1] - 1) * rate + width, kernel.shape[2]))
    for step in range(x.shape[1]):
        y[:, step * rate : step * rate + width] += np.einsum("BC,WCD->BWD", x[:, step].astype(np.float64), kernel)
    return y[:, cut : y.shape[1] - cut] + bias


@pytest.mark.parametrize("dilation", [1, 3, 9])
def test_convolution_equals_its_definition(dilation):
    conv, x = layer(Conv1d, 4, 5, 7), signal(40, 4)
    expected = convolved(x, *numbers(conv), dilation)
    np.testing.assert_allclose(conv(jnp.asarray(x), beginning(40), dilation=dilation), expected, atol=1e-5)


def test_depthwise_convolution_equals_its_definition():
    conv, x = layer(Conv1d, 1, 6, 7), signal(20, 6)
    kernel, bias = numbers(conv)
    expected = convolved(x, kernel[:, 0, :, None] * np.eye(6), bias)
    np.testing.assert_allclose(conv(jnp.asarray(x), beginning(20)), expected, atol=1e-5)


def test_pointwise_convolution_has_no_past():
    conv, x, past = layer(Conv1d, 4, 5, 1), signal(20, 4), beginning(20)
    kernel, bias = numbers(conv)
    np.testing.assert_allclose(conv(jnp.asarray(x), past), x @ kernel[0] + bias, atol=1e-5)
    assert past.tails == []


@pytest.mark.parametrize(("width", "rate"), [(2, 2), (6, 3), (16, 8)])
def test_transposed_convolution_equals_its_definition(width, rate):
    """With a kernel of twice the stride it is one step late: its first samples lie before the beginning."""
    conv, x, past = layer(ConvTranspose1d, 4, 5, width), signal(20, 4), beginning(20)
    y = conv(jnp.asarray(x), past, rate=rate)
    assert y.shape == (BATCH, 20 * rate, 5)
    assert past.lag == width - rate
    np.testing.assert_allclose(y[:, past.lag :], transposed(x, *numbers(conv), rate), atol=1e-5)


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 7], [1, 2, 4, 5]])
def test_convolution_in_pieces_equals_the_whole(pieces):
    """A chain of all kinds of layers, with rows of different lengths; its reach of 54 steps exceeds many pieces."""
    up, conv = layer(ConvTranspose1d, 4, 6, 6), layer(Conv1d, 6, 6, 7)
    again, last = layer(ConvTranspose1d, 6, 3, 4), layer(Conv1d, 1, 3, 7)

    def chain(x, past):
        y = conv(up(x, past, rate=3), past, dilation=9)
        return last(again(y, past, rate=2), past)

    x, lengths = signal(2 * FRAMES, 4), [12, 7, 1]
    found, lag = in_pieces(chain, x, lengths, pieces), (3 + 1) * 2
    for row, length in enumerate(lengths):
        y = convolved(transposed(x[row : row + 1, : 2 * length], *numbers(up), 3), *numbers(conv), 9)
        kernel, bias = numbers(last)
        y = convolved(transposed(y, *numbers(again), 2), kernel[:, 0, :, None] * np.eye(3), bias)[0]
        assert len(y) == 12 * length - lag
        np.testing.assert_allclose(found[row][lag:], y, atol=1e-5 * np.abs(y).max())


def test_a_row_without_new_frames_keeps_its_past():
    conv = layer(Conv1d, 4, 4, 7)
    tails = [jnp.asarray(signal(6, 4))]
    past = CausalState(tails, jnp.array([5, 5, 0]), jnp.array([0, 2, 0]), 2)
    conv(jnp.asarray(signal(2, 4)), past)
    (kept,) = past.tails
    np.testing.assert_array_equal(kept[0], tails[0][0])
    np.testing.assert_array_equal(kept[2], tails[0][2])
    np.testing.assert_array_equal(kept[1], np.concatenate([tails[0][1, 2:], signal(2, 4)[1]]))


def test_snake():
    snake = SnakeBeta(Init(jax.random.key(0), jnp.float32), 5)
    alpha, beta, x = (np.random.default_rng(n).normal(size=size) for n, size in enumerate([5, 5, (2, 30, 5)]))
    snake.alpha[...], snake.beta[...] = jnp.asarray(alpha, jnp.float32), jnp.asarray(beta, jnp.float32)
    expected = x + np.sin(x * np.exp(alpha)) ** 2 / np.exp(beta)
    np.testing.assert_allclose(snake(jnp.asarray(x, jnp.float32)), expected, atol=5e-6)


def test_squared_sine():
    x = np.concatenate([np.linspace(-20, 20, 100_001), np.linspace(-1e4, 1e4, 100_003)]).astype(np.float32)
    np.testing.assert_allclose(sin_squared(jnp.asarray(x)), np.sin(x.astype(np.float64)) ** 2, atol=1e-6)
    small = np.geomspace(1e-12, 1e-3, 100).astype(np.float32)
    np.testing.assert_allclose(sin_squared(jnp.asarray(small)), np.sin(small.astype(np.float64)) ** 2, rtol=1e-6)
    assert np.isnan(sin_squared(jnp.float32(np.inf)))
    slope = jax.vmap(jax.grad(lambda x: sin_squared(x)))(jnp.asarray(x))
    np.testing.assert_allclose(slope, np.sin(2 * x.astype(np.float64)), atol=1e-5)
