"""User errors in a request, a conversation or a path raise one line."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from omni_jax import Omni
from omni_jax.processing.batch import Batch
from tests.support.conversations import one_line, user


@pytest.fixture(scope="module")
def omni(writer):
    """Text only; speech is tested in test_speaks.py."""
    return writer


@pytest.mark.parametrize("steps", [0, 33, -1])
def test_steps_out_of_range_are_refused(omni, steps):
    with pytest.raises(ValueError, match=f"^steps: expected 1 to 32 tokens an event, got {steps}") as error:
        next(omni.stream(user("Hi"), steps=steps))
    one_line(error)


# --- user errors

REQUESTS = {
    "speech": ({"return_audio": True}, "return_audio=True, but this checkpoint was loaded with speech=False"),
    "a speaker": ({"speaker": "Ethan"}, "speaker: nothing is spoken without a talker; leave it out"),
    "a talker's option": ({"talker_top_k": 3}, "talker_top_k: nothing is spoken without a talker; leave it out"),
    "an unknown option": ({"thinker_heat": 1}, "unknown option thinker_heat; expected one of"),
    "an option without its prefix": ({"min_new_tokens": 1}, "unknown option min_new_tokens; did you mean thinker_min_new_tokens"),
    "a length without its part": ({"max_new_tokens": 3}, "unknown option max_new_tokens; did you mean thinker_max_new_tokens"),
    "an impossible option": ({"thinker_top_p": 3}, "top_p: expected a number above 0 and at most 1, got 3"),
    "too many seeds": ({"seed": [1, 2]}, "seed: expected one whole number, or one for each of the 1 conversations"),
    "no seed": ({"seed": None}, "seed: expected one whole number"),
    "a seed in words": ({"seed": "one"}, "seed: expected one whole number"),
    "half a seed": ({"seed": [1.5]}, "seed: expected one whole number"),
    "tools in words": ({"tools": "clock"}, "tools: expected a list of JSON schemas"),
}  # fmt: skip


@pytest.mark.parametrize("case", REQUESTS)
def test_a_wrong_request_raises_one_line(omni, case):
    options, said = REQUESTS[case]
    with pytest.raises(ValueError, match=said) as error:
        omni.generate(user("Hi"), **options)
    one_line(error)
    if options.get("seed") != [1, 2]:
        with pytest.raises(ValueError, match=said):
            next(omni.stream(user("Hi"), **options))


CONVERSATIONS = {
    "empty": ([], "conversation: no messages"),
    "a string": ("Hi", "expected a list of messages .dicts., got str"),
    "an unknown role": ([{"role": "robot", "content": "Hi"}], "unknown role 'robot'"),
    "no such image": (user({"type": "image", "image": "a.png"}), "a.png: no such file"),
    "no such file": (user({"type": "audio", "audio": "nowhere.wav"}), "nowhere.wav: no such file"),
}


@pytest.mark.parametrize("case", CONVERSATIONS)
def test_a_wrong_conversation_raises_one_line(omni, case):
    conversation, said = CONVERSATIONS[case]
    with pytest.raises(ValueError, match=said) as error:
        omni.generate(conversation)
    one_line(error)
    with pytest.raises(ValueError, match=f"conversation 1: .*{said}"):
        omni.generate_batch([user("Hi"), conversation])


def test_an_empty_batch_is_refused(omni):
    with pytest.raises(
        ValueError, match="conversations: expected a list of at least one, or a Batch, got an empty list"
    ):
        omni.generate_batch([])


@pytest.mark.parametrize("token", [-3, 512, 100_000])
def test_tokens_outside_the_vocabulary_are_refused(omni, token):
    with pytest.raises(ValueError, match=f"tokens: expected ids from 0 to 511, got .*{token}") as error:
        omni.logits([[1, token]])
    one_line(error)


def test_mel_of_another_model_is_refused(omni):
    batch = Batch.from_hf({"input_ids": [[1, 2]], "input_features": np.zeros((1, 80, 8), np.float32)})
    batch = replace(batch, tokens=np.array([[omni.config.thinker.audio_token, 2]], np.int32))
    with pytest.raises(
        ValueError, match=r"clip 0: expected shape \[128, A\] \(mel bins, frames\), got \[80, 8\]"
    ) as error:
        omni.generate_batch(batch)
    one_line(error)


def load_errors(tmp_path):
    (tmp_path / "file").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": ')
    return {
        str(tmp_path / "absent"): "no such folder; expected a Hugging Face folder, a converted folder or a hub id",
        tmp_path / "absent": "no such folder",
        str(tmp_path / "file"): "expected a model folder, got a file",
        str(tmp_path / "empty"): "no config.json",
        str(tmp_path / "other"): "expected model_type .*, got 'llama'; this is another model's folder",
        str(tmp_path / "broken"): "config.json",
        "owner/name-of-no-model": "no such folder here, and the hub did not give it",
        "./absent": "no such folder",
        "just-a-name": "no such folder",
    }


def test_a_wrong_path_raises_one_line(tmp_path, monkeypatch):
    """Also a hub id: conftest.py keeps the hub's client offline."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for path, said in load_errors(tmp_path).items():
        with pytest.raises(ValueError, match=said) as error:
            Omni.load(path)
        one_line(error)
        assert str(path) in str(error.value) or "config.json" in said or "config.json" in str(error.value)


def test_a_mesh_that_does_not_fit_is_refused(tiny):
    unknown = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    explicit = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()[:2])
    for mesh, said in ((unknown, "among data, expert and model, got"), (explicit, "of type Auto, got explicit ones")):
        with pytest.raises(ValueError, match=f"^mesh: expected axes {said}") as error:
            Omni.load(tiny, mesh=mesh)
        one_line(error)


def test_stream_raises_user_errors_before_the_first_event(omni):
    with pytest.raises(ValueError, match="unknown option"):
        omni.stream(user("Hi"), heat=1)


def test_an_unknown_speaker_is_named_even_where_nothing_is_spoken(omni):
    with pytest.raises(ValueError, match="speaker: expected one of chelsie, ethan, aiden, got 'Nobody'"):
        omni.generate(user("Hi"), return_audio=False, speaker="Nobody")
