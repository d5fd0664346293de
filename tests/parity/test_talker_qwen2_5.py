"""Qwen2.5-Omni's talker against Transformers: teacher-forced prompts and frames, after media, whole and by steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from omni_jax import weights
from omni_jax.config import from_hf
from tests.parity.parity_close import assert_close
from tests.parity.parity_qwen2_5 import generate, load_reference
from tests.parity.parity_scenes import scene
from tests.parity.parity_scenes import theirs as keywords

SIZES = ["7B", "3B", "7B's heads", "3B's heads"]
SHORT = {"thinker_max_new_tokens": 5, "talker_max_new_tokens": 8}


def tracks(qwen2_5, length, seed=0):
    """The sum of both tracks, of random words and codes."""
    return (
        np.random.default_rng([seed, length])
        .normal(size=(length, qwen2_5.omni.config.thinker.decoder.width))
        .astype("f")
    )


def rope(length, seed=0):
    """Positions as after media: the three coordinates differ."""
    return np.cumsum(np.random.default_rng([seed, length]).choice([0, 1, 2, 5], (3, length)), axis=1)


def theirs(reference, x, positions):
    """Final-normed states and logits of a row at given positions."""
    x = torch.from_numpy(x[None].copy()).to(reference.talker.dtype)
    with torch.no_grad():
        out = reference.talker(
            inputs_embeds=x, position_ids=torch.from_numpy(positions[:, None]), output_hidden_states=True,
            attention_mask=torch.ones(x.shape[:2], dtype=torch.long),
        )  # fmt: skip
    assert out.logits.dtype == torch.float32
    return out.hidden_states[-1][0].float().numpy(), out.logits[0].numpy()


extend = jax.jit(lambda talker, *given, fresh=False: talker.extend(*given, fresh=fresh), static_argnames="fresh")


def whole(talker, x, positions):
    """Final-normed states and logits of every position: one row for each prefix."""
    count = len(x)
    rows, positions = (np.repeat(array, count, axis) for array, axis in ((x[None], 0), (positions[:, None], 1)))
    logits, states, _ = extend(
        talker, rows, positions, np.arange(1, count + 1), talker.empty_cache(count, count), fresh=True
    )
    return states, logits


@pytest.mark.parametrize("size", SIZES)
def test_states_and_logits_of_a_prompt_equal_the_reference(qwen2_5_of, size):
    qwen2_5 = qwen2_5_of(size)
    x, positions = tracks(qwen2_5, 14), rope(14)
    found = whole(qwen2_5.omni.parts.talker, x, positions)
    for mine, expected in zip(found, theirs(qwen2_5.reference, x, positions), strict=True):
        assert_close(mine, expected)


@pytest.mark.parametrize("size", SIZES)
def test_prefill_and_steps_of_unequal_rows_equal_the_reference(qwen2_5_of, size):
    """Prompts of 11 and 4 in one batch, then five steps of each: all states and logits equal those of the whole."""
    qwen2_5, prompts, steps = qwen2_5_of(size), [11, 4], 5
    talker = qwen2_5.omni.parts.talker
    rows = [tracks(qwen2_5, length + steps, row) for row, length in enumerate(prompts)]
    places = [rope(length + steps, row) for row, length in enumerate(prompts)]
    expected = [theirs(qwen2_5.reference, x, at) for x, at in zip(rows, places, strict=True)]
    x, positions = np.ones((2, 11, rows[0].shape[1]), np.float32), np.ones((3, 2, 11), int)
    for row, length in enumerate(prompts):
        x[row, :length], positions[:, row, :length] = rows[row][:length], places[row][:, :length]
    logits, last, cache = extend(talker, x, positions, np.array(prompts), talker.empty_cache(2, 24), fresh=True)
    for step in range(steps + 1):
        for row, length in enumerate(prompts):
            assert_close(last[row], expected[row][0][length + step - 1])
            assert_close(logits[row], expected[row][1][length + step - 1])
        if step < steps:
            at = [length + step for length in prompts]
            x = np.stack([rows[row][n] for row, n in enumerate(at)])[:, None]
            positions = np.stack([places[row][:, n] for row, n in enumerate(at)], axis=1)[:, :, None]
            logits, last, cache = extend(talker, x, positions, np.array([1, 1]), cache)


CASES = {
    "text": (),
    "audio": (("audio", 237),),
    "image and audio": (("image", 4, 6), ("audio", 120)),
    "video": (("video", (3, 4, 6), 0.7),),
    "video with sound": (("sounding", (4, 4, 4), 1.0, 300),),
}


@pytest.mark.parametrize("size", ["7B", "3B"])
@pytest.mark.parametrize("case", CASES)
def test_states_and_logits_of_a_reply_equal_the_reference(qwen2_5_of, size, case):
    """The inputs and positions of the reference's talker in a whole run, and its states and logits."""
    qwen2_5 = qwen2_5_of(size)
    said = generate(qwen2_5.reference, keywords([scene(qwen2_5.omni, *CASES[case])]), **SHORT)[0]
    read = slice(said.prompt - 1, None)
    states, logits = whole(qwen2_5.omni.parts.talker, said.fed, said.positions)
    assert_close(states[read], said.states)
    assert_close(logits[read], said.logits)
    counted = said.positions[:, : said.prompt] == np.arange(said.prompt)
    assert counted.all() == (case in ("text", "audio"))


