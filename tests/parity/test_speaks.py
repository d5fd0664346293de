"""Whole spoken replies: text, codes and waveform equal Transformers', greedy, each row as it is alone.

The reference has its faults fixed (``parity_speech.MENDS``); test_speech_faults.py shows them. All replies and all
speech end by tokens that the model emits.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.decoding.sampling import Sampling, SamplingRows
from omni_jax.decoding.text import generate
from omni_jax.engine import encode
from omni_jax.processing.talker_prompt import qwen3_omni
from tests.parity.parity_close import assert_close
from tests.parity.parity_scenes import Scene, batch, conversation
from tests.parity.parity_speech import answer, say, stops

IMAGE, AUDIO, VIDEO = ("image", 4, 6), ("audio", 120), ("video", (3, 4, 6), 1.0)
SOUNDING, STILL = ("sounding", (2, 4, 4), 1.0, 200), ("sounding", (1, 12, 12), 2.0, 20)
# Words of each turn, and the turns: thinker and talker prompts of 65 to 96 tokens, so that they share one program.
CASES = {
    "text": (62, ("user",)),
    "audio": (45, ("user", AUDIO)),
    "image": (55, ("user", IMAGE)),
    "video": (42, ("user", VIDEO)),
    "image and audio": (35, ("user", IMAGE, AUDIO)),
    "video and audio": (25, ("user", VIDEO, AUDIO)),
    "video with sound": (26, ("user", SOUNDING)),
    "a still with sound that ends before its last position": (20, ("user", STILL)),
    "turns": (11, ("user", IMAGE), ("assistant",), ("user", AUDIO)),
    "media in a system turn": (7, ("system", ("image", 2, 4), ("audio", 101)), ("user", ("image", 8, 8), ("audio", 164))),
    "media of every kind in every turn": (
        1, ("system", ("video", (1, 4, 4), 1.0), ("image", 2, 4)), ("user", IMAGE), ("assistant", ("image", 2, 2)),
        ("user", ("audio", 145), ("video", (2, 4, 4), 0.7)),
    ),
    "an answer begun": (16, ("user", ("image", 8, 16)), ("assistant",)),
}  # fmt: skip
NO_USER = (70, ("system", IMAGE))


def row_of(omni, case, seed=0):
    words, *turns = NO_USER if case == "no user's turn" else CASES[case]
    return conversation(omni, *turns, words=words, seed=seed)


def same(reply, spoken):
    """Asserts that a reply of ours equals the reference's."""
    assert reply.tokens == spoken.tokens
    np.testing.assert_array_equal(reply.codes, spoken.codes)
    assert_close(reply.audio, spoken.whole)


@pytest.fixture(scope="module")
def spoken(omni, reference):
    """The row of a case, the options that end it, and the reference's reply."""

    @cache
    def make(case):
        row = row_of(omni, case)
        options = stops(reference, [row])
        return row, options, say(reference, [row], **options)[0]

    return make


@pytest.mark.parametrize("case", CASES)
def test_spoken_replies_equal_the_reference(omni, spoken, case):
    row, options, expected = spoken(case)
    assert expected.tokens[-1] in options["thinker_eos_token_id"]
    assert omni.config.code2wav.decoder.window < expected.codes.shape[1] < options["talker_max_new_tokens"] - 1
    same(answer(omni, [row], **options)[0], expected)


@pytest.mark.parametrize("case", CASES)
def test_positions_of_the_talker_equal_the_reference(omni, spoken, case):
    """Positions of the prompt's own slots and of the first word, to the last bit."""
    row, _, expected = spoken(case)
    located = batch([row]).located(omni.config.thinker).justified()
    made = qwen3_omni.prepare(located, [0], omni.config)
    found = made.positions[:, 0, : made.lengths[0]]
    following = np.full((3, 1), found[:, -1].max() + 1)
    np.testing.assert_array_equal(np.concatenate([found, following], axis=1), expected.positions)


