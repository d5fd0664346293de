"""What the talker of each family is fed: the visible answer's tokens alone, with the thinker's states at those tokens."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from omni_jax import Omni
from omni_jax.engine.options import RequestOptions
from omni_jax.processing.conversation import SPOKEN_SYSTEM
from omni_jax.speech import qwen2_5_omni, qwen3_omni
from omni_jax.testing import write_tiny
from omni_jax.testing.qwen2_5_omni import tiny_qwen2_5_config
from tests.support.spoken import GREEDY

ASKED = [{"role": "system", "content": SPOKEN_SYSTEM}, {"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def qwen2_5(tmp_path_factory):
    return Omni.load(write_tiny(tmp_path_factory.mktemp("qwen2_5") / "model", config=tiny_qwen2_5_config()))


@pytest.fixture(params=["qwen3_omni", "qwen2_5_omni"])
def model(request, monkeypatch):
    """A model and its prompt; all ids of a reply are words, but for those that ``named`` names. ``fed`` collects what
    the talker reads of the reply, frame by frame."""
    module = {"qwen3_omni": qwen3_omni, "qwen2_5_omni": qwen2_5_omni}[request.param]
    whole = request.getfixturevalue({"qwen3_omni": "omni", "qwen2_5_omni": "qwen2_5"}[request.param])
    omni = Omni(whole.parts, whole.config, whole.folder)
    batch, fed, embed = whole.prepare(ASKED), [], module._embed_reply

    def spy(*given):
        made = embed(*given)
        fed.append(np.asarray(jax.device_get(made))[0])
        return made

    monkeypatch.setattr(module, "_embed_reply", spy)

    def named(names):
        omni.tokenizer = SimpleNamespace(
            get_added_vocab=lambda: {name: token for token, name in names.items()},
            added_tokens_decoder={},
            convert_ids_to_tokens=lambda token: names.get(token, "a"),
        )

    named({})
    return SimpleNamespace(omni=omni, batch=batch, fed=fed, named=named)


def heard(model, **options):
    """A reply, and what the talker read of it: one vector a frame."""
    model.fed.clear()
    reply = model.omni.generate(model.batch, **{**GREEDY, **options})
    return reply, model.fed[0]  # the first call's frames are as many as a short reply has tokens


def test_tokens_of_thinking_and_calls_are_not_fed_and_states_follow_the_others(model):
    plain, every = heard(model)
    tokens = plain.tokens
    first = {token: place for place, token in reversed(list(enumerate(tokens)))}
    places = sorted(first.values())
    begin, end = places[1], places[3]
    model.named({tokens[begin]: "<tool_call>", tokens[end]: "</tool_call>"})
    reply, found = heard(model)
    assert reply.tokens == tokens
    assert not reply.tool_calls  # malformed: part of the text, and not spoken
    inside, visible = False, []
    for place, token in enumerate(tokens):
        inside |= token == tokens[begin]
        if not inside and token != tokens[end]:
            visible.append(place)
        inside &= token != tokens[end]
    if model.omni.synthesizer.frame_rate == 50.0:
        visible = [place for place in visible if place < len(tokens) - 1]  # the last one has no state
    assert 0 < len(visible) < len(tokens)
    assert found.shape[1] == every.shape[1]
    np.testing.assert_array_equal(found[: len(visible)], every[visible])
    stream = list(model.omni.stream(model.batch, steps=1, **GREEDY))[-1].reply
    np.testing.assert_array_equal(stream.codes, reply.codes)
    again, all_fed = heard(model, compat="transformers-5.23")
    assert again.tokens == tokens
    np.testing.assert_array_equal(all_fed[: len(tokens) - 1], every[: len(tokens) - 1])


def test_a_reply_of_a_call_alone_is_silent(model):
    plain, _ = heard(model)
    model.named({plain.tokens[0]: "<tool_call>"})
    reply = model.omni.generate(model.batch, **GREEDY)
    assert reply.tokens == plain.tokens
    assert reply.text
    assert reply.codes.shape[1] == reply.audio.size == 0
    assert reply.speech_finish_reason == "stop"
    assert model.omni.generate(model.batch, **GREEDY, compat="transformers-5.23").audio.size


def test_thinking_that_the_template_closes_is_not_spoken(omni):
    """The words of an answer begun in the prompt are spoken, its block of thinking is not."""
    prompts = [omni.prepare(ASKED, template={"enable_thinking": state}) for state in (True, False)]
    assert len(prompts[1].tokens[0]) > len(prompts[0].tokens[0])
    requests = [omni.request_of(batch, RequestOptions()) for batch in prompts]
    assert [request.speech.prompt.text_tokens[0] for request in requests] == [(), ()]
    as_there = omni.request_of(prompts[1], RequestOptions(compat="transformers-5.23"))
    assert len(as_there.speech.prompt.text_tokens[0]) > 2
