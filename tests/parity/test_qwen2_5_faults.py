"""Shows where the reference's Qwen2.5-Omni is wrong or refuses. If a test fails, Transformers may have been fixed.

Its intended behaviour is ``parity_qwen2_5.generate`` with the talker fixed; ours is compared with that. The first tests
show that it does not depend on batch and padding.
"""

import numpy as np
import pytest
import torch

from tests.parity.parity_close import assert_close
from tests.parity.parity_qwen2_5 import GREEDY, NO_PIXELS, generate, load_reference, seeded_noise, stops
from tests.parity.parity_scenes import scene
from tests.parity.parity_scenes import theirs as keywords

IMAGE, AUDIO, VIDEO = ("image", 4, 6), ("audio", 120), ("video", (3, 4, 6), 0.7)
SHORT = {"thinker_max_new_tokens": 6, "talker_max_new_tokens": 12}
KINDS = [(), (AUDIO,), (IMAGE,), (VIDEO, AUDIO), (("sounding", (2, 4, 4), 1.0, 200),)]


def asked(qwen2_5, *parts, **options):
    return keywords([scene(qwen2_5.omni, *parts, **options)])


def same(found, expected):
    assert found.tokens == expected.tokens
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.positions, expected.positions)
    for name in ("fed", "states", "logits", "audio"):
        assert_close(getattr(found, name), getattr(expected, name))


# --- the fixed reference


@pytest.mark.parametrize("silent", [True, False])
def test_the_fixed_reference_gives_equal_rows_in_any_batch(qwen2_5, silent):
    """Left-padded rows of other lengths, media, noise and ends."""
    kinds = KINDS[:4] if silent else [KINDS[0], KINDS[4], KINDS[2]]
    rows = [scene(qwen2_5.omni, *parts, words=4 + 3 * seed, seed=seed) for seed, parts in enumerate(kinds)]
    alone = [keywords([row]) for row in rows]
    options = stops(qwen2_5.reference, alone)
    together = generate(qwen2_5.reference, keywords(rows), seed=list(range(len(rows))), **options)
    expected = [generate(qwen2_5.reference, row, seed=seed, **options)[0] for seed, row in enumerate(alone)]
    assert len({len(row.codes) for row in expected}) > 1
    assert len({len(row.tokens) for row in expected}) > 1
    for found, row in zip(together, expected, strict=True):
        assert found.tokens[-1] in options["thinker_eos_token_id"]
        assert len(found.logits) == len(found.codes) + 1
        same(found, row)


def test_the_reference_uses_the_given_noise(qwen2_5):
    """The waveform equals that of the codes and the seed's noise, to the last bit."""
    first, again, other = (generate(qwen2_5.reference, asked(qwen2_5), seed=seed, **SHORT)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.audio, again.audio)
    np.testing.assert_array_equal(first.codes, other.codes)
    assert np.abs(first.audio - other.audio).max() > 0.01 * np.abs(first.audio).max()
    assert len(first.audio) == 480 * len(first.codes)
    np.testing.assert_array_equal(seeded_noise(3, 200, 16)[:24], seeded_noise(3, 24, 16))


# --- its talker without a mask


@pytest.mark.parametrize("parts", KINDS)
def test_a_prompt_without_padding_lacks_codec_marks_and_media_positions(qwen2_5, parts):
    """The last two embeddings of the talker's prompt lack codec_pad and codec_bos, and media have positions of text."""
    wrong, right = (
        generate(qwen2_5.reference, asked(qwen2_5, *parts), mend=mend, **SHORT)[0] for mend in (False, True)
    )
    assert wrong.tokens == right.tokens
    talker, end = qwen2_5.reference.config.talker_config, right.prompt
    marks = torch.tensor([talker.tts_codec_pad_token_id, talker.tts_codec_start_token_id])
    marks = qwen2_5.reference.talker.get_input_embeddings()(marks).detach().numpy()
    np.testing.assert_array_equal(wrong.fed[: end - 2], right.fed[: end - 2])
    assert_close(right.fed[end - 2 : end] - wrong.fed[end - 2 : end], marks)
    np.testing.assert_array_equal(wrong.positions, np.broadcast_to(np.arange(len(wrong.fed)), wrong.positions.shape))
    assert (wrong.positions != right.positions).any() == any(kind != "audio" for kind, *_ in parts)
    assert np.abs(wrong.logits[0] - right.logits[0]).max() > 0.01 * np.abs(right.logits[0]).max()


