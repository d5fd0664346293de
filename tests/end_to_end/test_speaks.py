"""Speech through the facade: every way to request it, and the laws that hold for the result."""

import threading

import jax
import numpy as np
import pytest

from omni_jax import Omni, Sampling
from omni_jax.processing.batch import Batch
from omni_jax.speech import stream
from tests.support.spoken import (
    FRAME,
    GREEDY,
    LAG,
    SAMPLED,
    WRITTEN,
    assert_spoken_alike,
    film,
    picture,
    sound,
    states,
    text,
    user,
)


@pytest.fixture(scope="module")
def greedy(omni):
    return omni.generate(user(), **GREEDY)


@pytest.fixture
def ending(omni, greedy):
    """A codec id that ends greedy speech after some frames, as an option."""
    first = greedy.codes[0].tolist()
    at = next(n for n in range(8, len(first)) if first.index(first[n]) == n)
    return at, {"talker_eos_token_id": first[at]}


# --- a reply that is spoken


def test_a_spoken_reply_has_codes_and_audio(omni, greedy):
    """As many frames as the limit allows, 80 ms each except for the end of the last."""
    assert greedy.codes.shape == (4, 40)
    assert greedy.codes.dtype == np.int32
    assert greedy.audio.shape == (40 * FRAME - LAG,)
    assert greedy.audio.dtype == np.float32
    assert greedy.sample_rate == 24_000
    assert 0.01 < np.abs(greedy.audio).max() <= 1
    assert 0 <= greedy.codes.min() <= greedy.codes.max() < 64
    assert greedy.text
    assert greedy.speech_finish_reason == "length"


def test_text_is_the_same_with_and_without_speech(omni, greedy, writer):
    silent = omni.generate(user(), return_audio=False, **GREEDY)
    assert (silent.tokens, silent.codes, silent.audio) == (greedy.tokens, None, None)
    assert silent == writer.generate(user(), **WRITTEN)


def test_speech_ends_at_its_end_token(omni, greedy, ending):
    at, how = ending
    reply = omni.generate(user(), **GREEDY, **how)
    np.testing.assert_array_equal(reply.codes, greedy.codes[:, :at])
    assert reply.audio.shape == (at * FRAME - LAG,)
    assert reply.speech_finish_reason == "stop"
    longer = omni.generate(user(), **GREEDY, **how, talker_min_new_tokens=at + 5)
    assert longer.codes.shape[1] > at + 4


def test_each_speaker_sounds_different(omni, greedy):
    assert omni.speakers == ("chelsie", "ethan", "aiden")
    by_voice = {name: omni.generate(user(), speaker=name, **GREEDY).codes for name in ("Chelsie", "ETHAN", "aiden")}
    np.testing.assert_array_equal(by_voice["ETHAN"], greedy.codes)  # the default
    assert not np.array_equal(by_voice["Chelsie"], by_voice["aiden"])
    assert not np.array_equal(by_voice["Chelsie"], by_voice["ETHAN"])


def test_media_change_the_codes_of_the_same_text(omni):
    """The talker reads the media: the same words after another sound, picture or video have other codes."""
    for medium in (lambda seed: sound(1.5, seed), lambda seed: picture(seed=seed), film):
        one, other = (omni.speak("Well, well.", conversation=user(medium(seed)), talker_do_sample=False,
                                 talker_max_new_tokens=41).codes for seed in (0, 1))  # fmt: skip
        assert not np.array_equal(one, other)


def test_system_turns_and_earlier_answers_do_not_change_speech(omni):
    """As in the reference, the talker reads only the user's turns of the prompt."""
    turns = [*user(text("One.")), {"role": "assistant", "content": "Two."}, *user(text("Three."))]
    how = {"talker_do_sample": False, "talker_max_new_tokens": 41}
    plain = omni.speak("Four.", conversation=turns, **how)
    system = [{"role": "system", "content": [text("Be brief."), picture()]}]
    assert_spoken_alike(omni.speak("Four.", conversation=[*system, *turns], **how), plain)
    turns[1] = {"role": "assistant", "content": "Twenty-two."}
    assert_spoken_alike(omni.speak("Four.", conversation=turns, **how), plain)
    turns[0] = user(text("Ten."))[0]
    assert not np.array_equal(omni.speak("Four.", conversation=turns, **how).codes, plain.codes)


# --- streams


@pytest.mark.parametrize(("steps", "how"), [(1, GREEDY), (4, GREEDY), (4, SAMPLED), (32, SAMPLED)])
def test_a_stream_equals_the_whole(omni, steps, how):
    whole = omni.generate(user(), seed=5, **how)
    events = list(omni.stream(user(), seed=5, steps=steps, **how))
    assert [event.reply is None for event in events] == [True] * (len(events) - 1) + [False]
    assert "".join(event.text for event in events) == whole.text
    assert_spoken_alike(events[-1].reply, whole)
    joined = np.concatenate([event.audio for event in events if event.audio is not None])
    np.testing.assert_array_equal(joined, events[-1].reply.audio)


