"""Prompts with sound, images and videos: logits and greedy tokens equal Transformers', each row as it is alone."""

import numpy as np
import pytest
import torch

from omni_jax.processing.batch import Batch
from tests.parity.parity_close import assert_close
from tests.parity.parity_scenes import batch, scene, theirs

NEW = 16
VIDEO, SOUNDING = ("video", (3, 4, 6), 1.0), ("sounding", (3, 4, 4), 1.0, 300)
CASES = {
    "one image": [("image", 4, 6)],
    "images of different sizes": [("image", 4, 6), ("image", 10, 2), ("image", 2, 2), ("image", 20, 14)],
    "a video": [VIDEO],
    "a video of fractional steps": [("video", (4, 4, 4), 0.7)],
    "image and video": [("image", 6, 4), VIDEO, ("image", 4, 4)],
    "two videos": [VIDEO, ("video", (1, 8, 4), 2.0)],
    "video with sound": [SOUNDING],
    "a still with sound that ends before its last position": [("sounding", (1, 16, 16), 2.0, 20)],
    "sound longer than its video": [("sounding", (2, 4, 4), 2.0, 1250)],
    "audio and image": [("audio", 237), ("image", 4, 6)],
    "audio, image, silent video": [("audio", 120), ("image", 4, 6), VIDEO, ("audio", 1000)],
    "audio, image, video with sound": [("audio", 120), ("image", 4, 6), SOUNDING, ("audio", 101)],
}


@pytest.fixture(scope="module")
def omni(writer):
    """Text only; speech is tested in test_speaks.py."""
    return writer


def logits(reference, scenes, **how):
    with torch.no_grad():
        return reference.thinker(**theirs(scenes, **how)).logits.numpy()


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_reference(omni, reference, case):
    row = scene(omni, *CASES[case])
    assert_close(omni.logits(batch([row])), logits(reference, [row]))


@pytest.mark.parametrize("case", CASES)
def test_a_processors_output_with_its_flag_equals_the_reference(omni, reference, case):
    row = scene(omni, *CASES[case], seed=1)
    assert_close(omni.logits(Batch.from_hf(theirs([row]))), logits(reference, [row]))


@pytest.mark.parametrize("left", [True, False])
def test_unequal_rows_equal_the_reference(omni, reference, left):
    """All kinds of media in a batch with silent videos, also rows without media, with padding on either side."""
    rows = [
        scene(omni, ("image", 4, 6), VIDEO, words=9),
        scene(omni, words=3, seed=1),
        scene(omni, ("audio", 237), seed=2),
        scene(omni, VIDEO, ("audio", 120), ("image", 6, 6), ("image", 2, 8), seed=3),
    ]
    made = batch(rows, left=left)
    assert_close(np.asarray(omni.logits(made))[made.mask], logits(reference, rows, left=left)[made.mask])


def test_rows_of_videos_with_and_without_sound_equal_the_reference_alone(omni, reference):
    """The reference has one flag for all videos and gives silent ones positions of text; each row alone is right."""
    rows = [scene(omni, SOUNDING, words=9), scene(omni, VIDEO, seed=1), scene(omni, ("image", 4, 4), SOUNDING, seed=2)]
    made = batch(rows)
    together = np.asarray(omni.logits(made))
    for row, mask, ours in zip(rows, made.mask, together, strict=True):
        assert_close(ours[mask], logits(reference, [row])[0])


def test_the_reference_misplaces_silent_videos_in_such_a_batch(omni, reference):
    """If this fails, Transformers was fixed, and the line in docs/parity.md can be removed."""
    rows = [scene(omni, SOUNDING, words=9), scene(omni, VIDEO, seed=1)]
    mask = batch(rows).mask[1]
    assert np.abs(logits(reference, rows)[1][mask] - logits(reference, rows[1:])[0]).max() > 1e-2


def test_videos_with_and_without_sound_in_one_row_equal_two_turns(omni):
    """A silent video after one with sound, which the reference cannot do, equals two separate turns."""
    row = scene(omni, SOUNDING, VIDEO)
    located = batch([row]).located(omni.config.thinker)
    steps = located.positions[0, 0][located.tokens[0] == omni.config.thinker.video_token][-18:].reshape(3, 6)
    np.testing.assert_allclose(steps - steps[0, 0], np.repeat([[0], [13], [26]], 6, axis=1))
    assert np.isfinite(np.asarray(omni.logits(located))).all()


def greedy(reference, scenes):
    inputs = theirs(scenes)
    with torch.no_grad():
        out = reference.thinker.generate(
            **inputs, do_sample=False, pad_token_id=0, eos_token_id=None, max_new_tokens=NEW
        )
    return out[:, inputs["input_ids"].shape[1] :].tolist()


def answer(omni, scenes):
    options = {"thinker_max_new_tokens": NEW, "thinker_eos_token_id": (-1,), "thinker_do_sample": False}
    return [reply.tokens for reply in omni.generate_batch(batch(scenes), **options)]


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_equal_the_reference(omni, reference, case):
    row = scene(omni, *CASES[case], seed=2)
    assert answer(omni, [row]) == greedy(reference, [row])


def test_greedy_tokens_of_a_batch_equal_the_reference(omni, reference):
    rows = [scene(omni, SOUNDING, words=9), scene(omni, VIDEO, seed=1), scene(omni, ("image", 4, 4), seed=2)]
    assert answer(omni, rows) == [greedy(reference, [row])[0] for row in rows]
