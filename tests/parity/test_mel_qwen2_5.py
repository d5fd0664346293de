"""log_mel of a clip that is padded with silence, against Transformers' extractor as Qwen2.5-Omni's processor calls it.

That processor pads every clip of a call to chunk_length, and cuts what is longer. The extractor's NumPy path is taken
(tests/parity/test_mel.py says why), with a chunk_length of 2 s, because minutes of silence are slow.
"""

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor
from transformers.models.whisper import feature_extraction_whisper

from omni_jax.processing.media import audio

SECONDS, RATE = 2, audio.SAMPLE_RATE
CONFIG = audio.FeatureConfig(pad_seconds=SECONDS)
WHOLE = SECONDS * RATE
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def numpy_path(monkeypatch):
    monkeypatch.setattr(feature_extraction_whisper, "is_torch_available", lambda: False)


def noise(length, seed=0):
    return (0.1 * np.random.default_rng([seed, length]).standard_normal(length)).astype(np.float32)


def extract(clips, *, seconds=SECONDS, **options):
    """The reference's features and frame mask."""
    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=seconds)
    batch = extractor(
        clips, sampling_rate=RATE, padding="max_length", return_attention_mask=True, return_tensors="np", **options
    )
    return batch["input_features"], batch["attention_mask"].astype(bool)


def assert_equal(found, features, mask):
    assert found.shape == (128, mask.sum())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, features[:, mask], rtol=0, atol=TOLERANCE)


# Lengths around whole frames, around the end of the padding, where reflection has an effect, and its exact length.
LENGTHS = (1, 100, 159, 160, 161, 200, 201, 240, 319, 320, 321, 7961, 16_000)
NEAR_THE_END = tuple(WHOLE - room for room in (561, 559, 401, 400, 399, 361, 201, 200, 199, 160, 41, 1, 0))


@pytest.mark.parametrize("length", [*LENGTHS, *NEAR_THE_END])
def test_a_single_clip_equals_the_reference(length):
    clip = noise(length)
    (features,), (mask,) = extract(clip)
    assert mask.sum() == -(-length // 160)
    assert_equal(audio.log_mel(clip, CONFIG), features, mask)


def test_clips_in_one_call_equal_the_reference():
    clips = [noise(length, 1) for length in (16_000, 7961, 500, WHOLE, 31_900)]
    for clip, features, mask in zip(clips, *extract(clips), strict=True):
        assert_equal(audio.log_mel(clip, CONFIG), features, mask)


def test_a_peak_in_the_frame_after_the_clip_counts():
    """A click lies at the edge of the window of the clip's last frame, and near the middle of the next frame, which is
    beyond the clip. That frame is the louder one, and all values are clamped to 8 decades below it."""
    clip = 1e-6 * noise(16_000)
    clip[-1] = 1.0
    (features,), (mask,) = extract(clip)
    own = features[:, mask]
    assert features[:, ~mask].max() > own.max() + 0.05
    assert_equal(audio.log_mel(clip, CONFIG), features, mask)


def test_a_longer_clip_is_not_cut():
    """The reference cuts it unless told otherwise; then nothing is padded."""
    clip = noise(WHOLE + 3_077)
    (features,), (mask,) = extract(clip)
    assert mask.sum() == WHOLE // 160
    (features,), (mask,) = extract(clip, truncation=False)
    found = audio.log_mel(clip, CONFIG)
    assert_equal(found, features, mask)
    np.testing.assert_array_equal(found, audio.log_mel(clip, audio.FeatureConfig()))


def test_padding_changes_only_the_last_frame():
    """The common frames of both rules are equal except for the last, which covers silence instead of a reflection."""
    clip = noise(8010)
    padded, plain = audio.log_mel(clip, CONFIG), audio.log_mel(clip, audio.FeatureConfig())
    assert (padded.shape[1], plain.shape[1]) == (51, 50)
    np.testing.assert_array_equal(padded[:, :49], plain[:, :49])
    assert np.abs(padded[:, 49] - plain[:, 49]).max() > 1e-3


def test_the_length_of_padding_does_not_change_a_clip():
    """As published. However long the silence, the clip's frames are the same."""
    clip = noise(16_037)
    (features,), (mask,) = extract(clip, seconds=300)
    assert features.shape == (128, 30_000)
    found = audio.log_mel(clip, audio.FeatureConfig(pad_seconds=300))
    assert_equal(found, features, mask)
    np.testing.assert_array_equal(found, audio.log_mel(clip, CONFIG))


def test_the_extractors_own_config_is_read():
    published = WhisperFeatureExtractor(feature_size=128, chunk_length=300).to_dict()
    assert audio.FeatureConfig.from_hf(published, padded=True) == audio.FeatureConfig(pad_seconds=300)
    assert audio.FeatureConfig.from_hf(published) == audio.FeatureConfig()