def test_sound_streams_while_the_thinker_still_writes(omni):
    """The first chunk is one frame, after the first token; chunks grow while there are words."""
    events = list(omni.stream(user(), steps=1, **GREEDY))
    kinds = ["text" if event.text else "audio" if event.audio is not None else "end" for event in events]
    assert kinds.index("audio") < len(kinds) - 1 - kinds[::-1].index("text")
    sizes = [len(event.audio) for event in events if event.audio is not None]
    frames = [(size + (LAG if number == 0 else 0)) / FRAME for number, size in enumerate(sizes)]
    assert frames == [1, 2, 4, 8, 16, 9]


def test_a_closed_stream_frees_its_arrays(omni):
    def arrays():
        return {id(array) for array in jax.live_arrays()}

    list(omni.stream(user(sound(1)), **GREEDY))
    before = arrays()
    events = omni.stream(user(sound(1)), **GREEDY)
    while next(events).audio is None:
        pass
    assert arrays() - before
    events.close()
    del events
    assert not arrays() - before


def test_the_thinkers_states_are_freed_after_use(omni):
    """Once the talker has read the prompt, no array of the prompt's length and the thinker's width is held."""
    before = {id(array) for array in jax.live_arrays()}
    batch = omni.prepare(user(sound(6))).padded()
    long = (*batch.tokens.shape, omni.config.thinker.decoder.width)
    events = omni.stream(user(sound(6)), steps=1, **GREEDY)
    while next(events).audio is None:
        pass
    next(events)
    assert long not in [array.shape for array in jax.live_arrays() if id(array) not in before]
    events.close()


@pytest.mark.parametrize("given", [False, True])
def test_the_thinkers_cache_is_freed_while_the_rest_is_spoken(omni, given):
    """Once the text is written, neither the prompt's states nor the cache are held: one token, and a given text."""
    asked = user(sound(6))
    length = omni.prepare(asked).padded().tokens.shape[1]
    one = {**GREEDY, "thinker_max_new_tokens": 1}
    how = {"talker_do_sample": False, "talker_max_new_tokens": 41}
    events = omni.stream_speech("Hi", conversation=asked, **how) if given else omni.stream(asked, **one)
    weights = states(omni, length)
    held = [states(omni, length) for event in events if event.audio is not None]
    assert len(held) > 4
    assert held[1:] == [weights] * (len(held) - 1)


def test_stop_strings_are_not_spoken(omni, monkeypatch):
    """Neither the string nor a possible beginning of it is spoken; the rest is spoken as if it were the whole text."""
    said = []
    real = stream.SpeechStream.add_text
    monkeypatch.setattr(stream.SpeechStream, "add_text", lambda self, row, words, places, ended: said.extend(words) or real(
        self, row, words, places, ended=ended))  # fmt: skip
    whole = omni.generate(user(), return_audio=False, **WRITTEN)
    middle = omni.tokenizer.decode(whole.tokens[4:6])
    list(omni.stream(user(), steps=1, **GREEDY, thinker_stop_strings=middle))
    assert said == whole.tokens[:4]


# --- batches


def test_chunks_of_a_batched_stream_join_to_the_replies(omni, greedy):
    """The chunks of each row join to its reply."""
    events = list(omni.stream_batch([user(), user(text("Ho"))], **GREEDY))
    whole = omni.generate_batch([user(), user(text("Ho"))], **GREEDY)
    for row, expected in enumerate(whole):
        own = [event for number, event in events if number == row]
        assert "".join(event.text for event in own) == expected.text
        assert_spoken_alike(own[-1].reply, expected)
        joined = np.concatenate([event.audio for event in own if event.audio is not None])
        np.testing.assert_array_equal(joined, own[-1].reply.audio)
    assert_spoken_alike(whole[0], greedy)
    with pytest.raises(ValueError, match="steps: expected 1 to 32 tokens an event, got 33"):
        omni.stream_batch([user()], steps=33)


def test_a_row_in_a_batch_equals_its_single_run(omni):
    """Rows of other lengths, media, voices and seeds; three of them make a batch of four."""
    asked = [user(), user(sound(1.2), text("What is it?")), user(picture(), text("And this, so much longer?"))]
    voices, seeds = ["Aiden", "Chelsie", "Ethan"], [3, 4, 5]
    rows = omni.generate_batch(asked, speaker=voices, seed=seeds, **SAMPLED)
    for row, one, name, seed in zip(rows, asked, voices, seeds, strict=True):
        assert_spoken_alike(row, omni.generate(one, speaker=name, seed=seed, **SAMPLED))


