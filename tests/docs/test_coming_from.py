"""docs/coming-from-transformers.md line by line: each piece of code in a right column is run on the tiny model."""

import base64
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omni_jax import Omni, Sampling
from omni_jax.decoding.sampling import Sampling as Options

PAGE = Path(__file__).parents[2] / "docs" / "coming-from-transformers.md"
HELLO = Path(__file__).parents[2] / "omni_jax" / "assets" / "hello.flac"
LINES = re.findall(r"^\|[^|\n]*\|([^|\n]*`[^|\n]*)\|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
# Code calls or reads a name of ours; other words in backticks are names.
CODE = [code for line in LINES for code in re.findall(r"`([^`]+)`", line) if re.search(r"\b(omni|Omni|reply)\.", code)]
U = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def names(omni, tiny):
    """The names of the page's code: the tiny model, with short replies, and inputs of all kinds."""
    quick = Omni(omni.parts, omni.config, omni.folder)
    few = Options(max_new_tokens=2)
    quick.defaults = replace(
        omni.defaults, thinker=omni.defaults.thinker.override(few), talker=omni.defaults.talker.override(few)
    )
    batch, encoded = quick.prepare(U), base64.b64encode(HELLO.read_bytes()).decode()
    part = {"type": "input_audio", "input_audio": {"data": encoded, "format": "flac"}}
    return {
        "Omni": Omni, "Sampling": Sampling, "path": tiny, "omni": quick, "batch": batch, "conversation": U, "other": U,
        "inputs": {"input_ids": batch.tokens, "attention_mask": batch.mask.astype(int)}, "encoded": encoded,
        "heard": [{"role": "user", "content": [{"type": "audio", "audio": str(HELLO)}]}],
        "openai": [{"role": "user", "content": [part, {"type": "text", "text": "Hi"}]}],
        "row": {"audio": {"array": np.zeros(8000, np.float32), "sampling_rate": 16_000, "path": None}},
        "reply": quick.generate(U),
    }  # fmt: skip


def test_the_page_has_code_on_every_line():
    assert len(CODE) >= len(LINES) - 1 > 30


@pytest.mark.parametrize("code", dict.fromkeys(CODE))
def test_a_line_of_the_page_runs(names, code):
    scope = dict(names)
    exec(code if code != "omni = Omni.load(path)" else "Omni.load(path)", scope)


def test_a_processors_output_is_answered_as_its_conversation(names):
    omni, inputs, reply = names["omni"], names["inputs"], names["reply"]
    assert omni.generate(**inputs) == omni.generate(inputs) == reply
    assert omni.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], seed=0) == reply
    harmless = {"thinker_return_dict_in_generate": True, "use_cache": False, "thinker_num_beams": 1, "pad_token_id": 3}
    assert omni.generate(U, **harmless, talker_use_cache=True, generation_mode="audio") == reply


def test_options_without_a_prefix_are_the_thinkers(names):
    omni = names["omni"]
    here = omni.generate(U, thinker_temperature=0.9, thinker_top_k=9, seed=3, return_audio=False)
    assert omni.generate(U, do_sample=True, temperature=0.9, top_k=9, seed=3, generation_mode="text") == here
    assert omni.generate(U, temperature=5.0, thinker_temperature=0.9, top_k=9, seed=3, return_audio=False) == here


REFUSED = {
    "beams": ({"num_beams": 4}, "num_beams=4 is not supported; leave it out"),
    "more replies": ({"thinker_num_return_sequences": 2}, "is not supported; give generate_batch the conversation"),
    "scores": ({"output_scores": True}, r"output_scores=True is not supported; a Reply has \.logprobs"),
    "a streamer": ({"streamer": object()}, r"streamer=a object is not supported; use omni\.stream"),
    "a length": ({"max_new_tokens": 3}, "unknown option max_new_tokens; did you mean thinker_max_new_tokens"),
    "two voices": ({"spk": "Ethan", "speaker": "Chelsie"}, "spk and speaker are one option"),
    "a mode": ({"generation_mode": "video"}, "generation_mode: expected 'text' or 'audio'"),
    "a processor's labels": ({"labels": 3}, "unknown option labels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_options_that_change_the_reply_are_refused_in_one_line(names, case):
    options, said = REFUSED[case]
    with pytest.raises(ValueError, match=said) as error:
        names["omni"].generate(U, **options)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_one_conversation_and_several_are_told_apart(names):
    omni = names["omni"]
    for call in (omni.generate, omni.stream):
        with pytest.raises(ValueError, match=r"expected one, .* got several; use generate_batch or stream_batch"):
            call([U, U])
        with pytest.raises(ValueError, match="conversation: expected a list of messages"):
            call()
    for call in (omni.generate_batch, omni.stream_batch):
        with pytest.raises(ValueError, match="got the messages of one; use generate or stream"):
            call(U)