def test_a_prompt_is_spoken_differently_alone_and_in_a_batch(qwen2_5):
    """Padding keeps the mask, so the row without padding is right too; with equal lengths both are wrong."""
    rows = [scene(qwen2_5.omni, IMAGE, words=words, seed=words) for words in (5, 17)]
    right = [generate(qwen2_5.reference, keywords([row]), **SHORT)[0] for row in rows]
    wrong = [generate(qwen2_5.reference, keywords([row]), mend=False, **SHORT)[0] for row in rows]
    for found, row in zip(generate(qwen2_5.reference, keywords(rows), mend=False, **SHORT), right, strict=True):
        same(found, row)
    assert any(a.codes.tolist() != b.codes.tolist() for a, b in zip(right, wrong, strict=True))
    twice = generate(qwen2_5.reference, keywords([rows[0], rows[0]]), mend=False, **SHORT)
    for found in twice:
        same(found, wrong[0])


# --- what it refuses


@pytest.mark.parametrize(("parts", "name"), [((IMAGE,), "pixel_values"), ((VIDEO,), "pixel_values_videos")])
def test_speech_about_pictures_raises(qwen2_5, parts, name):
    """Its talker gets the pixels and refuses them. Text is written; with separate talker keywords there is speech."""
    given = {**asked(qwen2_5, *parts), **GREEDY, **SHORT}
    with pytest.raises(ValueError, match=rf"model_kwargs.*\['{name}'\]"):
        qwen2_5.reference.generate(**given)
    text = qwen2_5.reference.generate(**given, generation_mode="text")
    said = generate(qwen2_5.reference, asked(qwen2_5, *parts), **SHORT)[0]
    assert text[0].tolist()[-len(said.tokens) :] == said.tokens
    assert set(NO_PIXELS) >= {f"talker_{name}"}


@pytest.mark.parametrize("end", ["length", "token"])
def test_a_reply_of_one_token_raises(qwen2_5, end):
    """A reply that is cut after one token, or ended by it, has no text to speak and raises."""
    first = generate(qwen2_5.reference, asked(qwen2_5), **SHORT)[0].tokens[0]
    options = SHORT | ({"thinker_max_new_tokens": 1} if end == "length" else {"thinker_eos_token_id": [first]})
    with pytest.raises(ValueError, match="non-empty list"):
        generate(qwen2_5.reference, asked(qwen2_5), **options)


def test_speech_that_ends_at_once_raises(qwen2_5):
    """A talker that ends at once raises; one code does not."""
    said = generate(qwen2_5.reference, asked(qwen2_5), **SHORT | {"talker_max_new_tokens": 1})[0]
    assert (said.codes.shape, said.audio.shape) == ((1,), (480,))
    with pytest.raises(RuntimeError, match="0 elements"):
        generate(qwen2_5.reference, asked(qwen2_5), **SHORT, talker_eos_token_id=said.codes.tolist())


def test_the_last_token_of_a_reply_cut_by_its_length_is_not_spoken(qwen2_5):
    """It has no state yet."""
    shorter, longer = (
        generate(qwen2_5.reference, asked(qwen2_5), **SHORT | {"thinker_max_new_tokens": words})[0] for words in (6, 7)
    )
    assert shorter.tokens == longer.tokens[:-1]
    assert len(shorter.words) == 4 + 2  # from the second token on, then tts_eos and tts_pad
    assert len(longer.words) == 5 + 2
    assert_close(shorter.words[:4], longer.words[:4])
    assert shorter.codes.tolist() != longer.codes.tolist()


def test_a_limit_without_a_prefix_is_ignored(qwen2_5):
    """Neither the thinker nor the talker gets it."""
    said = generate(qwen2_5.reference, asked(qwen2_5), **SHORT, max_new_tokens=2)[0]
    assert (len(said.tokens), len(said.codes)) == (6, 12)
    late = said.tokens[-1]
    text = qwen2_5.reference.generate(
        **asked(qwen2_5), **GREEDY, max_new_tokens=2, thinker_eos_token_id=late, generation_mode="text"
    )
    assert text[0].tolist()[-len(said.tokens) :] == said.tokens


@pytest.mark.parametrize("wanted", [True, False])
def test_return_audio_is_refused(qwen2_5, wanted):
    """The keyword of Qwen3-Omni."""
    with pytest.raises(ValueError, match=r"model_kwargs.*\['return_audio'\]"):
        qwen2_5.reference.generate(**asked(qwen2_5), **GREEDY, **SHORT, return_audio=wanted)


def test_without_a_talker_generate_raises(qwen2_5):
    reference = load_reference(qwen2_5.folder)
    reference.disable_talker()
    with pytest.raises(AttributeError, match="talker"):
        reference.generate(**asked(qwen2_5), **GREEDY, **SHORT, generation_mode="text")
