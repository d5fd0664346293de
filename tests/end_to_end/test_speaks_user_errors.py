"""User errors in a request for speech raise one line, before anything is computed."""

import numpy as np
import pytest

from omni_jax import Sampling
from omni_jax.processing.batch import Batch
from tests.support.spoken import WRITTEN, user


def test_defaults_of_speech_come_from_the_checkpoint(omni):
    talker, predictor = omni.defaults.talker, omni.defaults.predictor
    assert (talker.max_new_tokens, talker.temperature, talker.top_k) == (4096, 0.9, 50)
    assert (talker.top_p, talker.repetition_penalty, talker.do_sample) == (1.0, 1.05, True)
    assert talker.eos == (omni.config.talker.codec_eos,)
    assert (predictor.top_k, predictor.top_p, predictor.temperature, predictor.do_sample) == (50, 0.8, 1.0, None)


@pytest.mark.parametrize(
    "words", ["Hello <|im_start|> there", "<|im_end|>", "a <|audio_pad|>", "<think>a</think> there"]
)
def test_control_tokens_in_a_given_text_are_refused(omni, words):
    with pytest.raises(ValueError, match=r"text: expected words to say, got .* which is a mark; leave it out"):
        omni.speak(words)


def test_a_given_text_must_follow_a_user_message(omni):
    answered = [*user(), {"role": "assistant", "content": "Yes."}]
    with pytest.raises(ValueError, match="conversation: expected messages that end in the user's"):
        omni.speak("Hi", conversation=answered)
    with pytest.raises(ValueError, match="conversation: expected a list of messages"):
        omni.speak("Hi", conversation="Hi")


CODES = {
    "a wrong number of codebooks": (np.zeros((1, 5, 3), int), None, r"expected .* of shape \[B, 4, Y\] or \[4, Y\]"),
    "fractions": (np.zeros((4, 3)), None, "expected whole numbers"),
    "an id beyond the codebook": (np.full((4, 3), 64), None, "expected ids from 0 to 63, got 64 to 64"),
    "a negative id": (np.full((4, 3), -1), None, "expected ids from 0 to 63, got -1 to -1"),
    "a length too large": (np.zeros((1, 4, 3), int), [4], "lengths: expected a number of frames from 0 to 3"),
    "too many lengths": (np.zeros((1, 4, 3), int), [1, 2], "for each of 1 rows"),
}


@pytest.mark.parametrize("case", CODES)
def test_wrong_codes_raise_one_line(omni, case):
    codes, lengths, said = CODES[case]
    with pytest.raises(ValueError, match=said) as error:
        omni.decode_codes(codes, lengths)
    assert "\n" not in str(error.value)


# --- user errors

REQUESTS = {
    "an unknown voice": ({"speaker": "Nobody"}, "speaker: expected one of chelsie, ethan, aiden, got 'Nobody'"),
    "too many voices": ({"speaker": ["Ethan"] * 2}, "speaker: expected one name, or one for each of the 1"),
    "a talker's stop string": ({"talker_stop_strings": "x"}, "talker_stop_strings: speech has no text"),
    "a predictor's length": ({"predictor_max_new_tokens": 3}, "predictor_max_new_tokens: expected predictor_... options"),
    "an unknown option": ({"talker_voice": "low"}, "unknown option talker_voice"),
    "return_audio in words": ({"return_audio": "no"}, "return_audio: expected True, False or None"),
    "return_audio of each": ({"return_audio": [True]}, "return_audio: expected True, False or None, one for all"),
    "too many ends of speech": ({"talker_eos_token_id": list(range(9))}, "talker_eos_token_id: expected at most 8 ids"),
    "a voice by another name": ({"voice": "Ethan"}, "unknown option voice; Expected speaker, return_audio, .* talker_..."),
    "a talker in words": ({"talker": "low"}, "talker: expected a Sampling, got str"),
}  # fmt: skip


@pytest.mark.parametrize("case", REQUESTS)
def test_a_wrong_request_raises_one_line(omni, case):
    options, said = REQUESTS[case]
    for ask in (omni.generate, omni.stream):
        with pytest.raises(ValueError, match=said) as error:
            ask(user(), **options)
        assert "\n" not in str(error.value)


def test_a_prompt_without_an_open_assistant_turn_is_not_spoken(omni):
    with pytest.raises(ValueError, match=r"must end in an open turn of the assistant .* return_audio=False") as error:
        omni.generate(Batch.from_tokens([[1, 2, 3]]), return_audio=True)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="must end in an open turn"):
        omni.generate(Batch.from_tokens([[1, 2, 3]]), speaker="Ethan")
    header = [omni.config.im_start, omni.config.assistant, 10]
    with pytest.raises(ValueError, match="row 1: to be spoken"):
        omni.generate_batch(Batch.from_tokens([header, [1, 2, 3]]))
    # Tokens alone give text only, unless sound is requested.
    assert omni.generate(Batch.from_tokens([[1, 2, 3]]), **WRITTEN).audio is None


def test_speech_without_a_talker_is_refused(writer):
    for ask in (lambda: writer.speak("Hi"), lambda: writer.generate(user(), return_audio=True)):
        with pytest.raises(ValueError, match=r"was loaded with speech=False"):
            ask()
    with pytest.raises(ValueError, match="decode_codes needs the vocoder"):
        writer.decode_codes(np.zeros((4, 3), int))


@pytest.mark.parametrize("words", ["", "  ", None, 7])
def test_an_empty_text_is_refused(omni, words):
    with pytest.raises(ValueError, match="text: expected something to say"):
        omni.speak(words)


def test_options_of_the_thinker_are_refused_with_a_given_text(omni):
    for options in ({"thinker_top_k": 3}, {"return_audio": True}, {"thinker": Sampling()}):
        with pytest.raises(ValueError, match="the text is given; leave it out"):
            omni.speak("Hi", **options)
