"""Whole spoken replies of Qwen2.5-Omni: text, codes and waveform equal Transformers', greedy, of the same noise.

The reference is ``parity_qwen2_5.intended``; its unchanged behaviour is ``compat``, tested here too. All replies and
all speech end by tokens that the model emits.
"""

from functools import cache

import numpy as np
import pytest

from omni_jax.processing.talker_prompt import qwen2_5_omni
from omni_jax.speech.qwen2_5_omni import noise_seed
from omni_jax.speech.synthesizer import COMPAT
from tests.parity.parity_close import assert_close
from tests.parity.parity_qwen2_5 import generate, stops
from tests.parity.parity_scenes import batch, conversation, theirs

IMAGE, AUDIO, VIDEO = ("image", 4, 6), ("audio", 120), ("video", (3, 4, 6), 1.0)
# A video of 3 s with its sound: both are cut into chunks of 2 s.
SOUNDING = ("sounding", (3, 4, 4), 1.0, 100)
# Words of each turn, and the turns: thinker and talker prompts of 65 to 96 tokens, so that they share one program.
CASES = {
    "text": (62, ("user",)),
    "audio": (35, ("user", AUDIO)),
    "image": (55, ("user", IMAGE)),
    "video": (42, ("user", VIDEO)),
    "image and audio": (30, ("user", IMAGE, AUDIO)),
    "video and audio": (15, ("user", VIDEO, AUDIO)),
    "video with sound": (30, ("user", SOUNDING)),
    "turns": (4, ("user", IMAGE), ("assistant",), ("user", AUDIO)),
    "media in a system turn": (1, ("system", ("image", 2, 4), ("audio", 53)), ("user", ("image", 8, 8), ("audio", 101))),
    "an answer begun": (16, ("user", ("image", 8, 16)), ("assistant",)),
}  # fmt: skip
MODES = {"intended": (True, None), "as 5.23 does": (False, COMPAT)}


def row_of(omni, case, seed=0):
    words, *turns = CASES[case]
    return conversation(omni, *turns, words=words, seed=seed)


def options_of(options):
    return {"thinker_do_sample": False, "talker_do_sample": False, **options}


def same(reply, spoken):
    """Asserts that a reply of ours equals the reference's."""
    assert reply.tokens == spoken.tokens
    np.testing.assert_array_equal(reply.codes, spoken.codes[None])
    assert_close(reply.audio, spoken.audio)


@pytest.fixture(scope="module")
def spoken(qwen2_5_of):
    """The model, the row of a case, the options that end it, and the reference's reply."""

    @cache
    def make(case, mode="intended", size="7B"):
        qwen2_5 = qwen2_5_of(size)
        row = row_of(qwen2_5.omni, case)
        inputs = theirs([row])
        options = stops(qwen2_5.reference, [inputs])
        mend, _ = MODES[mode]
        made = generate(qwen2_5.reference, inputs, mend=mend, seed=noise_seed(0), **options)[0]
        return qwen2_5.omni, row, options, made

    return make


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_spoken_replies_equal_the_reference(spoken, case, mode):
    omni, row, options, expected = spoken(case, mode)
    assert expected.tokens[-1] in options["thinker_eos_token_id"]
    same(omni.generate(batch([row]), speaker="Ethan", compat=MODES[mode][1], **options_of(options)), expected)


@pytest.mark.parametrize("mode", MODES)
def test_spoken_replies_of_the_3b_equal_the_reference(spoken, mode):
    """Narrow heads and no width coordinate in its talker's sections."""
    omni, row, options, expected = spoken("image and audio", mode, "3B")
    same(omni.generate(batch([row]), speaker="Ethan", compat=MODES[mode][1], **options_of(options)), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_positions_of_the_talker_equal_the_reference(spoken, case, mode):
    """Positions of the prompt, of the voice's token and of the first word."""
    omni, row, _, expected = spoken(case, mode)
    located = batch([row]).located(omni.config.thinker).justified()
    made = qwen2_5_omni.prepare(located, [0], omni.config, compat=MODES[mode][1] is not None)
    found = made.positions[:, 0, : made.lengths[0]]
    following = np.full((3, 1), found[:, -1].max() + 1)
    found = np.concatenate([found, following], axis=1)
    np.testing.assert_array_equal(found, expected.positions[:, : expected.prompt])


@pytest.mark.parametrize("speaker", ["Chelsie", "ethan"])
def test_replies_of_each_speaker_equal_the_reference(qwen2_5, spoken, speaker):
    omni, row, _, _ = spoken("text")
    inputs = theirs([row])
    options = stops(qwen2_5.reference, [inputs], [speaker.title()])
    expected = generate(qwen2_5.reference, inputs, speaker=speaker.title(), seed=noise_seed(0), **options)[0]
    same(omni.generate(batch([row]), speaker=speaker, **options_of(options)), expected)


def test_seeds_draw_the_noise(qwen2_5, spoken):
    """Another seed gives other samples of the same codes, equal to the reference's for that noise."""
    omni, row, options, first = spoken("text")
    expected = generate(qwen2_5.reference, theirs([row]), seed=noise_seed(7), **options)[0]
    reply = omni.generate(batch([row]), speaker="Ethan", seed=7, **options_of(options))
    same(reply, expected)
    assert np.abs(reply.audio - first.audio).max() > 1e-3


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_the_repetition_penalty_covers_the_prompts_marks(qwen2_5, spoken, penalty):
    omni, row, options, _ = spoken("text")
    options = {**options, "talker_repetition_penalty": penalty, "talker_max_new_tokens": 12}
    expected = generate(qwen2_5.reference, theirs([row]), seed=noise_seed(0), **options)[0]
    same(omni.generate(batch([row]), speaker="Ethan", **options_of(options)), expected)


def test_batched_replies_equal_the_reference(qwen2_5):
    """Rows of other lengths and media, left-padded there, where the reference does what it means to: no row is padded alone."""
    rows = [row_of(qwen2_5.omni, case, seed) for seed, case in enumerate(("text", "image", "audio", "turns"))]
    options = stops(qwen2_5.reference, [theirs([row]) for row in rows])
    expected = generate(qwen2_5.reference, theirs(rows), seed=[noise_seed(number) for number in range(4)], **options)
    replies = qwen2_5.omni.generate_batch(batch(rows), speaker="Ethan", seed=[0, 1, 2, 3], **options_of(options))
    for reply, own in zip(replies, expected, strict=True):
        same(reply, own)
