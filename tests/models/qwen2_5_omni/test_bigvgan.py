"""The vocoder's laws: a row equals itself alone, a window equals the whole, and the activation makes no aliases."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.config.speech import BigVGANConfig
from omni_jax.models.qwen2_5_omni.bigvgan import BigVGAN
from omni_jax.nn.layers import Init
from omni_jax.nn.resample import FILTER, REACH, RowBounds, smooth

SMALL = BigVGANConfig(
    mel_bins=6, channels=16, rates=(3, 2), kernels=(7, 4), block_kernels=(3, 5), dilations=((1, 2),) * 2
)
PUBLISHED = BigVGANConfig(
    mel_bins=80, channels=1536, rates=(5, 3, 2, 2, 2, 2), kernels=(11, 7, 4, 4, 4, 4), block_kernels=(3, 7, 11),
    dilations=((1, 3, 5),) * 3,
)  # fmt: skip
LENGTHS = np.array([70, 1, 33])
FRAMES = 70

decode = jax.jit(lambda model, mel, lengths: model.decode(mel, lengths))
decode_window = jax.jit(lambda model, mel, first, end: model.decode_window(mel, first, end))


def abstract(config, dtype=jnp.float32):
    return jax.eval_shape(lambda: BigVGAN(Init(jax.random.key(0), dtype), config))


@pytest.fixture(scope="module")
def vocoder():
    random = np.random.default_rng(0)

    def fill(leaf):
        spread = 0.6 / math.sqrt(math.prod(leaf.shape[-3:-1])) if leaf.ndim > 2 else 0.2
        return jnp.asarray(spread * random.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(fill, abstract(SMALL))


@pytest.fixture(scope="module")
def mel():
    return np.random.default_rng(1).standard_normal((len(LENGTHS), FRAMES, 6), np.float32) * 3 - 4


@pytest.fixture(scope="module")
def whole(vocoder, mel):
    return np.asarray(decode(vocoder, mel, LENGTHS))


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_parameter_count_is_the_published_one():
    for dtype in (jnp.float32, jnp.bfloat16):
        leaves = jax.tree.leaves(abstract(PUBLISHED, dtype))
        assert sum(leaf.size for leaf in leaves) == 115_443_504
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    model = abstract(PUBLISHED)
    assert (model.frame_samples, model.receptive_field) == (240, 36)


def test_padded_equals_alone(vocoder, mel, whole):
    for row, length in enumerate(LENGTHS):
        alone = decode(vocoder, mel[row : row + 1, :length], LENGTHS[row : row + 1])[0]
        assert_same(alone, whole[row, : length * 6])
        assert not whole[row, length * 6 :].any()
    behind = (np.arange(FRAMES) >= LENGTHS[:, None])[..., None]
    np.testing.assert_array_equal(decode(vocoder, np.where(behind, 3, mel), LENGTHS), whole)


def test_a_window_equals_the_whole_up_to_its_receptive_field(vocoder, mel, whole):
    """Windows of a stream: from within, from before the beginning, and beyond the end."""
    receptive_field = vocoder.receptive_field
    for first in (40, 5, -3):
        frames = np.pad(mel, [(0, 0), (4, 80), (0, 0)])[:, first + 4 :][:, : 2 * receptive_field + 10]
        found = decode_window(vocoder, frames, np.full(3, -first), LENGTHS - first)
        begin = first + receptive_field if first > 0 else 0
        expected = np.pad(whole, [(0, 0), (0, 600)])[:, begin * 6 : (first + receptive_field + 10) * 6]
        assert_same(found[:, (begin - first) * 6 : (receptive_field + 10) * 6], expected)


def test_a_frame_changes_only_samples_within_receptive_field(vocoder, mel, whole):
    """And nearly as far: at the very ends the change is below float32's precision."""
    changed = mel.copy()
    changed[0, 35] += 5
    samples = np.nonzero(np.asarray(decode(vocoder, changed, LENGTHS)) - whole)
    assert set(samples[0]) == {0}
    frames = samples[1] // 6
    assert 35 - vocoder.receptive_field <= frames.min() <= 35 - vocoder.receptive_field // 2
    assert 35 + vocoder.receptive_field // 2 <= frames.max() <= 35 + vocoder.receptive_field


def test_the_waveform_is_clipped_at_one(vocoder, mel, whole):
    louder = jax.tree.map(lambda leaf: leaf, vocoder)
    gain = np.float32(1.6 / np.abs(whole).max())
    louder.conv_out.kernel[...] = gain * vocoder.conv_out.kernel[...]
    found = decode(louder, mel, LENGTHS)
    np.testing.assert_allclose(found, np.clip(gain * whole, -1, 1), atol=1e-5)
    assert np.abs(found).max() == 1


def test_a_block_as_a_loop_equals_the_unrolled_block(vocoder):
    """As on a TPU, whose compiler takes long for each convolution."""
    block = vocoder.residuals[1]
    x = np.random.default_rng(2).standard_normal((3, 40, 8), np.float32)
    bounds = RowBounds(np.array([0, 3, -5]), np.array([40, 21, 90]))
    assert_same(*(jax.jit(form, static_argnums=2)(x, bounds, (1, 4)) for form in (block.looped, block.unrolled)))


def test_empty_mel_gives_no_samples_and_wrong_shapes_are_refused(vocoder):
    assert vocoder.decode(jnp.zeros((2, 0, 6)), jnp.zeros(2, jnp.int32)).shape == (2, 0)
    with pytest.raises(ValueError, match=r"mel: expected \[batch, frames, 6\], got \[2, 6, 9\]"):
        vocoder.decode(jnp.zeros((2, 6, 9)), jnp.zeros(2, jnp.int32))


# --- the activation between resamplings


def smoothed(x, activation, first=0, end=None):
    end = x.shape[1] if end is None else end
    return np.asarray(smooth(jnp.asarray(x), RowBounds(np.array([first]), np.array([end])), activation))


def test_the_filter_is_symmetric_and_sums_to_one():
    np.testing.assert_allclose(FILTER, FILTER[::-1])
    np.testing.assert_allclose(FILTER.sum(), 1, rtol=1e-6)


def test_constants_pass_the_activation_unchanged():
    """Up to the filter's ripple, ends included."""
    x = np.full((1, 20, 2), 0.7, np.float32)
    found = smoothed(x, jnp.square)
    np.testing.assert_allclose(found, 0.49, atol=0.01)
    np.testing.assert_allclose(found[:, 6:-6], 0.49, atol=0.01)


def test_the_activation_makes_no_aliases():
    """The fifth power of a wave of 0.18 cycles a sample has a component of 0.9 cycles, which would alias to 0.1."""
    x = np.cos(2 * np.pi * 0.18 * np.arange(400, dtype=np.float32))[None, :, None]

    def alias(y):
        return np.abs(np.fft.rfft(y[0, 100:300, 0]))[20]

    assert alias(smoothed(x, lambda x: x**5)) < 0.03 * alias(x**5)


def test_a_row_may_begin_anywhere_in_its_array():
    x = np.random.default_rng(0).standard_normal((1, 40, 3), np.float32)
    found = smoothed(x, jnp.square, first=9, end=28)[:, 9:28]
    assert_same(found, smoothed(x[:, 9:28], jnp.square))


def test_a_step_changes_only_samples_within_receptive_field():
    x = np.random.default_rng(0).standard_normal((1, 40, 1), np.float32)
    changed = x.copy()
    changed[0, 20] += 1
    steps = np.nonzero(smoothed(changed, jnp.square) - smoothed(x, jnp.square))[1]
    assert (steps.min(), steps.max()) == (20 - REACH, 20 + REACH)
