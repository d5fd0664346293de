"""The audio encoder: a clip does not depend on other clips or padding; few programs and bounded memory."""

import numpy as np
import pytest

from omni_jax.buckets import CHUNK_SLOTS
from omni_jax.config import AudioEncoderConfig
from omni_jax.engine import encode
from omni_jax.processing.audio_packing import pack

# The published attention window and chunk; one mel bin, so that hours of sound stay small.
PUBLISHED = AudioEncoderConfig(
    mel_bins=1, layers=32, width=1280, heads=20, ffn_width=5120, channels=480, chunk_frames=100, window_chunks=8,
    out_width=2048,
)  # fmt: skip
SHORTEST, LONGEST = 10, 240_000  # frames of 0.1 s and of 40 minutes


def clip(frames, seed=0):
    return np.random.default_rng([seed, frames]).normal(size=(128, frames)).astype(np.float32)


def silence(frames):
    """A clip of one mel bin that takes no memory."""
    return np.broadcast_to(np.float32(0), (1, frames))


def assert_close(found, expected):
    """Equal up to rounding: another number of clips in a call may change the order of additions."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


# --- a clip does not depend on others


@pytest.mark.parametrize("frames", [[37, 237, 1], [100, 99, 101], [450, 8, 200, 333]])
def test_a_clip_in_a_batch_equals_the_clip_alone(omni, frames):
    clips = [clip(n, seed) for seed, n in enumerate(frames)]
    together = omni.encode_audio(clips)
    assert [len(features) for features in together] == [omni.config.thinker.audio_encoder.tokens(n) for n in frames]
    for one, features in zip(clips, together, strict=True):
        assert_close(features, omni.encode_audio([one])[0])


def test_padded_equals_unpadded(omni):
    frames = np.array([37, 237, 100])
    clips = [clip(n, seed) for seed, n in enumerate(frames)]
    array = np.full((3, 128, 300), np.nan, np.float32)  # nothing beyond a clip's own frames may be read
    for row, one in zip(array, clips, strict=True):
        row[:, : one.shape[1]] = one
    mask = np.arange(300) < frames[:, None]
    alone = omni.encode_audio(clips)
    for found in (omni.encode_audio(array, lengths=frames), omni.encode_audio(array, mask=mask.astype(int))):
        for features, expected in zip(found, alone, strict=True):
            np.testing.assert_array_equal(features, expected)
    assert_close(omni.encode_audio(clips[1])[0], alone[1])  # one clip [Z, A] without a batch


def test_the_order_of_clips_does_not_matter_and_a_second_call_is_equal(omni):
    clips = [clip(n) for n in (37, 237, 100)]
    first, again, turned = omni.encode_audio(clips), omni.encode_audio(clips), omni.encode_audio(clips[::-1])
    for features, same, other in zip(first, again, turned[::-1], strict=True):
        np.testing.assert_array_equal(features, same)
        assert_close(features, other)


def test_a_long_clip_over_several_calls_equals_its_windows(omni):
    """The tiny window is two chunks, so 60 s of sound are two calls; each window alone gives the same features."""
    sound = clip(6000)
    assert len(list(pack([sound], omni.config.thinker.audio_encoder))) == 2
    whole = omni.encode_audio([sound])[0]
    windows = omni.encode_audio([sound[:, at : at + 200] for at in range(0, 6000, 200)])
    assert_close(whole, np.concatenate(windows))


def test_no_clips_have_no_features(omni):
    assert omni.encode_audio([]) == []


@pytest.mark.parametrize(
    ("mel", "options", "said"),
    [
        (np.zeros((2, 128, 50)), {"lengths": [50, 51]}, "lengths: expected 1 to 50 frames a clip"),
        (np.zeros((2, 128, 50)), {"lengths": [50]}, "lengths: expected 2 whole numbers, one a clip"),
        (np.zeros((2, 80, 50)), {}, r"clip 0: expected shape \[128, A\]"),
    ],
)
def test_wrong_input_raises_one_line(omni, mel, options, said):
    with pytest.raises(ValueError, match=said) as error:
        omni.encode_audio(mel, **options)
    assert "\n" not in str(error.value)


# --- programs, padding and memory


def shapes(clips, config):
    return {item.mel.shape for item in pack(clips, config)}


@pytest.mark.parametrize("windows", [1, 2, 8])
def test_any_clips_need_at_most_twelve_programs(windows):
    """Sets of clips from 0.1 s to 40 minutes: the shapes of the calls are the programs."""
    config = AudioEncoderConfig(**(vars(PUBLISHED) | {"window_chunks": windows}))
    rng, found = np.random.default_rng(windows), set()
    for _ in range(60):
        frames = np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST), rng.integers(1, 9)))
        found |= shapes([silence(int(n)) for n in np.minimum(frames, 30_000)], config)
    for n in [SHORTEST, LONGEST, *range(100, 6000, 100)]:
        found |= shapes([silence(n)], config)
    assert found <= {(size, 1, 100) for size in CHUNK_SLOTS}
    assert 6 <= len(found) <= 12


def test_only_programs_of_those_shapes_compile(omni):
    config, rng, found = omni.config.thinker.audio_encoder, np.random.default_rng(0), set()
    encode.audio_features.clear_cache()
    for _ in range(12):
        clips = [clip(int(n)) for n in rng.integers(SHORTEST, 250, rng.integers(1, 4))]
        found |= shapes(clips, config)
        omni.encode_audio(clips)
        assert encode.audio_features._cache_size() == len(found)
    assert {size for size, *_ in found} == {1, 2, 4, 8}


def test_padding_is_at_most_thirty_percent_beyond_ten_seconds():
    """Every number of chunks, each with the fewest frames that need it."""
    for chunks in [*range(11, 300), *range(300, LONGEST // 100, 83), LONGEST // 100]:
        frames = 100 * (chunks - 1) + 1
        slots = sum(len(item.mel) for item in pack([silence(frames)], PUBLISHED))
        assert slots * 100 <= 1.3 * frames, chunks


@pytest.mark.parametrize("frames", [[LONGEST], [30_000, 7, 5_650, 801, 99], [801] * 40])
def test_no_call_is_larger_than_its_bound(frames):
    for item in pack([silence(n) for n in frames], PUBLISHED):
        assert len(item.mel) <= 56
        assert item.window.shape == (len(item.mel), 13)


def test_forty_minutes_are_31_200_tokens():
    calls = list(pack([silence(LONGEST)], PUBLISHED))
    assert PUBLISHED.tokens(LONGEST) == 31_200
    order = np.concatenate([item.order[item.order >= 0] for item in calls])
    np.testing.assert_array_equal(order, np.arange(31_200))
    assert len(calls) == 43


def test_forty_minutes_are_encoded_and_the_first_equals_itself_alone(omni):
    """31,200 tokens; the first minute equals itself alone."""
    mel = np.random.default_rng(0).normal(size=(128, 240_000)).astype(np.float32)
    features = omni.encode_audio([mel])[0]
    assert features.shape == (31_200, omni.config.thinker.decoder.width)
    alone = omni.encode_audio([mel[:, :5_600]])[0]
    np.testing.assert_allclose(features[: 56 * 13], alone, atol=1e-5)
