"""log_mel against Transformers' WhisperFeatureExtractor, feature by feature.

The extractor has two paths: NumPy in float64 (used where torch is absent) and torch in float32. The second's rounding
shows wherever a bin is far below its frame's loudest, by accident in noise and always in clean speech; there the two
differ by up to 6e-5 on these signals. So features are compared with the first, and powers, where rounding is small
beside the loudest bin, with the second.
"""

from pathlib import Path

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor
from transformers.models.whisper import feature_extraction_whisper

from omni_jax.processing.media import audio

HELLO = Path(audio.__file__).parents[2] / "assets" / "hello.flac"
LENGTHS = (201, 240, 319, 320, 399, 400, 401, 7961, 16_000 * 31 + 77)
TOLERANCE = 1e-5


def noise(length, scale=0.1):
    return (scale * np.random.default_rng(length).standard_normal(length)).astype(np.float32)


def sine(length):
    return np.sin(2 * np.pi * 997.3 / audio.SAMPLE_RATE * np.arange(length)).astype(np.float32)


def tone(hertz):
    """Two seconds in 16 bits, as from a wav file."""
    wave = np.sin(2 * np.pi * hertz / audio.SAMPLE_RATE * np.arange(2 * audio.SAMPLE_RATE))
    return (np.rint(16_384 * wave) / 32_768).astype(np.float32)


SIGNALS = {
    "hello": lambda: audio.load(HELLO),
    "silence": lambda: np.zeros(16_000, np.float32),
    "near-silence": lambda: noise(16_000, 1e-6),
    "quiet": lambda: noise(16_001, 1e-4),
    "loud": lambda: noise(16_003, 30.0),
    "sine": lambda: sine(16_007),
    "a tone of 330 Hz": lambda: tone(330),
    "sine, then quiet": lambda: np.concatenate([sine(8_000), noise(8_000, 1e-4)]),
    **{f"noise {length}": lambda length=length: noise(length) for length in LENGTHS},
}


def extract(samples):
    """The reference on one unpadded clip, [Z, A]."""
    extractor = WhisperFeatureExtractor(feature_size=128)
    batch = extractor(
        samples,
        sampling_rate=audio.SAMPLE_RATE,
        padding=True,  # pyright: ignore[reportArgumentType] - to the longest, here itself
        truncation=False,
        return_tensors="np",
    )
    return batch["input_features"][0]


@pytest.mark.parametrize("signal", SIGNALS)
def test_features_equal_the_numpy_path(signal, monkeypatch):
    monkeypatch.setattr(feature_extraction_whisper, "is_torch_available", lambda: False)
    samples = SIGNALS[signal]()
    expected = extract(samples)
    features = audio.log_mel(samples, audio.FeatureConfig())
    assert features.shape == expected.shape
    assert features.dtype == expected.dtype
    np.testing.assert_allclose(features, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("signal", SIGNALS)
def test_powers_equal_the_torch_path(signal):
    samples = SIGNALS[signal]()
    expected = 10.0 ** (4 * extract(samples).astype(np.float64) - 4)
    powers = 10.0 ** (4 * audio.log_mel(samples, audio.FeatureConfig()).astype(np.float64) - 4)
    assert powers.shape == expected.shape
    np.testing.assert_allclose(powers, expected, rtol=0, atol=TOLERANCE * expected.max())


def test_only_the_quiet_bins_of_a_pure_tone_differ_from_the_torch_path():
    """Features are logarithms: 60 dB and more below the loudest bin they show float32's rounding."""
    samples = tone(330)
    expected, features = extract(samples), audio.log_mel(samples, audio.FeatureConfig())
    away, powers = np.abs(features - expected), 10.0 ** (4 * features.astype(np.float64) - 4)
    assert away[powers > 1e-6 * powers.max()].max() < TOLERANCE
    assert TOLERANCE < away.max() < 6e-5  # 2.2e-5 to 3.6e-5, by the processor


def test_the_extractors_own_config_is_read():
    extractor = WhisperFeatureExtractor(feature_size=128)
    assert audio.FeatureConfig.from_hf(extractor.to_dict()) == audio.FeatureConfig()
