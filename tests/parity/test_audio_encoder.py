"""The audio encoder against Transformers: lengths around chunks and windows, and batches, also where it is wrong."""

import numpy as np
import pytest
import torch

from tests.parity.parity_close import assert_close

# The attention window of the tiny model is 2 chunks (200 frames): 450 frames are three windows, 999 are five.
SINGLE = [1, 2, 7, 8, 9, 37, 49, 50, 99, 100, 101, 108, 199, 200, 201, 237, 450, 999]


def mel(frames, seed=0):
    return np.random.default_rng([seed, frames]).normal(size=(128, frames)).astype(np.float32)


def theirs(reference, clips):
    """The reference takes clips packed along time, with their lengths."""
    tower = reference.thinker.model.audio_tower
    with torch.no_grad():
        out = tower(
            torch.from_numpy(np.concatenate(clips, axis=1)), feature_lens=torch.tensor([c.shape[1] for c in clips])
        )
    return out.last_hidden_state.numpy()


@pytest.mark.parametrize("frames", SINGLE)
def test_a_single_clip_equals_the_reference(omni, reference, frames):
    clip = mel(frames)
    assert_close(omni.encode_audio([clip])[0], theirs(reference, [clip]))


@pytest.mark.parametrize("frames", [[100, 1000, 237], [450, 101], [200, 200], [1234, 100, 333, 100]])
def test_clips_of_a_second_or_more_equal_the_reference_in_one_call(omni, reference, frames):
    clips = [mel(n, seed) for seed, n in enumerate(frames)]
    assert_close(np.concatenate(omni.encode_audio(clips)), theirs(reference, clips))


@pytest.mark.parametrize("frames", [[37, 237], [4, 100], [8, 9], [60, 37, 999, 1]])
def test_short_clips_in_a_batch_equal_themselves_alone(omni, reference, frames):
    """The reference pads every clip of a call to the longest chunk in it, and the padding leaks through the convolutions:
    a clip of 37 frames beside one of 237 differs from the same clip alone. Alone is right (docs/parity.md)."""
    clips = [mel(n, seed) for seed, n in enumerate(frames)]
    ours = omni.encode_audio(clips)
    for clip, features in zip(clips, ours, strict=True):
        assert_close(features, theirs(reference, [clip]))


def test_the_reference_differs_in_a_batch(reference):
    """If this fails, Transformers was fixed, and the line in docs/parity.md can be removed."""
    short, long = mel(4), mel(237)
    together = theirs(reference, [short, long])[:1]
    assert np.abs(together - theirs(reference, [short])).max() > 1e-3


def test_a_padded_array_with_mask_or_lengths_equals_the_reference(omni, reference):
    clips = [mel(n, seed) for seed, n in enumerate([237, 450, 100])]
    array = np.zeros((3, 128, 470), np.float32)
    for row, clip in zip(array, clips, strict=True):
        row[:, : clip.shape[1]] = clip
        row[:, clip.shape[1] :] = -1.3  # padded log-mel frames are not zero
    lengths = np.array([237, 450, 100])
    mask = (np.arange(470) < lengths[:, None]).astype(np.int32)
    expected = theirs(reference, clips)
    for features in (omni.encode_audio(array, mask=mask), omni.encode_audio(array, lengths=lengths)):
        assert_close(np.concatenate(features), expected)


def test_several_windows_of_the_published_width_equal_the_reference(tmp_path):
    """Windows of 8 chunks as published (104 tokens): 25 s are four of them, and the 9th second does not change the 1st."""
    from transformers import Qwen3OmniMoeForConditionalGeneration

    from omni_jax import Omni
    from omni_jax.testing import tiny_config, write_tiny

    config = tiny_config()
    config["thinker_config"]["audio_config"]["n_window_infer"] = 800
    folder = write_tiny(tmp_path, config=config, seed=3)
    reference = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    omni, clip = Omni.load(folder, speech=False), mel(2517)
    ours = np.asarray(omni.encode_audio([clip])[0])
    assert ours.shape[0] == 25 * 13 + 3
    assert_close(ours, theirs(reference, [clip]))
    clip[:, 800:] += 1
    changed = np.asarray(omni.encode_audio([clip])[0])
    np.testing.assert_array_equal(changed[:104], ours[:104])
    assert np.abs(changed[104:] - ours[104:]).max() > 1e-3
