"""The facade: a user's calls, streams that equal the whole, and programs that are compiled once."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from omni_jax import Omni, Reply, Sampling
from omni_jax.config import from_hf
from omni_jax.decoding import text as generation
from omni_jax.decoding.text import StepOutput
from omni_jax.models.parts import is_spoken, leaves
from omni_jax.processing.batch import Batch
from omni_jax.testing import write_tiny
from tests.support.conversations import one_line, sound, text, user

# Prompts of up to 16 tokens and 24 new ones: the tests share their programs, and those of tests/decoding.
GREEDY = {"thinker_max_new_tokens": 24, "thinker_eos_token_id": -1}
SAMPLED = GREEDY | {"thinker_temperature": 1.5, "thinker_top_k": 50}


def joined(events):
    return "".join(event.text for event in events), "".join(event.thinking for event in events)


@pytest.fixture(scope="module")
def omni(writer):
    """Text only; speech is tested in test_speaks.py."""
    return writer


@pytest.fixture
def says(monkeypatch, omni):
    """Makes the model write given texts, one a row, instead of what its random weights give."""

    def script(*replies):
        rows = [omni.tokenizer.encode(reply, add_special_tokens=False) for reply in replies]

        def generate(model, x, prompt, positions, lengths, options, *, candidates, steps, **kept):
            for at in range(0, max(map(len, rows)), steps):
                tokens = np.zeros((len(lengths), steps), int)
                counts = np.zeros(len(lengths), int)
                for number, row in enumerate(rows):
                    new = row[at : at + steps]
                    tokens[number, : len(new)], counts[number] = new, len(new)
                yield StepOutput(tokens=tokens, logprobs=np.zeros(tokens.shape), counts=counts)

        monkeypatch.setattr("omni_jax.engine.answer.generate", generate)

    return script


# --- answers


@pytest.mark.parametrize("options", [GREEDY, SAMPLED])
@pytest.mark.parametrize("steps", [1, 4, 32])
def test_a_stream_equals_the_whole(omni, options, steps):
    whole = omni.generate(user("Hi"), seed=5, **options)
    events = list(omni.stream(user("Hi"), seed=5, steps=steps, **options))
    assert joined(events) == (whole.text, whole.thinking)
    assert events[-1].reply == whole
    assert all(event.reply is None for event in events[:-1])
    assert all(event.text or event.thinking for event in events[:-1])
    assert len(whole.tokens) == len(whole.logprobs) == 24


def test_audio_changes_the_reply(omni):
    conversations = [user(sound(0.3, seed), text("a")) for seed in (1, 2, 1)]
    first, second, third = omni.generate_batch(conversations, **GREEDY)
    assert first.tokens != second.tokens
    assert first == third


def test_a_batch_equals_its_rows(omni):
    conversations = [user("Hi"), user(sound(0.2)), user("What?")]
    replies = omni.generate_batch(conversations, seed=[1, 2, 3], **SAMPLED)
    for conversation, seed, reply in zip(conversations, [1, 2, 3], replies, strict=True):
        assert omni.generate(conversation, seed=seed, **SAMPLED).tokens == reply.tokens
    prepared = omni.prepare(conversations)
    assert [r.tokens for r in omni.generate_batch(prepared, seed=[1, 2, 3], **SAMPLED)] == [r.tokens for r in replies]


def test_a_seed_decides_a_sampled_reply(omni):
    one = omni.generate(user("Hi"), seed=1, **SAMPLED)
    assert isinstance(one, Reply)
    assert omni.generate(user("Hi"), seed=np.int64(1), **SAMPLED) == one
    assert omni.generate(user("Hi"), seed=2, **SAMPLED).tokens != one.tokens
    assert omni.generate_batch([user("Hi")] * 3, seed=1, **SAMPLED)[2].tokens == one.tokens


def test_single_options_override_a_sampling(omni):
    sampling = Sampling(max_new_tokens=24, eos_token_id=-1, temperature=1.5, top_k=50)
    assert omni.generate(user("Hi"), thinker=sampling, seed=3) == omni.generate(user("Hi"), seed=3, **SAMPLED)
    greedy = omni.generate(user("Hi"), thinker=sampling, thinker_do_sample=False)
    assert greedy == omni.generate(user("Hi"), **GREEDY)


def test_a_reply_ends_at_the_end_of_the_turn_by_default(omni, says):
    assert omni.defaults.thinker.eos == (omni.config.im_end,)
    says("Yes.<|im_end|>")
    reply = omni.generate(user("Hi"))
    assert (reply.text, reply.finish_reason) == ("Yes.", "stop")
    assert reply.tokens[-1] == omni.config.im_end
    assert reply.codes is None
    assert reply.audio is None


# --- thinking, tool calls, characters: the test sets what the model writes

CALL = '<tool_call>\n{"name": "clock", "arguments": {"zone": "Köln"}}\n</tool_call>'


def test_thinking_and_tool_calls_are_separated_from_text(omni, says):
    says(f"<think>\nWell, 5 o'clock…\n</think>\n\nI look. 你好\n{CALL}<|im_end|>")
    reply = omni.generate(user("What time is it?"))
    assert reply.thinking == "Well, 5 o'clock…"
    assert reply.text == "I look. 你好"
    assert reply.tool_calls == [{"name": "clock", "arguments": {"zone": "Köln"}}]
    assert reply.finish_reason == "stop"
    for steps in (1, 2, 5, 32):
        events = list(omni.stream(user("What time is it?"), steps=steps))
        assert joined(events) == (reply.text, reply.thinking)
        assert events[-1].reply == reply
        assert not any("\ufffd" in event.text + event.thinking for event in events)


def test_a_thinking_block_opened_by_the_template_is_thinking(omni, says):
    says("Hm.\n</think>\n\nYes.<|im_end|>")
    batch = Batch.from_tokens(omni.tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n"))
    (reply,) = omni.generate_batch(batch)
    assert (reply.thinking, reply.text) == ("Hm.", "Yes.")
    earlier = omni.tokenizer.encode("<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n")
    (reply,) = omni.generate_batch(Batch.from_tokens(earlier))
    assert (reply.thinking, reply.text) == (
        "Hm.",
        "Yes.",
    )  # the user's tag opened no block, and the reply closes one without an opening tag
    events = list(omni.stream(batch))
    assert joined(events) == ("Yes.", "Hm.")
    assert events[-1].reply.thinking == "Hm."


def test_thinking_is_disabled_on_request(omni, says):
    says("Yes.<|im_end|>")
    (prompt,) = omni.prepare(user("Hi"), enable_thinking=False).tokens
    assert omni.tokenizer.decode(prompt).endswith("<think>\n\n</think>\n\n")
    reply = omni.generate(user("Hi"), template={"enable_thinking": False})
    assert (reply.thinking, reply.text) == ("", "Yes.")


def test_tool_answers_go_back_into_the_conversation(omni, says):
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}]
    says(f"{CALL}<|im_end|>")
    reply = omni.generate(user("Time?"), tools=tools)
    conversation = [
        *user("Time?"),
        {"role": "assistant", "content": reply.text, "tool_calls": reply.tool_calls},
        {"role": "tool", "content": "17:00"},
    ]
    prompt = omni.tokenizer.decode(omni.prepare(conversation, tools=tools).tokens[0])
    assert CALL in prompt
    assert "<tool_response>\n17:00\n</tool_response>" in prompt
    assert prompt.count('"name": "clock"') == 2


def test_text_that_may_begin_a_stop_string_is_held_back(omni, says):
    says("Count: one two END three<|im_end|>")
    for steps in (1, 3, 32):
        events = list(omni.stream(user("Hi"), thinker_stop_strings=["END", "never"], steps=steps))
        assert joined(events)[0] == "Count: one two "
        assert events[-1].reply.finish_reason == "stop"
        assert omni.tokenizer.decode(events[-1].reply.tokens).endswith("END")
        assert len(events[-1].reply.logprobs) == len(events[-1].reply.tokens)


@pytest.mark.parametrize(
    ("said", "text", "thinking"),
    [
        ("One E", "One E", ""),  # a beginning of a stop string that is not continued
        ("One\n\n", "One\n\n", ""),  # newlines without a tool call after them
        ("<think>Hm", "", "Hm"),
        ('One <tool_call>{"name"', 'One <tool_call>{"name"', ""),
    ],
)
def test_held_back_text_is_emitted_at_the_end(omni, says, said, text, thinking):
    says(f"{said}<|im_end|>")
    for steps in (1, 32):
        events = list(omni.stream(user("Hi"), thinker_stop_strings="END", steps=steps))
        assert joined(events) == (text, thinking) == (events[-1].reply.text, events[-1].reply.thinking)


def test_rows_of_a_batch_end_independently(omni, says):
    says("Yes.<|im_end|>", "No, not at all.<|im_end|>", "Perhaps: END of it")
    replies = omni.generate_batch(
        [user("a"), user("b"), user("c")], thinker_stop_strings="END", thinker_max_new_tokens=99
    )
    assert [reply.text for reply in replies] == ["Yes.", "No, not at all.", "Perhaps: "]


# --- streams


def test_a_stream_that_is_closed_stops_the_work(omni, monkeypatch):
    calls, steps = [], generation.decode_steps
    monkeypatch.setattr(generation, "decode_steps", lambda *a, **k: calls.append(1) or steps(*a, **k))
    stream = omni.stream(user("Hi"), steps=1, **GREEDY)
    next(stream)
    made = len(calls)
    stream.close()
    assert list(stream) == []
    assert len(calls) == made < 23
    assert omni.generate(user("Hi"), **GREEDY).finish_reason == "length"


# --- parts alone


def test_prepare_gives_arrays(omni):
    batch = omni.prepare([user(sound(0.5), text("a")), user("b")])
    assert batch.tokens.shape == batch.mask.shape == batch.positions.shape[1:]
    assert [mel.shape for mel in batch.mel] == [(128, 50)]
    alone = omni.prepare(user("b"))
    assert alone.tokens.shape == (1, batch.lengths[1])


def test_logits_do_not_depend_on_the_side_of_padding(omni):
    tokens = np.random.default_rng(0).integers(0, 250, (3, 40))
    right = np.arange(40) < np.array([40, 3, 33])[:, None]
    left = right[:, ::-1]
    turned = np.zeros_like(tokens)
    turned[left] = tokens[right]
    one, other = np.asarray(omni.logits(tokens, right)), np.asarray(omni.logits(turned, left))
    assert one.shape == (3, 40, omni.config.thinker.vocabulary)
    np.testing.assert_array_equal(one[right], other[left])
    alone = np.asarray(omni.logits(tokens[2, :33]))[0]
    np.testing.assert_allclose(one[2, :33], alone, atol=1e-5 * np.abs(alone).max())


def test_logits_of_a_prepared_batch_depend_on_the_audio(omni):
    batch = omni.prepare(user(sound(0.3), text("a")))
    logits = np.asarray(omni.logits(batch))
    louder = np.asarray(omni.logits(replace(batch, mel=(batch.mel[0] + 1,))))
    at = np.flatnonzero(batch.tokens[0] == omni.config.thinker.audio_token)[0]
    np.testing.assert_array_equal(logits[0, :at], louder[0, :at])
    assert (np.abs(logits - louder)[0, at:].max(axis=1) > 1e-3).all()
    reply = omni.generate(user(sound(0.3), text("a")), **GREEDY)
    assert reply.tokens[0] == logits[0, -1].argmax()


# --- programs


def test_compilation_is_counted(compiled):
    jax.jit(lambda x: x * 3 + 1)(np.arange(7))
    assert compiled


@pytest.mark.parametrize("options", [GREEDY, SAMPLED])
def test_a_second_request_of_a_new_length_within_a_bucket_compiles_nothing(omni, compiled, options):
    omni.generate(user(sound(0.16, 1), text("a")), **options)  # 13 tokens: bucket 16, and a chunk of audio
    compiled.clear()
    omni.generate(user(sound(0.3, 2), text("ab")), **options)
    omni.generate(user(sound(0.4, 2), text("a")), **options | {"thinker_max_new_tokens": 17})
    list(omni.stream(user(sound(0.1, 3), text("abcd")), **options))
    changed = {"thinker_repetition_penalty": 1.2, "thinker_min_new_tokens": 3, "thinker_eos_token_id": [4, 5]}
    if options is SAMPLED:
        changed |= {"thinker_temperature": 0.7, "thinker_top_k": 40, "thinker_top_p": 0.9}
    omni.generate(user(sound(0.2), text("ab")), seed=9, **options | changed)
    assert not compiled


def test_rows_within_a_power_of_two_compile_nothing(omni, compiled):
    omni.generate_batch([user("a")] * 4, **GREEDY)
    compiled.clear()
    omni.generate_batch([user("ab"), user("c"), user("What")], **GREEDY)
    assert not compiled


def test_a_second_audio_of_a_new_length_compiles_nothing(omni, compiled):
    def mel(frames):
        return np.zeros((128, frames), np.float32)

    omni.encode_audio([mel(310)])
    compiled.clear()
    omni.encode_audio([mel(399)])
    omni.encode_audio([mel(120), mel(95)])
    assert not compiled


# --- loading


def test_speech_false_loads_no_parts_of_speech(tiny, omni):
    silent = Omni.load(tiny, speech=False)
    spoken, whole = {"talker", "code_predictor", "code2wav"}, Omni.load(tiny).parts
    assert set(whole) - set(silent.parts) == {part for part in whole if is_spoken(part)} == spoken
    assert silent.generate(user("Hi"), **GREEDY) == omni.generate(user("Hi"), **GREEDY)
    assert omni.speakers == ("chelsie", "ethan", "aiden")


def test_a_text_only_checkpoint_loads_and_answers(tmp_path):
    folder = write_tiny(tmp_path / "model", speech=False)
    omni = Omni.load(folder)
    assert omni.speakers == ()
    assert not any(map(is_spoken, omni.parts))
    assert omni.defaults.thinker.do_sample is True
    with pytest.raises(ValueError, match="speech=True, but this checkpoint has no talker") as error:
        Omni.load(folder, speech=True)
    one_line(error)


def test_save_and_load_give_the_same_answer(omni, tiny, tmp_path):
    Omni.load(tiny).save(tmp_path / "converted")
    again = Omni.load(tmp_path / "converted")
    assert again.config == omni.config
    assert again.generate(user("Hi"), return_audio=False, **GREEDY) == omni.generate(user("Hi"), **GREEDY)


def test_the_dtype_option_casts_the_weights(tiny):
    half = Omni.load(tiny, dtype="bfloat16", speech=False)
    assert {leaf.dtype.name for leaf in leaves(half.parts).values()} == {"bfloat16"}


def test_options_of_speech_are_accepted_where_nothing_is_spoken(omni):
    quiet = {"return_audio": False, "speaker": "Ethan", "talker_do_sample": True, "thinker_max_new_tokens": 4}
    assert omni.generate(user("Hi"), **quiet).tokens == omni.generate(user("Hi"), thinker_max_new_tokens=4).tokens
    with pytest.raises(ValueError, match="unknown option talker_voice"):
        omni.generate(user("Hi"), return_audio=False, talker_voice="low")


def test_a_batch_is_accepted_wherever_a_conversation_is(omni):
    batch = omni.prepare(user("Hi"))
    expected = omni.generate(user("Hi"), **GREEDY)
    assert omni.generate(batch, **GREEDY) == expected
    assert list(omni.stream(batch, **GREEDY))[-1].reply == expected
    with pytest.raises(ValueError, match="a Batch of 2 rows: expected one"):
        omni.generate(omni.prepare([user("Hi"), user("Ho")]), **GREEDY)
    with pytest.raises(ValueError, match="a Batch has its own"):
        omni.logits(batch, batch.mask)


def test_without_a_tokenizer_replies_have_tokens_and_no_text(omni, tiny, tmp_path):
    for path in tiny.iterdir():
        if path.name.startswith(("model", "config")):
            (tmp_path / path.name).symlink_to(path)
    bare, batch = Omni.load(tmp_path, speech=False), omni.prepare(user("Hi"))
    reply = bare.generate(batch, **GREEDY)
    assert reply.tokens == omni.generate(batch, **GREEDY).tokens
    assert reply.text == ""
    with pytest.raises(ValueError, match="stop_strings need the tokenizer"):
        bare.generate(batch, thinker_stop_strings="x", **GREEDY)


@pytest.mark.parametrize("order", [1, -1])
def test_a_prefixed_default_wins_in_any_order(tiny, tmp_path, order):
    values = dict(list({"thinker_max_new_tokens": 5, "max_new_tokens": 7}.items())[::order])
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    assert Omni({}, from_hf(tiny), tmp_path).defaults.thinker.max_new_tokens == 5
