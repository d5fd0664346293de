"""The talker's prompt: which turns, which media at which positions, and the head of the assistant's turn."""

import numpy as np
import pytest

from omni_jax.config import from_hf
from omni_jax.processing.batch import Batch
from omni_jax.processing.media.reader import Visual
from omni_jax.processing.positions import batch_positions, interleave
from omni_jax.processing.talker_prompt import qwen3_omni
from omni_jax.testing import tiny_config

CONFIG = from_hf(tiny_config())
THINKER, TALKER = CONFIG.thinker, CONFIG.talker
VOICE = 317
NEWLINE = 10
HEAD = [CONFIG.im_start, CONFIG.assistant, NEWLINE]
MARKS = [CONFIG.tts_pad] * 4 + [CONFIG.tts_bos]
CODES = [-1, -1, -1, TALKER.codec_nothink, TALKER.codec_think_bos, TALKER.codec_think_eos, VOICE, TALKER.codec_pad]


def turn(role, *tokens):
    return [CONFIG.im_start, role, NEWLINE, *tokens, CONFIG.im_end, NEWLINE]


def user(*tokens):
    return turn(CONFIG.user, *tokens)


def seen(grid, seconds=0.0):
    return Visual(np.zeros((int(np.prod(grid)), 1536), np.float32), grid, seconds)