def test_rows_end_independently_and_leave_the_batch(omni, ending, monkeypatch):
    """Rows whose speech ends early equal their single run, and the batch shrinks behind them."""
    _, how = ending
    sizes = []
    real = stream.generate_frames
    monkeypatch.setattr(
        stream,
        "generate_frames",
        lambda *given, **options: sizes.append(given[2].frame.shape[0]) or real(*given, **options),
    )
    asked = [user(text(words)) for words in ("Hi", "Ho", "What?", "Now!", "a")]
    how = {**WRITTEN, **how, "talker_do_sample": False, "talker_max_new_tokens": 201}
    rows = omni.generate_batch(asked, **how)
    lengths = [row.codes.shape[1] for row in rows]
    assert len(set(lengths)) > 2
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 8 > sizes[-1]
    for row, one in zip(rows, asked, strict=True):
        assert_spoken_alike(row, omni.generate(one, **how))


def test_replies_are_compared_by_value(omni, greedy):
    assert omni.generate(user(), **GREEDY) == greedy
    assert omni.generate(user(), speaker="aiden", **GREEDY) != greedy
    assert greedy != greedy.text


def test_of_the_special_ids_only_the_end_of_speech_may_be_chosen(omni):
    """Where another id ends speech, the usual end id may not be chosen, because the vocoder has no sound for it."""
    wild = {
        "talker_temperature": 5.0,
        "talker_top_k": 0,
        "talker_max_new_tokens": 201,
        "talker_repetition_penalty": 1.0,
    }
    reply = omni.speak("Hello there", talker_eos_token_id=-1, **wild)
    assert reply.codes.shape == (4, 200)
    assert reply.codes.max() < 64
    assert omni.speak("Hello there", **wild).codes.shape[1] < 200


def test_seeds_decide_text_and_codes_independently(omni):
    """The seed decides; text, first codes and other codes are drawn independently of each other."""
    one = omni.generate(user(), seed=1, **SAMPLED)
    assert_spoken_alike(omni.generate(user(), seed=1, **SAMPLED), one, tolerance=0)
    other = omni.generate(user(), seed=2, **SAMPLED)
    assert other.tokens == one.tokens
    assert not np.array_equal(other.codes[0], one.codes[0])
    calm = omni.generate(user(), seed=1, predictor_do_sample=False, **SAMPLED)
    assert calm.codes[0, 0] == one.codes[0, 0]
    assert not np.array_equal(calm.codes[1:], one.codes[1:])


def test_options_of_talker_and_predictor_are_applied(omni, greedy):
    whole = omni.generate(
        user(), **WRITTEN, talker=Sampling(do_sample=False, max_new_tokens=41), predictor=Sampling(do_sample=False)
    )
    assert_spoken_alike(whole, greedy, tolerance=0)
    penalised = omni.generate(user(), talker_repetition_penalty=1.0, **GREEDY)
    assert not np.array_equal(penalised.codes, greedy.codes)
    # A draw from one candidate takes the most likely one.
    narrow = omni.generate(user(), **{**GREEDY, "talker_do_sample": True}, talker_top_k=1, predictor_top_k=1)
    np.testing.assert_array_equal(narrow.codes, greedy.codes)


# --- empty replies


def test_an_empty_reply_is_silence(omni, greedy):
    """Also in a batch and in a stream; the reference raises."""
    how = {**GREEDY, "thinker_eos_token_id": greedy.tokens[0]}
    reply = omni.generate(user(), **how)
    assert reply.tokens == [greedy.tokens[0]]
    assert reply.codes.shape == (4, 0)
    assert reply.audio.shape == (0,)
    assert reply.speech_finish_reason == "stop"
    assert all(event.audio is None for event in omni.stream(user(), **how))
    both = omni.generate_batch([user(), user(text("What?"))], **how)
    assert both[0].audio.shape == (0,)
    assert_spoken_alike(both[1], omni.generate(user(text("What?")), **how))


def test_one_token_of_speech_is_silence(omni):
    reply = omni.generate(user(), **{**GREEDY, "talker_max_new_tokens": 1})
    assert (reply.codes.shape, reply.audio.shape) == ((4, 0), (0,))
    assert omni.generate(user(), **{**GREEDY, "talker_max_new_tokens": 2}).codes.shape == (4, 1)


