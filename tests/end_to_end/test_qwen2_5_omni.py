"""Qwen2.5-Omni through the facade: streams, batches and given texts equal whole single replies; refusals."""

import warnings

import jax
import numpy as np
import pytest

from omni_jax import Omni
from omni_jax.models.qwen2_5_omni.dit import frame_noise
from omni_jax.processing.conversation import SPOKEN_SYSTEM
from omni_jax.speech.qwen2_5_omni import noise_seed
from omni_jax.testing import write_tiny
from omni_jax.testing.qwen2_5_omni import tiny_qwen2_5_config

GREEDY = {"thinker_max_new_tokens": 8, "talker_max_new_tokens": 60, "talker_do_sample": False}
# Tolerance of a stream's windows, relative to the largest sample (speech/token2wav.py).
STREAMED = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("qwen2_5") / "model", config=tiny_qwen2_5_config())


@pytest.fixture(scope="module")
def omni(folder):
    return Omni.load(folder)


def user(words="Hello"):
    return [{"role": "system", "content": SPOKEN_SYSTEM}, {"role": "user", "content": words}]


@pytest.fixture(scope="module")
def whole(omni):
    return omni.generate(user(), **GREEDY)


def close(found, wanted, tolerance):
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def test_a_spoken_reply_has_codes_and_audio(omni, whole):
    assert omni.speakers == ("Chelsie", "Ethan")
    assert whole.codes.shape == (1, 60)
    assert whole.audio.shape == (480 * 60,)
    assert (whole.sample_rate, whole.speech_finish_reason) == (24_000, "length")
    close(omni.decode_codes(whole.codes, speaker="Chelsie", seed=0), whole.audio, 1e-6)
    with pytest.raises(ValueError, match="codes: expected ids from 0 to 95, got 0 to 96"):
        omni.decode_codes(np.array([[0, 96]]))


def test_given_noise_is_used(omni, whole):
    """The seed's noise, given, makes the seed's samples, for codes alone and in a batch."""
    seed, how = np.uint32(noise_seed(0)), {"speaker": "Chelsie"}
    noise = np.asarray(frame_noise(jax.random.key(seed), 120, omni.parts.dit.config.mel_bins))
    close(omni.decode_codes(whole.codes, noise=noise.tolist(), **how), whole.audio, 1e-6)
    close(omni.decode_codes(whole.codes[None], noise=noise[None], **how)[0], whole.audio, 1e-6)


NO_NOISE = {
    "too little": ({"noise": np.zeros((3, 6, 16))}, r"noise: expected shape \[3, 8, 16\], .*, got \[3, 6, 16\]"),
    "too much": ({"noise": np.zeros((3, 500, 16))}, r"noise: expected shape \[3, 8, 16\], .*, got \[3, 500, 16\]"),
    "of one row": ({"noise": np.zeros((8, 16))}, r"noise: expected shape \[3, 8, 16\], .*, got \[8, 16\]"),
    "of words": ({"noise": [["a"]]}, "noise: expected an array of numbers, got <U1"),
    "uneven": ({"noise": [[0.0], [0.0, 1.0]]}, "noise: expected an array of numbers, got list"),
    "beside a seed": ({"noise": np.zeros((3, 8, 16)), "seed": 0}, "expected either seed or noise .* got both"),
    "too few seeds": ({"seed": [1, 2]}, r"seed: expected one whole number, or one for each of 3 rows, got \[1, 2\]"),
    "half a seed": ({"seed": 1.5}, "seed: expected one whole number, .* got 1.5"),
}


@pytest.mark.parametrize("case", NO_NOISE)
def test_wrong_noise_is_refused(omni, case):
    options, message = NO_NOISE[case]
    with pytest.raises(ValueError, match=message):
        omni.decode_codes(np.zeros((3, 1, 4), int), **options)


def test_a_stream_equals_the_whole(omni, whole):
    """Text and codes are equal, samples as near as a window's look-ahead allows; sound comes before the last text."""
    events = list(omni.stream(user(), steps=1, **GREEDY))
    assert "".join(event.text for event in events) == whole.text
    sound = [event.audio for event in events if event.audio is not None]
    assert len(sound) > 1
    last = events[-1].reply
    assert (last.tokens, last.text) == (whole.tokens, whole.text)
    np.testing.assert_array_equal(last.codes, whole.codes)
    np.testing.assert_array_equal(np.concatenate(sound), last.audio)
    close(last.audio, whole.audio, STREAMED)


