"""Qwen2.5-Omni's audio encoder: a chunk does not depend on other chunks or padding, and what its tokens depend on."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.config import Qwen25AudioEncoderConfig
from omni_jax.models.qwen2_5_omni.audio_encoder import AudioEncoder
from omni_jax.nn.layers import Init
from omni_jax.weights.layerwise import leaves

SMALL = Qwen25AudioEncoderConfig(mel_bins=5, layers=2, width=16, heads=2, ffn_width=24, chunk_frames=40, out_width=12)
PUBLISHED = Qwen25AudioEncoderConfig(
    mel_bins=128, layers=32, width=1280, heads=20, ffn_width=5120, chunk_frames=200, out_width=3584
)
EXTENTS = np.array([40, 7, 0, 3, 39, 40, 1, 20])


def abstract(config, dtype=jnp.float32):
    return jax.eval_shape(lambda: AudioEncoder(Init(jax.random.key(0), dtype), config))


@pytest.fixture(scope="module")
def encoder():
    """All parameters are random: a zero bias would hide a fault where it is added."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * random.normal(size=leaf.shape), leaf.dtype), abstract(SMALL))


@pytest.fixture(scope="module")
def mel():
    return np.random.default_rng(1).standard_normal((len(EXTENTS), 5, 40), np.float32)


encode = jax.jit(lambda encoder, mel, extent: encoder.encode(mel, extent))


def tokens(extent):
    return (extent + 1) // 2 // 2


def own(features, extents=EXTENTS):
    """The features of each chunk without those of padding."""
    return [np.asarray(row[: tokens(extent)]) for row, extent in zip(features, extents, strict=True)]


def change(encoder, mel, extent, frame):
    """How much each token of one chunk differs when a frame does."""
    other = mel.copy()
    other[:, frame] += 1
    before, after = (np.asarray(encode(encoder, x[None], np.array([extent]))[0]) for x in (mel, other))
    return np.abs(after - before).max(axis=1)[: tokens(extent)]


# --- a chunk does not depend on others


def test_a_chunk_in_a_call_equals_the_chunk_alone(encoder, mel):
    together = own(encode(encoder, mel, EXTENTS))
    for chunk, extent, features in zip(mel, EXTENTS, together, strict=True):
        alone = np.asarray(encode(encoder, chunk[None], np.array([extent]))[0, : tokens(extent)])
        np.testing.assert_allclose(features, alone, atol=1e-5)


@pytest.mark.parametrize("filler", [0.0, -1.3, np.nan])
def test_frames_beyond_a_chunks_length_are_ignored(encoder, mel, filler):
    padded = np.where(np.arange(40) < EXTENTS[:, None, None], mel, np.float32(filler))
    found = encode(encoder, padded, EXTENTS)
    np.testing.assert_array_equal(found, encode(encoder, mel, EXTENTS))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("extent", [3, 4, 7, 20, 39])
def test_a_padded_chunk_equals_an_unpadded_one(encoder, mel, extent):
    """Padding has no effect (for numbers of frames whose positions form whole pairs)."""
    found = encode(encoder, mel[:1], np.array([extent]))[0, : tokens(extent)]
    tight = encode(encoder, mel[:1, :, :extent], np.array([extent]))[0]
    assert found.shape == tight.shape
    np.testing.assert_allclose(found, tight, atol=1e-5)


def test_chunks_do_not_attend_to_each_other(encoder, mel):
    other = mel.copy()
    other[1:] += 1
    before, after = (own(encode(encoder, x, EXTENTS)) for x in (mel, other))
    np.testing.assert_array_equal(before[0], after[0])
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(before[1:], after[1:], strict=True) if len(a))


# --- what a token depends on


@pytest.mark.parametrize("frame", [0, 39])
def test_every_token_of_a_chunk_attends_to_all_of_it(encoder, mel, frame):
    assert change(encoder, mel[0], 40, frame).min() > 1e-5


@pytest.mark.parametrize("extent", [5, 21, 38])
def test_an_odd_last_position_has_no_token_but_is_attended_to(encoder, mel, extent):
    assert (extent + 1) // 2 % 2
    assert change(encoder, mel[0], extent, extent - 1).min() > 1e-5
    assert not change(encoder, mel[0], extent, extent).any()


def test_positions_restart_in_each_chunk(encoder, mel):
    same = np.stack([mel[0], mel[0]])
    first, second = encode(encoder, same, np.array([40, 40]))
    np.testing.assert_array_equal(first, second)
    turned = encode(encoder, mel[:1, :, ::-1].copy(), np.array([40]))[0]
    assert np.abs(np.asarray(turned)[::-1] - np.asarray(first)).max() > 1e-3


def test_every_parameter_has_a_gradient_but_bos_eos(encoder, mel):
    def loss(encoder):
        found = encoder.encode(mel, EXTENTS)
        return sum(jnp.square(row[: tokens(extent)]).sum() for row, extent in zip(found, EXTENTS, strict=True))

    gradients = jax.jit(jax.grad(loss))(encoder)
    assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(gradients))
    found = zip(leaves({"": gradients}), jax.tree.leaves(gradients), strict=True)
    assert [path for path, gradient in found if not np.any(gradient)] == [".bos_eos.table"]


# --- sizes


@pytest.mark.parametrize(("out_width", "parameters"), [(3584, 639_647_232), (2048, 637_676_544)])
def test_the_parameter_counts_are_the_published_ones(out_width, parameters):
    config = replace(PUBLISHED, out_width=out_width)
    found = leaves({"": abstract(config)})
    assert sum(math.prod(leaf.shape) for leaf in found.values()) == parameters
    assert sum(config.layers if path.startswith(".layers.") else 1 for path in found) == 489
    features = jax.eval_shape(
        encode, abstract(config), jax.ShapeDtypeStruct((8, 128, 200), jnp.float32), np.zeros(8, np.int32)
    )
    assert features.shape == (8, 50, out_width)


def test_bfloat16_weights_give_bfloat16_features(encoder, mel):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), encoder)
    found, exact = encode(half, mel, EXTENTS), encode(encoder, mel, EXTENTS)
    assert found.dtype == jnp.bfloat16
    for features, expected in zip(own(found), own(exact), strict=True):
        np.testing.assert_allclose(features.astype(np.float32), expected, atol=0.1 * np.abs(exact).max())