@pytest.mark.parametrize("size", ["7B", "3B"])
def test_the_sum_of_both_tracks_equals_the_reference(qwen2_5_of, size):
    """The embeddings of codes and text add up to the inputs of the reference's talker."""
    qwen2_5 = qwen2_5_of(size)
    talker, thinker, config = qwen2_5.omni.parts.talker, qwen2_5.omni.parts.thinker, qwen2_5.omni.config
    said = generate(qwen2_5.reference, keywords([scene(qwen2_5.omni)]), **SHORT)[0]
    codes, fed = said.codes[:-1], said.fed[said.prompt :]
    words = said.words[np.minimum(np.arange(len(codes)), len(said.words) - 1)]
    assert_close(talker.embedding(codes) + words, fed)
    unread = thinker.embedding(np.array([config.tts_eos, config.tts_pad]))
    np.testing.assert_array_equal(talker.text(unread, jnp.zeros_like(unread)), said.words[-2:])
    unmended = generate(qwen2_5.reference, keywords([scene(qwen2_5.omni)]), mend=False, **SHORT)[0]
    marks = talker.embedding(np.array([config.talker.codec_pad, config.talker.codec_bos]))
    assert_close(said.fed[said.prompt - 2 : said.prompt] - unmended.fed[said.prompt - 2 : said.prompt], marks)


def test_an_absent_code_is_embedded_as_zeros(qwen2_5):
    assert not np.any(qwen2_5.omni.parts.talker.embedding(np.array([-1, -1])))


def test_only_codes_of_the_vocoder_may_be_chosen(qwen2_5):
    """The reference's vocoder raises for ids beyond its table and for control ids; we never choose them."""
    codes, voice = qwen2_5.omni.parts.talker.codes, qwen2_5.reference.speaker_map["Ethan"]
    assert codes.shape == (qwen2_5.reference.config.talker_config.vocab_size,)
    known, unknown = np.flatnonzero(codes), np.flatnonzero(~codes)
    embed = qwen2_5.reference.token2wav.code2wav_dit_model.text_embed
    assert embed(torch.from_numpy(known)[None]).shape[1] == 2 * len(known)
    for code in unknown:
        with pytest.raises(IndexError):
            qwen2_5.reference.token2wav(torch.tensor([[code]]), voice["cond"], voice["ref_mel"])


@pytest.mark.parametrize("size", ["7B", "3B"])
def test_logits_of_a_bfloat16_model_are_float32(qwen2_5_of, size):
    """Logits are float32, because scores are compared and penalised; states are bfloat16."""
    qwen2_5 = qwen2_5_of(size)
    talker = weights.load(qwen2_5.folder, from_hf(qwen2_5.folder), dtype="bfloat16").talker
    reference = load_reference(qwen2_5.folder, torch.bfloat16)
    x, positions = tracks(qwen2_5, 14), rope(14)
    states, logits = whole(talker, x.astype(jnp.bfloat16), positions)
    assert states.dtype == jnp.bfloat16
    assert logits.dtype == np.float32
    expected = theirs(reference, x, positions)
    exact = theirs(qwen2_5.reference, x, positions)
    for mine, rounded, true in zip((states, logits), expected, exact, strict=True):
        mine = np.asarray(mine, np.float32)
        # About as far from the float32 model as the reference's own bfloat16.
        assert np.abs(mine - true).max() < 2 * np.abs(rounded - true).max()
        assert_close(mine, rounded, 2**-6)