def test_rows_of_a_batch_equal_their_single_runs(omni):
    """Sampled rows of other lengths, voices and seeds."""
    asked, how = [user(), user("And you, my friend?"), user("Ho")], {**GREEDY, "talker_do_sample": True}
    rows = omni.generate_batch(asked, seed=[3, 4, 5], speaker=["Ethan", "Chelsie", "Ethan"], **how)
    for row, one, seed, name in zip(rows, asked, (3, 4, 5), ("ethan", "chelsie", "ETHAN"), strict=True):
        alone = omni.generate(one, seed=seed, speaker=name, **how)
        assert row.tokens == alone.tokens
        np.testing.assert_array_equal(row.codes, alone.codes)
        close(row.audio, alone.audio, 1e-5)
    assert len({row.codes.tobytes() for row in rows}) == 3


def test_a_given_text_has_the_codes_of_a_written_one(omni):
    """The thinker's reply, given as text, has the same states at its words and so the same codes."""
    written = omni.generate(user(), **{**GREEDY, "thinker_eos_token_id": 0, "thinker_max_new_tokens": 6})
    words = omni.tokenizer.decode(written.tokens[:-1])  # a reply cut by its length lacks its last word
    assert omni.tokenizer.encode(words) == written.tokens[:-1]
    how = {name: value for name, value in GREEDY.items() if name.startswith("talker")}
    spoken = omni.speak(words, conversation=user(), **how)
    np.testing.assert_array_equal(spoken.codes, written.codes)
    close(spoken.audio, written.audio, 1e-5)
    streamed = list(omni.stream_speech(words, conversation=user(), **how))[-1].reply
    np.testing.assert_array_equal(streamed.codes, written.codes)


def test_text_without_speech(omni, folder, whole):
    """``return_audio=False`` makes no sound; ``speech=False`` loads no parts of speech."""
    silent = omni.generate(user(), return_audio=False, thinker_max_new_tokens=8)
    assert (silent.tokens, silent.audio, silent.codes) == (whole.tokens, None, None)
    writer = Omni.load(folder, speech=False)
    assert set(writer.parts) == {"thinker", "audio_encoder", "vision_encoder"}
    assert writer.generate(user(), thinker_max_new_tokens=8).tokens == whole.tokens
    with pytest.raises(ValueError, match="return_audio=True, but this checkpoint was loaded with speech=False"):
        writer.generate(user(), return_audio=True)


def test_replies_that_the_reference_cannot_speak_are_silent(omni, whole):
    """A reply of one token, and speech that ends at once; one code already makes sound."""
    for options in ({"thinker_max_new_tokens": 1}, {"talker_eos_token_id": int(whole.codes[0, 0])}):
        reply = omni.generate(user(), **{**GREEDY, **options})
        assert (reply.codes.shape, reply.audio.shape) == ((1, 0), (0,))
    assert omni.generate(user(), **{**GREEDY, "talker_max_new_tokens": 1}).audio.shape == (480,)


def test_a_missing_system_prompt_of_speech_gives_a_warning(omni):
    """There is a warning where it is absent, as in the original; none without speech or for a given text."""
    with pytest.warns(UserWarning, match="You are Qwen, a virtual human"):
        omni.generate([{"role": "user", "content": "Hello"}], **GREEDY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        omni.generate(user(), **GREEDY)
        omni.generate([{"role": "user", "content": "Hello"}], return_audio=False, thinker_max_new_tokens=2)
        omni.speak("Hello", talker_max_new_tokens=2)


REFUSED = {
    "a voice of the other family": ({"speaker": "Aiden"}, "speaker: expected one of Chelsie, Ethan, got 'Aiden'"),
    "codes of a predictor": ({"predictor_top_k": 5}, "predictor: a frame of this family is one code"),
    "another release": ({"compat": "4.52"}, "compat: expected None or 'transformers-5.23', got '4.52'"),
    "a limit without a prefix": ({"max_new_tokens": 5}, "did you mean thinker_max_new_tokens"),
    "more than the vocoder holds": ({"talker_max_new_tokens": 20_000}, "expected at most 16384 codes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_options_are_refused(omni, case):
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        omni.generate(user(), **options)


def test_a_converted_checkpoint_speaks_the_same(omni, whole, tmp_path):
    omni.save(tmp_path / "converted")
    again = Omni.load(tmp_path / "converted")
    reply = again.generate(user(), **GREEDY)
    np.testing.assert_array_equal(reply.codes, whole.codes)
    close(reply.audio, whole.audio, 1e-6)