def test_logits_of_each_frame_equal_the_reference(omni, spoken):
    """Teacher-forced: the talker's prompt, then its logits frame by frame with the reference's codes."""
    row, options, expected = spoken("an answer begun")
    parts, config = omni.parts, omni.config
    thinker, talker, predictor = parts.thinker, parts.talker, parts.code_predictor
    placed = encode.pad_and_index(batch([row]), config.thinker)
    padded, embedded = placed.batch, encode.embed(parts, placed, config.thinker)
    rows = SamplingRows.of([Sampling()], [0], [options["thinker_max_new_tokens"]])
    prompts = (padded.tokens, padded.positions, padded.lengths)
    states = next(
        generate(thinker, embedded, *prompts, rows, candidates=0, hidden_layer=config.talker.accept_layer)
    ).prompt_states
    made = qwen3_omni.prepare(padded, [dict(config.talker.speakers)["ethan"]], config)
    length, heard = made.lengths[0], made.state_index
    prompt = talker.prompt(thinker.embedding(made.tokens), made.codes, states[:, heard[0]], heard >= 0)[0, :length]
    assert_close(prompt, expected.prompt[:-1])

    frames = expected.codes.shape[1]
    words = [*made.text_tokens[0], *expected.tokens[:-1], config.tts_eos, *[config.tts_pad] * frames][: frames + 1]
    fed = talker.text(thinker.embedding(np.array(words)))
    fed += talker.embedding(np.array([config.talker.codec_bos, *expected.codes[0]]))
    for number, codes in enumerate(expected.codes[1:]):
        fed = fed.at[1:].add(jax.tree.map(lambda leaf, number=number: leaf[number], predictor.embeddings)(codes))
    x = jnp.concatenate([prompt, fed])[None]
    following = expected.positions[:, -1:] + np.arange(frames + 1, dtype=np.float32)
    positions = np.concatenate([made.positions[:, 0, :length], following], axis=1)[:, None]
    room = talker.empty_cache(1, x.shape[1])
    states, *_ = talker.decoder.extend(x, positions, np.array([x.shape[1]]), room, fresh=True)
    assert_close(talker.head(states)[0, length:], expected.logits)


@pytest.mark.parametrize("speaker", ["Chelsie", "ethan", "AIDEN"])
def test_replies_of_each_speaker_equal_the_reference(omni, reference, spoken, speaker):
    row, options, _ = spoken("text")
    options = options | {"talker_eos_token_id": [-1], "talker_max_new_tokens": 14}
    expected = [say(reference, [row], speaker=name, **options)[0] for name in ("Chelsie", "Ethan", "Aiden")]
    codes = [item.codes.tolist() for item in expected]
    assert codes[0] != codes[1] != codes[2] != codes[0]
    at = ["chelsie", "ethan", "aiden"].index(speaker.lower())
    same(answer(omni, [row], speaker=speaker, **options)[0], expected[at])


def test_the_first_speaker_is_ethan(omni, spoken):
    row, options, expected = spoken("text")
    same(answer(omni, [row], **options)[0], expected)


def test_repetition_penalty_equals_the_reference(omni, reference, spoken):
    """The penalty covers the codes so far, of the first codebook only."""
    row, options, _ = spoken("audio")
    heard = []
    for penalty in (1.0, 1.5):
        free = options | {"talker_repetition_penalty": penalty, "talker_eos_token_id": [-1]}
        heard.append(say(reference, [row], **free)[0])
        same(answer(omni, [row], **free)[0], heard[-1])
    assert heard[0].codes.tolist() != heard[1].codes.tolist()


BATCHES = {
    "of equal length": ["image"] * 4,
    "of any length": ["image and audio", "text", "no user's turn", "turns"],
    "of begun and open answers": ["an answer begun", "image", "video", "text"],
}


@pytest.mark.parametrize("kind", BATCHES)
def test_batched_replies_equal_the_reference(omni, reference, kind):
    """Other prompts, media and speakers that end at different times: each row equals the reference alone."""
    rows = [row_of(omni, case, seed) for seed, case in enumerate(BATCHES[kind])]
    speakers = ["Ethan", "Aiden", "Chelsie", "Aiden"]
    options = stops(reference, rows, speakers)
    expected = [say(reference, [row], speaker=name, **options)[0] for row, name in zip(rows, speakers, strict=True)]
    assert len({item.codes.shape[1] for item in expected}) > 1
    assert len({len(item.tokens) for item in expected}) > 1
    for reply, item in zip(answer(omni, rows, speaker=speakers, **options), expected, strict=True):
        same(reply, item)


def test_speech_of_a_given_text_equals_the_reference(omni, reference):
    """An answer in the prompt: the reference speaks it, without the one token that it must generate."""
    asked = [{"role": "user", "content": "What time is it? " * 9}]
    text = "It is time to go."
    tokens = [*omni.prepare(asked).tokens[0].tolist(), *omni.tokenizer.encode(text)]
    options = {"talker_max_new_tokens": 32}
    expected = say(reference, [Scene(tokens)], thinker_max_new_tokens=1, **options)[0]
    reply = omni.speak(text, conversation=asked, talker_do_sample=False, **options)
    np.testing.assert_array_equal(reply.codes, expected.codes)
    assert_close(reply.audio, expected.whole)