def test_a_reply_cut_by_length_is_spoken_to_its_last_token(omni):
    """A reply cut after n tokens is spoken like a reply that ends by itself after n tokens."""
    whole = omni.generate(user(), return_audio=False, **{**WRITTEN, "thinker_max_new_tokens": 12}).tokens
    at = next(n for n in range(4, 12) if whole.index(whole[n]) == n)
    cut = omni.generate(user(), **{**GREEDY, "thinker_max_new_tokens": at})
    ended = omni.generate(user(), **{**GREEDY, "thinker_eos_token_id": whole[at], "thinker_max_new_tokens": 12})
    assert (cut.finish_reason, ended.finish_reason) == ("length", "stop")
    np.testing.assert_array_equal(cut.codes, ended.codes)


def test_a_prompt_without_a_user_is_spoken(omni):
    prompt = [[omni.config.im_start, omni.config.assistant, 10]]
    assert omni.generate(Batch.from_tokens(prompt), **GREEDY).codes.shape == (4, 40)


# --- given texts


def test_a_given_text_is_spoken(omni):
    how = {"talker_do_sample": False, "talker_max_new_tokens": 41}
    reply = omni.speak("Good morning.", **how)
    assert reply.text == "Good morning."
    assert reply.tokens == omni.tokenizer.encode("Good morning.", add_special_tokens=False)
    assert reply.audio.shape == (40 * FRAME - LAG,)
    events = list(omni.stream_speech("Good morning.", **how))
    assert "".join(event.text for event in events) == "Good morning."
    assert_spoken_alike(events[-1].reply, reply)
    joined = np.concatenate([event.audio for event in events if event.audio is not None])
    np.testing.assert_array_equal(joined, events[-1].reply.audio)
    other = omni.speak("Good morning.", speaker="Chelsie", **how)
    assert not np.array_equal(other.codes, reply.codes)


def test_a_given_text_has_the_codes_of_a_written_one(omni):
    """The reply of `generate`, given as text, has the same codes, and the thinker does not write it again."""
    written = omni.generate(user(sound(1)), **GREEDY)
    how = {"talker_do_sample": False, "talker_max_new_tokens": 41}
    spoken = omni.speak(written.text, conversation=user(sound(1)), **how)
    assert spoken.tokens == written.tokens
    assert_spoken_alike(spoken, written)


def test_a_given_text_does_not_pass_through_the_template(omni, tiny, tmp_path):
    """A template that adds a block of thinking to an answer does not change the speech."""
    how = {"talker_do_sample": False, "talker_max_new_tokens": 13}
    plain = omni.speak("Hello", **how)
    for path in tiny.iterdir():
        (tmp_path / path.name).symlink_to(path)
    for name in ("chat_template.jinja", "chat_template.json"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    odd = Omni(omni.parts, omni.config, tmp_path)
    assert_spoken_alike(odd.speak("Hello", **how), plain)


# --- codes to sound


def test_decoded_codes_equal_the_replys_audio(omni, greedy):
    alone = omni.decode_codes(greedy.codes)
    np.testing.assert_allclose(alone, greedy.audio, atol=1e-5 * np.abs(greedy.audio).max())
    both = np.stack([greedy.codes, np.roll(greedy.codes, 1, axis=1)])
    found = omni.decode_codes(both, lengths=[40, 7])
    assert found.shape == (2, 40 * FRAME - LAG)
    np.testing.assert_allclose(found[0], greedy.audio, atol=1e-5 * np.abs(greedy.audio).max())
    np.testing.assert_allclose(found[1, : 7 * FRAME - LAG], omni.decode_codes(both[1, :, :7]), atol=1e-6)
    assert not found[1, 7 * FRAME - LAG :].any()
    assert omni.decode_codes(both[:, :, :0]).shape == (2, 0)


def test_codes_beyond_a_rows_length_are_ignored(omni):
    codes = np.zeros((1, 4, 3), int)
    codes[:, :, 2] = 9999
    assert omni.decode_codes(codes, [2]).shape == (1, 3 * FRAME - LAG)


def test_a_second_reply_of_another_length_compiles_nothing(omni, compiled):
    """The lengths are of the same bucket."""
    list(omni.stream(user(text("Hello")), **SAMPLED))
    omni.generate(user(text("Hello")), **SAMPLED)
    compiled.clear()
    list(omni.stream(user(text("Hello you!")), seed=1, speaker="aiden", talker_temperature=0.5, **SAMPLED))
    omni.generate(user(text("Hello a")), **{**SAMPLED, "talker_max_new_tokens": 33})
    assert not compiled


def test_two_threads_speak_independently(omni, greedy):
    """Requests share no state."""
    found = {}

    def run(name):
        found[name] = omni.generate(user(), speaker=name, **GREEDY)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("ethan", "aiden")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_spoken_alike(found["ethan"], greedy)
    assert_spoken_alike(found["aiden"], omni.generate(user(), speaker="aiden", **GREEDY))
