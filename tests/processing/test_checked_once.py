"""Media are scanned for NaN and infinities once, where they enter, and never again on their way to an encoder."""

from dataclasses import replace

import numpy as np
import pytest

from omni_jax.engine import encode
from omni_jax.processing.arrays import Finite
from omni_jax.processing.batch import Batch, joined
from omni_jax.processing.media import Visual, audio, audio_file
from tests.support.conversations import sound, user

RANDOM = np.random.default_rng(0)


@pytest.fixture
def scans(monkeypatch):
    """The number of scanned values: of arrays by NumPy, and of samples by their extremes."""
    counted, isfinite, all_finite = [], np.isfinite, audio_file.all_finite

    def counting(values, *rest, **named):
        if np.size(values) > 16:  # the mean of colours is no medium
            counted.append(np.size(values))
        return isfinite(values, *rest, **named)

    def counting_samples(samples):
        if samples.size:
            counted.append(samples.size)
        return all_finite(samples)

    monkeypatch.setattr(np, "isfinite", counting)
    for module in (audio, audio_file):
        monkeypatch.setattr(module, "all_finite", counting_samples)
    return counted


def used(omni, batch):
    """What a request does with a batch up to its embeddings, and what jobs do with several."""
    copy = joined([batch.located(omni.config.thinker).justified().padded()])
    for each in (batch, replace(batch, tokens=batch.tokens.copy()), copy):
        encode.embed(omni.parts, encode.pad_and_index(each, omni.config.thinker), omni.config.thinker)


def test_a_conversations_sound_is_scanned_once_as_samples(omni, scans):
    """The features of finite samples and of pixels are finite."""
    picture = RANDOM.integers(0, 255, (64, 64, 3), np.uint8)
    batch = omni.prepare(user(sound(0.5), {"type": "image", "image": picture}))
    used(omni, batch)
    assert scans == [8_000]


def test_a_processors_media_are_scanned_once(omni, scans):
    prepared = omni.prepare(user(sound(0.5), {"type": "image", "image": np.zeros((64, 64, 3))}))
    (mel,), (image,) = prepared.mel, prepared.images
    scans.clear()
    batch = Batch.from_hf(
        {
            "input_ids": prepared.tokens,
            "input_features": mel[None],
            "feature_attention_mask": np.ones((1, mel.shape[1]), np.int32),
            "pixel_values": image.patches,
            "image_grid_thw": [image.grid],
        }
    )
    assert sorted(scans) == sorted([mel.size, image.patches.size])
    used(omni, batch)
    assert len(scans) == 2


def test_a_users_media_are_scanned_once_and_again_when_replaced(omni, scans):
    prepared = omni.prepare(user(sound(0.5), {"type": "image", "image": np.zeros((64, 64, 3))}))
    scans.clear()
    batch = Batch.from_tokens(prepared.tokens, None, list(prepared.mel), list(prepared.images))
    assert sorted(scans) == sorted([prepared.mel[0].size, prepared.images[0].patches.size])
    used(omni, batch)
    assert len(scans) == 2
    with pytest.raises(ValueError, match="mel: clip 0: expected numbers, got NaN or infinite values"):
        replace(batch, mel=(np.full_like(batch.mel[0], np.nan),))
    burnt = Visual(np.full_like(batch.images[0].patches, np.inf), batch.images[0].grid)
    with pytest.raises(ValueError, match=r"image 0: expected patches of shape .*, got NaN or infinite values"):
        replace(batch, images=(burnt,))
    text = Visual(np.ones((1, 1), np.float32), (1, 1, 1))
    object.__setattr__(text, "patches", np.array([["a"]]))  # tests check a constructor's shapes, users' programs do not
    with pytest.raises(ValueError, match=r"video 0: expected patches of shape .*, got <U1"):
        replace(batch, videos=(text,))


def test_the_parts_alone_scan_once(omni, scans):
    mel = RANDOM.normal(size=(128, 50)).astype(np.float32)
    omni.encode_audio([mel])
    assert scans == [mel.size]
    scans.clear()
    patches = RANDOM.normal(size=(16, omni.config.thinker.vision_encoder.patch_width)).astype(np.float32)
    omni.encode_vision(patches, [[1, 4, 4]])
    assert scans == [patches.size]


def test_copies_of_a_batch_keep_the_type_that_says_so():
    batch = Batch.from_tokens([[1, 2]], mel=[np.zeros((128, 8))])
    for each in (batch, batch.justified(), batch.padded(), joined([batch])):
        assert all(isinstance(media, Finite) for media in (each.mel, each.images, each.videos))
    assert batch.mel[0].dtype == np.float32
