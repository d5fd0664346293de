"""Known pitfalls of feeding the audio encoder alone, in both families (docs/audio-encoder.md)."""

import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax import Omni
from omni_jax.testing import tiny_config, write_tiny
from omni_jax.testing.qwen2_5_omni import tiny_qwen2_5_config

LENGTHS = [37, 200, 450]
COUNTS = {"Qwen2.5-Omni": [9, 50, 112], "Qwen3-Omni": [5, 26, 59]}
CONFIGS = {"Qwen2.5-Omni": tiny_qwen2_5_config, "Qwen3-Omni": tiny_config}


@pytest.fixture(scope="module", params=CONFIGS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def omni(family, tmp_path_factory):
    return Omni.load(write_tiny(tmp_path_factory.mktemp("model") / "it", config=CONFIGS[family]()), speech=False)


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(128, length)).astype(np.float32) for length in LENGTHS]


@pytest.fixture(scope="module")
def alone(omni, clips):
    return [np.asarray(omni.encode_audio([clip])[0]) for clip in clips]


def padded(clips, fill=-1.5):
    """Clips as a processor pads them: not with zeros, and far beyond the longest clip."""
    mel = np.full((len(clips), 128, 900), fill, np.float32)
    for row, clip in zip(mel, clips, strict=True):
        row[:, : clip.shape[1]] = clip
    return mel


def same(found, wanted):
    assert len(found) == len(wanted)
    for ours, alone in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(ours), alone, atol=2e-6 * np.abs(alone).max())


def test_all_layouts_give_equal_features(omni, clips, alone):
    """A list, a padded array with a mask or lengths, and packed clips give the same features."""
    mask = np.arange(900) < np.array(LENGTHS)[:, None]
    same(omni.encode_audio(clips), alone)
    same(omni.encode_audio(padded(clips), mask=mask.astype(np.int32)), alone)
    same(omni.encode_audio(padded(clips), lengths=LENGTHS), alone)
    same(omni.encode_audio(np.concatenate(clips, axis=1), lengths=LENGTHS), alone)


def test_one_clip_may_have_two_or_three_axes(omni, clips, alone):
    same(omni.encode_audio(clips[0][None]), alone[:1])
    same(omni.encode_audio(clips[0]), alone[:1])
    same(omni.encode_audio(padded(clips[:1]), lengths=LENGTHS[:1]), alone[:1])


def test_the_number_of_tokens_is_the_published_rule(family, omni, alone):
    encoder = omni.config.thinker.audio_encoder
    assert [len(features) for features in alone] == COUNTS[family]
    assert encoder.tokens(np.array(LENGTHS)).tolist() == COUNTS[family]
    assert encoder.tokens(3000) == {"Qwen2.5-Omni": 750, "Qwen3-Omni": 390}[family]


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_the_input_is_cast_to_the_weights(omni, clips, dtype):
    given = [jnp.asarray(clip).astype(dtype) if dtype == "bfloat16" else clip.astype(dtype) for clip in clips]
    found = omni.encode_audio(given)
    same(found, [np.asarray(row) for row in omni.encode_audio([np.asarray(clip, np.float32) for clip in given])])
    assert all(row.dtype == jnp.float32 for row in found)


def test_a_clip_too_short_for_a_token_has_empty_features(family, omni, clips, alone):
    short, *rest = omni.encode_audio([clips[0][:, :2], clips[1]])
    assert short.shape == ({"Qwen2.5-Omni": 0, "Qwen3-Omni": 1}[family], 64)
    same(rest, alone[1:2])


def test_sound_over_300_seconds_is_encoded_whole(omni):
    """The end has the features that it has alone: distant chunks do not attend to each other."""
    mel = np.random.default_rng(1).normal(size=(128, 31_200 + 130)).astype(np.float32)
    whole = np.asarray(omni.encode_audio([mel])[0])
    tail = np.asarray(omni.encode_audio([mel[:, 30_400:]])[0])  # preceded by a whole number of chunks and windows
    assert len(whole) == omni.config.thinker.audio_encoder.tokens(31_330)
    np.testing.assert_allclose(whole[-len(tail) :], tail, atol=2e-6 * np.abs(tail).max())


WRONG = {
    "another order": (
        lambda mel: {"mel": mel.swapaxes(1, 2)},
        r"clip 0: expected shape \[128, A\] \(mel bins, frames\), got",
    ),
    "four axes": (lambda mel: {"mel": mel[None]}, r"expected a list of \[128, A\] or one \[B, 128, A\] array"),
    "packed, wrong lengths": (
        lambda mel: {"mel": np.concatenate(list(mel), axis=1), "lengths": LENGTHS},
        "expected whole numbers that add up to the 2700 packed frames of mel",
    ),
    "lengths beyond the array": (lambda mel: {"mel": mel, "lengths": [901, 1, 1]}, "expected 1 to 900 frames a clip"),
    "fewer lengths than clips": (lambda mel: {"mel": mel, "lengths": [5]}, "expected 3 whole numbers, one a clip"),
    "a mask of another shape": (lambda mel: {"mel": mel, "mask": np.ones((3, 5))}, r"mask: expected shape \(3, 900\)"),
    "a clip without frames": (lambda mel: {"mel": mel, "lengths": [5, 0, 5]}, "clip 1: expected at least one frame"),
    "no numbers": (lambda mel: {"mel": np.array(["a.wav"])}, "encode_audio takes log-mel, not files"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_raises_one_line(omni, clips, case):
    make, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as caught:
        omni.encode_audio(**make(padded(clips)))
    assert "\n" not in str(caught.value)
