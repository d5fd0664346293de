"""Faults of the reference's speech, and what we do instead. If a test fails, Transformers may have been fixed.

"Instead" is what the reference does where its fault has no effect: alone, or fixed (``parity_speech.MENDS``).
"""

import numpy as np
import pytest
import torch

from tests.parity.parity_close import assert_close
from tests.parity.parity_scenes import conversation
from tests.parity.parity_speech import ASSISTANT, MENDS, answer, say, stops

# All prompts of thinker and talker have 49 to 64 tokens, so that they share one program.
IMAGE, AUDIO, SOUNDING = ("image", 4, 6), ("audio", 120), ("sounding", (2, 4, 4), 1.0, 200)
SHORT = {"talker_max_new_tokens": 12}


def same(reply, spoken):
    np.testing.assert_array_equal(reply.codes, spoken.codes)
    assert_close(reply.audio, spoken.whole)


def whole(words):
    """Options of the reference and of ours for a reply of a given number of tokens, all of them spoken."""
    return {**SHORT, "thinker_max_new_tokens": words + 1}, {**SHORT, "thinker_max_new_tokens": words}


def test_speech_of_a_picture_beside_sound_raises(omni, reference):
    """An error, because the talker's configuration lacks the audio window."""
    row = conversation(omni, ("user", IMAGE, AUDIO), words=15)
    theirs, ours = whole(8)
    with pytest.raises(AttributeError, match="audio_config"):
        say(reference, [row], mends=MENDS - {"n_window"}, **theirs)
    same(answer(omni, [row], **ours)[0], say(reference, [row], **theirs)[0])


def test_the_users_media_get_the_positions_of_the_system_turns(omni, reference):
    """The user's picture of 4 tokens gets the positions of the system's picture, which has 6 and is not read."""
    row = conversation(omni, ("system", IMAGE), ("user", ("image", 4, 4), ("audio", 145)), words=5)
    theirs, ours = whole(8)
    (wrong,), (right,) = (say(reference, [row], mends=mends, **theirs) for mends in (MENDS - {"media"}, MENDS))
    picture = slice(3 + 5 + 1, 3 + 5 + 1 + 4)  # after the head of the turn, its words and vision_start
    np.testing.assert_array_equal(wrong.positions[1:, picture] - 9, [[0, 0, 0, 1], [0, 1, 2, 0]])
    np.testing.assert_array_equal(right.positions[1:, picture] - 9, [[0, 0, 1, 1], [0, 1, 0, 1]])
    assert wrong.codes.tolist() != right.codes.tolist()
    same(answer(omni, [row], **ours)[0], right)


def test_a_videos_sound_gets_positions_of_text(omni, reference):
    """The talker does not get the flag, and gives a video with sound the positions of as much text."""
    row = conversation(omni, ("user", SOUNDING), words=5)
    theirs, ours = whole(8)
    (wrong,), (right,) = (say(reference, [row], mends=mends, **theirs) for mends in (MENDS - {"sound"}, MENDS))
    np.testing.assert_array_equal(wrong.positions[0], np.arange(wrong.positions.shape[1]))
    assert np.abs(wrong.positions - right.positions).max() > 1
    assert wrong.codes.tolist() != right.codes.tolist()
    same(answer(omni, [row], **ours)[0], right)


def test_the_end_of_an_answer_begun_in_the_prompt_is_not_spoken(omni, reference):
    """As many words as stood in the prompt are not spoken at the end, because counting starts at the beginning."""
    row = conversation(omni, ("user", ("image", 8, 8)), ("assistant",), words=18)
    options = stops(reference, [row])
    (wrong,), (right,) = (say(reference, [row], mends=mends, **options) for mends in (MENDS - {"words"}, MENDS))
    words = len(right.tokens) - 1
    assert len(right.words) == 18 + words
    assert_close(wrong.words[:words], right.words[:words])
    assert_close(wrong.words[words], right.words[-1])  # tts_eos
    assert np.abs(wrong.words[words + 1 :] - wrong.words[-1]).max() == 0  # tts_pad
    assert wrong.codes.tolist() != right.codes.tolist()
    same(answer(omni, [row], **options)[0], right)


def test_the_last_token_of_a_reply_cut_by_its_length_is_not_spoken(omni, reference):
    """Its last token is not spoken, because it has no state yet. We speak all, as the reference with one more token."""
    row = conversation(omni, ("user",), words=45)
    theirs, ours = whole(6)
    longer, shorter = (say(reference, [row], **{**theirs, "thinker_max_new_tokens": words})[0] for words in (7, 6))
    reply = answer(omni, [row], **ours)[0]
    assert reply.tokens == shorter.tokens
    assert reply.finish_reason == "length"
    assert len(longer.words) == 1 + len(shorter.words)
    same(reply, longer)
    assert reply.codes.tolist() != shorter.codes.tolist()


def test_a_row_that_ends_early_speaks_its_end_token(omni, reference):
    """The end token <|im_end|>, or another that ended a row, is spoken like a word while another row continues."""
    rows = [conversation(omni, ("user",), words=45, seed=seed) for seed in (0, 1)]
    options = stops(reference, rows, words=(3, 8)) | {"talker_max_new_tokens": 25}
    del options["talker_eos_token_id"]
    alone = [say(reference, [row], **options)[0] for row in rows]
    early, late = np.argsort([len(item.tokens) for item in alone])
    words = len(alone[early].tokens) - 1
    assert words < len(alone[late].tokens) - 1
    together = say(reference, rows, **options)[early]
    assert_close(together.words[: words - 1], alone[early].words[: words - 1])
    assert_close(together.words[words], alone[early].words[words - 1])  # tts_eos comes a frame late, after
    spoken = embedded(reference, alone[early].tokens[-1])
    assert_close(together.words[words - 1], spoken)
    assert together.codes.tolist() != alone[early].codes.tolist()
    for reply, item in zip(answer(omni, rows, **options), alone, strict=True):
        same(reply, item)