def picture(grid):
    return [THINKER.vision_start, *[THINKER.image_token] * (int(np.prod(grid)) // 4), THINKER.vision_end]


def film(grid):
    return [THINKER.vision_start, *[THINKER.video_token] * (int(np.prod(grid)) // 4), THINKER.vision_end]


def prepare(*rows, images=(), videos=(), voices=None):
    longest = max(map(len, rows))
    tokens = np.array([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = np.array([[n < len(row) for n in range(longest)] for row in rows])
    batch = Batch.from_tokens(tokens, mask, (), images, videos).padded()
    return qwen3_omni.prepare(batch, voices or [VOICE] * len(batch.tokens), CONFIG)


def own(prompt, row=0):
    """A row's slots, without padding."""
    return (array[row, : prompt.lengths[row]].tolist() for array in (prompt.tokens, prompt.state_index, prompt.codes))


def test_a_text_prompt_ends_with_eight_slots_before_the_first_word():
    """The user's turn, then the eight slots before the first word: text and codec ids side by side."""
    asked = user(1, 2, 3)
    prompt = prepare([*asked, *HEAD])
    tokens, heard, codes = own(prompt)
    assert tokens == [*asked, *HEAD, *MARKS]
    assert heard == [-1] * len(tokens)
    assert codes == [*[-1] * len(asked), *CODES]
    assert not prompt.reads_states
    assert prompt.text_tokens[0] == ()
    np.testing.assert_array_equal(prompt.positions[:, 0, : len(tokens)], np.tile(np.arange(len(tokens)), (3, 1)))


def test_only_user_turns_and_the_last_assistant_turn_are_read():
    first, second = user(1, 2), user(3)
    prompt = prepare([*turn(CONFIG.system, 9), *first, *turn(CONFIG.assistant, 8, 8), *second, *HEAD, 4, 5])
    tokens, _, codes = own(prompt)
    assert tokens == [*first, *second, *HEAD, *MARKS]
    assert codes[-8:] == CODES
    assert prompt.text_tokens[0] == (4, 5)


def test_a_prompt_without_a_user_is_read():
    tokens, _, codes = own(prepare([*turn(CONFIG.system, 9), *HEAD]))
    assert tokens == [*HEAD, *MARKS]
    assert codes == CODES


def test_sound_refers_to_its_slots_in_the_thinkers_prompt():
    asked = [*turn(CONFIG.system, 9, 9), *user(1, THINKER.audio_start, *[THINKER.audio_token] * 3, THINKER.audio_end)]
    prompt = prepare([*asked, *HEAD])
    tokens, heard, _ = own(prompt)
    assert prompt.reads_states
    assert [asked[at] for at in heard if at >= 0] == [THINKER.audio_token] * 3
    at = tokens.index(THINKER.audio_token)
    assert heard[at : at + 3] == [asked.index(THINKER.audio_token) + n for n in range(3)]
    assert heard[at - 1] == heard[at + 3] == -1  # start and end tokens count as text


def test_a_picture_in_the_system_turn_does_not_shift_the_users():
    """The user's picture has its own positions, not those of the picture before it (as in the reference)."""
    hidden, shown = (1, 4, 6), (1, 8, 4)
    asked = user(1, *picture(shown))
    prompt = prepare([*turn(CONFIG.system, *picture(hidden)), *asked, *HEAD], images=[seen(hidden), seen(shown)])
    ids = np.array([[*asked, *[CONFIG.tts_pad] * 8]])
    expected = batch_positions(ids, np.ones(ids.shape, bool), [shown], [], THINKER)
    np.testing.assert_array_equal(prompt.positions[:, 0, : ids.shape[1]], expected[:, 0])
    assert (expected[0, 0] != np.arange(ids.shape[1])).any()


def test_media_are_counted_over_several_rows():
    """Media are counted over the whole batch; those of system turns and earlier answers are skipped in every row."""
    a, b, c, d = (1, 4, 4), (1, 4, 8), (2, 4, 4), (4, 4, 4)
    rows = [
        [*turn(CONFIG.system, *picture(a)), *user(*picture(b), 1), *HEAD],
        [*user(*film(c)), *turn(CONFIG.assistant, *picture(a)), *user(2, *film(d), *picture(b)), *HEAD],
    ]
    voices = [VOICE, VOICE + 1]
    videos = [seen(c, 0.7), seen(d, 2.0)]
    prompt = prepare(*rows, images=[seen(a), seen(b), seen(a), seen(b)], videos=videos, voices=voices)
    alone = [
        prepare(rows[0], images=[seen(a), seen(b)]),
        prepare(rows[1], images=[seen(a), seen(b)], videos=videos, voices=voices[1:]),
    ]
    for row, one in enumerate(alone):
        length = int(one.lengths[0])
        assert prompt.lengths[row] == length
        for name in ("tokens", "state_index", "codes"):
            np.testing.assert_array_equal(getattr(prompt, name)[row, :length], getattr(one, name)[0, :length])
        np.testing.assert_array_equal(prompt.positions[:, row, :length], one.positions[:, 0, :length])
    assert (prompt.codes == VOICE + 1).sum(axis=1).tolist() == [0, 1]


def test_a_video_with_sound_is_merged_by_time():
    grid, seconds = (4, 4, 4), 1.0
    mixed = interleave(grid, seconds, 20, THINKER).tolist()
    asked = user(THINKER.vision_start, THINKER.audio_start, *mixed, THINKER.audio_end, THINKER.vision_end, 5)
    prompt = prepare([*turn(CONFIG.system, 1), *asked, *HEAD], videos=[seen(grid, seconds)])
    ids = np.array([[*asked, *[CONFIG.tts_pad] * 8]])
    expected = batch_positions(ids, np.ones(ids.shape, bool), [], [(grid, seconds)], THINKER)
    np.testing.assert_array_equal(prompt.positions[:, 0, : ids.shape[1]], expected[:, 0])
    _, heard, _ = own(prompt)
    assert sum(at >= 0 for at in heard) == len(mixed)


@pytest.mark.parametrize("token", [THINKER.audio_token, THINKER.image_token, THINKER.video_token])
def test_media_in_the_assistants_open_turn_are_refused(token):
    with pytest.raises(ValueError, match=r"^to be spoken, the assistant's open turn must be text") as error:
        prepare([*user(1), *HEAD, 4, token])
    assert "\n" not in str(error.value)


def test_padding_rows_have_empty_prompts():
    prompt = prepare(*[[*user(1), *HEAD]] * 3, voices=[VOICE] * 3 + [-1])
    assert prompt.lengths.tolist() == [len(user(1)) + 8] * 3 + [0]
    assert prompt.text_tokens == ((),) * 4
    assert (prompt.state_index[3] == -1).all()
    assert (prompt.codes[3] == -1).all()


@pytest.mark.parametrize(
    "tokens",
    [
        [1, 2, 3],
        user(1),
        [*user(1), *HEAD[:2]],
        [*HEAD, 4, CONFIG.im_end, *user(1)],
        [CONFIG.im_start],
        turn(CONFIG.assistant, 4),
    ],
)
def test_a_prompt_without_an_open_assistant_turn_is_refused(tokens):
    with pytest.raises(
        ValueError, match=r"^to be spoken, a prompt must end in an open turn .* return_audio=False"
    ) as error:
        prepare(tokens)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"^row 1: to be spoken"):
        prepare([*user(1), *HEAD], tokens)
