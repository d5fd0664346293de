"""Options of every wrong type give one short line or a right answer, never another error."""

import numpy as np
import pytest

from omni_jax import Omni

U = [{"role": "user", "content": "Hi"}]
WRONG = [
    1.5,
    -1,
    "4",
    [1],
    np.array(3),
    np.zeros(2),
    b"x",
    {},
    {"tokenizer": 1},
    10**400,
    float("nan"),
    True,
    object(),
    "x" * 10_000,
    np.broadcast_to(np.int32(1), (10**6, 10**6, 10)),  # more than any memory
]
WRITING = (
    "speaker", "seed", "return_audio", "compat", "media", "tools", "template", "progress", "thinker", "talker", "predictor",
    "thinker_max_new_tokens", "thinker_min_new_tokens", "thinker_do_sample", "thinker_temperature", "thinker_top_k",
    "thinker_top_p", "thinker_repetition_penalty", "thinker_eos_token_id", "thinker_stop_strings", "talker_temperature",
    "predictor_top_k", "steps", "num_beams", "use_cache", "spk", "generation_mode", "temperature", "max_new_tokens",
)  # fmt: skip
READING = (
    "fps", "nframes", "min_pixels", "max_frames", "video_start", "audio_end", "use_audio_in_video", "max_bytes", "timeout",
    "allow_private", "tools", "template", "media", "progress", "enable_thinking", "x" * 600,
)  # fmt: skip
INTERNAL = ("given", "conversations", "base", "options", "batch", "defaults", "synthesizer", "asked", "self_", "alone")


def tried(call):
    """Runs a call that may only raise a ValueError of one short line."""
    try:
        return call()
    except ValueError as caught:
        error = caught
    assert "\n" not in str(error)
    assert 10 < len(str(error)) < 500
    return error


@pytest.mark.parametrize("name", WRITING)
def test_any_value_of_a_generation_option_is_taken_or_refused_in_one_line(omni, name):
    for value in WRONG:
        tried(lambda value=value: omni.stream(U, **{name: value}))  # checked by the call itself, before the first event


@pytest.mark.parametrize("name", READING)
def test_any_value_of_a_media_option_is_taken_or_refused_in_one_line(omni, name):
    for value in WRONG:
        tried(lambda value=value: omni.prepare(U, **{name: value}))
        tried(lambda value=value: omni.stream(U, **{name: value}))


@pytest.mark.parametrize("name", INTERNAL)
def test_internal_names_are_unknown_options(omni, name):
    for call in (omni.stream, omni.generate):
        with pytest.raises(ValueError, match=f"unknown option {name}"):
            call(U, **{name: 2**31})
    with pytest.raises(ValueError, match=f"unknown option {name}"):
        omni.stream_speech("Hi", **{name: 2**31})


def test_any_value_of_other_arguments_is_taken_or_refused_in_one_line(omni):
    codes = np.zeros((1, 4, 1), np.int64)
    for value in [*WRONG, None]:
        if not isinstance(value, str):
            assert isinstance(tried(lambda value=value: omni.speak(value)), ValueError)
        for name in ("conversation", "speaker", "seed", "media"):
            tried(lambda value=value, name=name: omni.stream_speech("Hi", **{name: value}))
        for name in ("speaker", "seed", "noise"):
            if value is not None:
                assert isinstance(
                    tried(lambda value=value, name=name: omni.decode_codes(codes, **{name: value})), ValueError
                )


def test_any_value_of_load_and_save_is_taken_or_refused_in_one_line(omni):
    def load(path=omni.folder, **options):
        return lambda: Omni.load(path, speech=False, **options)

    for value in WRONG:
        for name in ("mesh", "dtype", "progress"):
            assert isinstance(tried(load(**{name: value})), ValueError)
        for name in ("allow_local", "allow_control_tokens", "max_bytes", "timeout"):
            assert isinstance(tried(load("no such folder", **{name: value})), ValueError)
        if not isinstance(value, str):
            assert isinstance(tried(load(value)), ValueError)
            assert isinstance(tried(lambda value=value: omni.save(value)), ValueError)


def test_a_range_larger_than_memory_is_refused(omni):
    found = tried(lambda: omni.encode_vision(np.zeros((16, 1536), np.float32), grid=range(10**12)))
    assert isinstance(found, ValueError)