def embedded(reference, token):
    """A token as the talker reads it."""
    with torch.no_grad():
        return reference.talker.text_projection(reference.thinker.get_input_embeddings()(torch.tensor(token))).numpy()


def test_the_penalty_of_a_padded_row_spares_its_first_codes(omni, reference):
    """As many codes as the talker's prompt has padding are not penalised; the logits are right, the choice is not."""
    rows = [conversation(omni, ("user",), words=words, seed=words) for words in (45, 37)]
    theirs, ours = (options | {"talker_repetition_penalty": 1.5} for options in whole(8))
    alone, together = [say(reference, [row], **theirs)[0] for row in rows], say(reference, rows, **theirs)
    np.testing.assert_array_equal(together[0].codes, alone[0].codes)
    at = np.flatnonzero((together[1].codes != alone[1].codes).any(axis=0))[0]
    assert_close(together[1].logits[at], alone[1].logits[at])
    assert together[1].codes[0, at] in alone[1].codes[0, :at]
    for reply, item in zip(answer(omni, rows, **ours), alone, strict=True):
        same(reply, item)


def test_every_answer_is_read_from_where_the_first_begins(omni, reference):
    """The talker reads every row's answer from the position where the first row's begins."""
    rows = [conversation(omni, ("user",), words=44), conversation(omni, ("user",), ("assistant",), words=22, seed=1)]
    assert len(rows[0].tokens) == len(rows[1].tokens)
    theirs, ours = (options | {"talker_repetition_penalty": 1.0} for options in whole(8))
    alone, together = [say(reference, [row], **theirs)[0] for row in rows], say(reference, rows, **theirs)
    assert [item.tokens for item in together] == [item.tokens for item in alone]
    assert_close(together[0].prompt, alone[0].prompt)
    assert_close(together[1].prompt[:-ASSISTANT], alone[1].prompt[:-ASSISTANT])
    assert np.abs(together[1].prompt[-ASSISTANT:] - alone[1].prompt[-ASSISTANT:]).max() > 0.1
    assert together[1].codes.tolist() != alone[1].codes.tolist()
    for reply, item in zip(answer(omni, rows, **ours), alone, strict=True):
        same(reply, item)


def test_speech_that_ends_at_once_raises(omni, reference):
    """The reference raises where the talker's first token ends it, or may be the last. We return silence."""
    row = conversation(omni, ("user",), words=45)
    theirs, ours = whole(8)
    code = int(say(reference, [row], **theirs)[0].codes[0, 0])
    for options in ({"talker_eos_token_id": [code]}, {"talker_max_new_tokens": 1}):
        with pytest.raises(RuntimeError, match="non-empty"):
            say(reference, [row], **theirs | options)
        silent(omni, answer(omni, [row], **ours | options)[0])


def test_an_empty_reply_raises(omni, reference):
    """The reference raises where the reply's first token ends it. We return silence."""
    row = conversation(omni, ("user",), words=45)
    token = answer(omni, [row], **whole(8)[1])[0].tokens[0]
    with pytest.raises(RuntimeError, match="size"):
        say(reference, [row], thinker_eos_token_id=[token], **whole(8)[0])
    reply = answer(omni, [row], thinker_eos_token_id=[token], **whole(8)[1])[0]
    assert reply.tokens == [token]
    silent(omni, reply)


def silent(omni, reply):
    assert reply.codes.shape == (omni.config.talker.codebooks, 0)
    assert reply.audio.shape == (0,)


def test_a_reply_of_one_token_raises(omni, reference):
    """The reference raises where there may not be a second token. We speak it, like the reference's first of two."""
    row = conversation(omni, ("user",), words=45)
    with pytest.raises(RuntimeError, match="size"):
        say(reference, [row], **whole(0)[0])
    reply = answer(omni, [row], **whole(1)[1])[0]
    assert len(reply.tokens) == 1
    same(reply, say(reference, [row], **whole(1)[0])[0])


def test_a_prompt_without_a_user_turn_raises(omni, reference):
    """The reference raises, because it keeps all states for an empty selection. We speak from the answer alone."""
    row = conversation(omni, ("system",), words=45)
    theirs, ours = whole(8)
    with pytest.raises(RuntimeError, match="size"):
        say(reference, [row], mends=MENDS - {"nothing"}, **theirs)
    same(answer(omni, [row], **ours)[0], say(reference, [row], **theirs)[0])


def test_samples_are_missing_after_every_300_frames(omni, reference):
    """555 samples are missing at the end of each 300 frames, and the rest comes too early. Ours is seamless."""
    row = conversation(omni, ("user",), words=45)
    theirs, ours = whole(8)
    expected = say(reference, [row], **theirs | {"talker_max_new_tokens": 321})[0]
    assert expected.codes.shape[1] == 320
    assert len(expected.audio) == 1920 * 320 - 2 * 555
    assert_close(expected.audio[: 300 * 1920 - 555], expected.whole[: 300 * 1920 - 555])
    assert_close(expected.audio[300 * 1920 - 555 :], expected.whole[300 * 1920 :])
    reply = answer(omni, [row], **ours | {"talker_max_new_tokens": 321})[0]
    assert reply.audio.shape == (1920 * 320 - 555,)
    same(reply, expected)
    assert_close(omni.decode_codes(expected.codes), expected.whole)
