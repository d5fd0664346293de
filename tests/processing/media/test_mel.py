"""Features of sound equal the golden ones, one frame a hop."""

import json
import re
from pathlib import Path

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.processing.media import audio
from tests.support.sounds import HELLO

GOLDEN = Path(__file__).parents[2] / "goldens" / "mel_hello.npz"
CONFIG = audio.FeatureConfig()


def test_features_of_the_recording_equal_the_golden_ones():
    with np.load(GOLDEN) as golden:
        features = audio.log_mel(audio.load(HELLO), CONFIG)
        assert features.shape == (128, golden["frames"])
        assert features.dtype == np.float32
        assert features.flags.c_contiguous
        np.testing.assert_allclose(features[:, :: golden["step"]], golden["features"], rtol=0, atol=1e-5)


def test_features_of_silence_are_constant():
    np.testing.assert_array_equal(audio.log_mel(np.zeros(800, np.float32), CONFIG), np.full((128, 5), -1.5))


def test_features_do_not_depend_on_the_block_size(monkeypatch):
    samples = audio.load(HELLO)
    whole = audio.log_mel(samples, CONFIG)
    for frames in (1, 7, whole.shape[1] - 1):
        monkeypatch.setattr(audio, "_MEL_FRAMES", frames)
        np.testing.assert_allclose(audio.log_mel(samples, CONFIG), whole, rtol=0, atol=1e-6)


def test_a_reversed_clip_gives_reversed_frames():
    # Frames are centred on samples 0, 160, ...: with one sample more than whole hops, both ends are reflected alike.
    samples = np.random.default_rng(0).standard_normal(160 * 4 + 1).astype(np.float32)
    forwards, backwards = (audio.log_mel(clip, CONFIG)[:, 1:] for clip in (samples, samples[::-1]))
    np.testing.assert_allclose(backwards, forwards[:, ::-1], rtol=0, atol=1e-6)


def test_a_tone_is_in_its_bin():
    # Slaney's scale has 200/3 Hz a mel up to 1 kHz (500 Hz is 7.5 mel), then 27 / ln(6.4) mel a factor of e.
    top = 15 + 27 * np.log(8) / np.log(6.4)
    samples = np.sin(2 * np.pi * 500 / audio.SAMPLE_RATE * np.arange(8_000)).astype(np.float32)
    strongest = audio.log_mel(samples, CONFIG)[:, 5:-5].argmax(axis=0)
    assert np.all(np.abs(strongest - (7.5 / top * 129 - 1)) <= 1)


@settings(deadline=None, max_examples=50)
@given(
    samples=arrays.arrays(
        np.float32,
        st.integers(201, 3_000),
        elements=st.floats(-1, 1, width=32),
        fill=st.floats(-1, 1, width=32),
    )
)
def test_any_clip_has_one_frame_a_hop(samples):
    loaded = audio.load(samples)
    np.testing.assert_array_equal(loaded, samples)
    features = audio.log_mel(loaded, CONFIG)
    assert features.shape == (128, samples.size // 160)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert features.max() - features.min() <= 2 + 1e-6
    assert features.min() >= -1.5


@pytest.mark.parametrize(
    ("samples", "pattern"),
    [
        (np.zeros((2, 1_000), np.float32), r"expected float samples \[W\], got float32 \[2, 1000\]"),
        (np.zeros(1_000, np.int16), r"got int16 \[1000\]"),
        (np.zeros(200, np.float32), "200 samples .* too few"),
        (np.full(1_000, np.nan, np.float32), "NaN or infinite"),
        (np.full(1_000, 1e300), "NaN or infinite"),
    ],
)
def test_features_of_bad_samples_are_refused(samples, pattern):
    with pytest.raises(ValueError, match=pattern):
        audio.log_mel(samples, CONFIG)


PUBLISHED = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "sampling_rate": 16000,
    "feature_size": 128,
    "n_fft": 400,
    "hop_length": 160,
    "dither": 0.0,
    "padding_value": 0.0,
    "n_samples": 4800000,
    "patch_size": 16,
}


def test_the_published_config_is_read():
    assert audio.FeatureConfig.from_hf(json.loads(json.dumps(PUBLISHED))) == audio.FeatureConfig()
    smaller = audio.FeatureConfig.from_hf(PUBLISHED | {"feature_size": 80, "hop_length": 200})
    assert smaller == audio.FeatureConfig(hop=200, mel_bins=80)
    assert audio.log_mel(np.zeros(1_000, np.float32), smaller).shape == (80, 5)
    assert hash(smaller) != hash(audio.FeatureConfig())


def test_the_shortest_clip_has_one_frame():
    for config in (CONFIG, audio.FeatureConfig(hop=400), audio.FeatureConfig(n_fft=512, hop=1)):
        samples = np.zeros(config.min_samples, np.float32)
        assert audio.log_mel(samples, config).shape[1] == config.min_samples // config.hop >= 1
        with pytest.raises(ValueError, match="too few"):
            audio.log_mel(samples[1:], config)


def test_faults_of_a_config_are_reported_in_one_line():
    broken = {"sampling_rate": 8000, "n_fft": 401, "hop_length": 0, "dither": 0.1}
    expected = (
        "preprocessor_config.json: sampling_rate is 8000 (expected 16000); "
        "n_fft is 401 (expected an even number from 2 to 65536); hop_length is 0 (expected 1 to n_fft); "
        "feature_size is missing; dither is 0.1 (expected 0)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        audio.FeatureConfig.from_hf(broken)
    with pytest.raises(ValueError, match=r"^FeatureConfig: hop_length is 160\.0"):
        audio.FeatureConfig(hop=160.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="feature_size is 201"):
        audio.FeatureConfig(mel_bins=201)
