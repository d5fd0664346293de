"""Qwen2.5-Omni's thinker against Transformers: rope, logits and states of prompts of every kind, padding on either side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as modeling

from omni_jax.engine import encode
from omni_jax.nn.rope import rotate, rotation
from tests.parity.parity_close import assert_close
from tests.parity.parity_scenes import batch, scene
from tests.parity.parity_scenes import theirs as keywords

# --- rope


@pytest.mark.parametrize(("width", "section"), [(128, (16, 24, 24)), (64, (16, 16, 0)), (4, (1, 1, 0))])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rope_equals_the_reference(width, section, dtype):
    """Thinker and talker, 7B and 3B: the rotation of queries equals the reference's, in the activations' dtype."""
    config = modeling.Qwen2_5OmniTextConfig(
        hidden_size=width, num_attention_heads=1, num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(section)},
    )  # fmt: skip
    random = np.random.default_rng(0)
    positions = random.integers(0, 32_768, (3, 2, 9))
    x = random.standard_normal((2, 9, 3, width), np.float32)
    turn = rotation(
        jnp.asarray(positions), head_width=width, theta=1e6, section=section, interleaved=False, dtype=jnp.dtype(dtype)
    )
    found = rotate(jnp.asarray(x, dtype), *turn)
    theirs = torch.from_numpy(x).to(getattr(torch, dtype)).transpose(1, 2)
    turn = modeling.Qwen2_5OmniRotaryEmbedding(config)(theirs, torch.from_numpy(positions))
    expected = modeling.apply_rotary_pos_emb(theirs, theirs, *turn)[0].transpose(1, 2)
    assert str(found.dtype) == str(expected.dtype).removeprefix("torch.") == dtype
    # In bfloat16 to the last bit: angles are float32 in both, and their difference is rounded away.
    assert_close(found.astype(jnp.float32), expected.float(), 1e-5 if dtype == "float32" else 0)


# --- logits and states

IMAGE, AUDIO, VIDEO = ("image", 4, 6), ("audio", 237), ("video", (3, 4, 6), 0.7)
SOUNDING = ("sounding", (4, 4, 4), 1.0, 400)
CASES = {
    "text": (),
    "audio": (AUDIO,),
    "short and long audio": (("audio", 3), ("audio", 450), ("audio", 100)),
    "image": (IMAGE,),
    "image of more windows than one": (("image", 10, 18),),
    "video": (VIDEO,),
    "image and audio": (IMAGE, AUDIO),
    "audio between image and video": (IMAGE, AUDIO, VIDEO),
    "video with sound": (SOUNDING,),
    "sound that ends before its video": (("sounding", (4, 4, 6), 1.5, 120),),
    "sound that goes on after its video": (("sounding", (2, 4, 4), 0.5, 500),),
    "images and videos with sound": (IMAGE, SOUNDING, ("image", 2, 2), ("sounding", (2, 8, 4), 1.0, 212)),
}
SIZES = ["7B's heads", "3B's heads"]


def theirs(qwen2_5, scenes, *, left=True):
    """Logits and all states of the reference."""
    with torch.no_grad():
        return qwen2_5.reference.thinker(**keywords(scenes, left=left), output_hidden_states=True)


def ours(qwen2_5, asked):
    """Embeddings and final-normed states of a batch with rows aligned left, and the number of tokens of each."""
    parts, config = qwen2_5.omni.parts, qwen2_5.omni.config.thinker
    placed = encode.pad_and_index(asked, config)
    made, thinker = placed.batch, parts.thinker
    embedded = encode.embed(parts, placed, config)
    room = thinker.empty_cache(*made.tokens.shape)
    prefill = jax.jit(thinker.prefill, static_argnames=("fresh", "hidden_layer"))
    _, _, states = prefill(embedded, made.positions, made.lengths, room, fresh=True, hidden_layer=config.decoder.layers)
    return np.asarray(embedded.x), np.asarray(states), made.lengths


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_reference(qwen2_5, case):
    row = scene(qwen2_5.omni, *CASES[case])
    assert_close(qwen2_5.omni.logits(batch([row])), theirs(qwen2_5, [row]).logits)


@pytest.mark.parametrize("words", [1, 13, 200])
def test_logits_of_text_equal_the_reference(qwen2_5, words):
    row = scene(qwen2_5.omni, words=words)
    assert_close(qwen2_5.omni.logits(batch([row])), theirs(qwen2_5, [row]).logits)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", ["text", "audio between image and video", "images and videos with sound"])
def test_logits_with_the_published_heads_equal_the_reference(qwen2_5_of, size, case):
    row = scene(qwen2_5_of(size).omni, *CASES[case], words=11)
    assert_close(qwen2_5_of(size).omni.logits(batch([row])), theirs(qwen2_5_of(size), [row]).logits)


BATCHES = {
    "silent": ["audio", "text", "image and audio", "video"],
    "sounding": ["video with sound", "text", "sound that goes on after its video", "image"],
}


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("kind", BATCHES)
def test_unequal_rows_and_padding_equal_the_reference(qwen2_5, kind, left):
    rows = [scene(qwen2_5.omni, *CASES[case], words=3 + 5 * n, seed=n) for n, case in enumerate(BATCHES[kind])]
    asked = batch(rows, left=left)
    assert_close(
        np.asarray(qwen2_5.omni.logits(asked))[asked.mask], theirs(qwen2_5, rows, left=left).logits.numpy()[asked.mask]
    )


def test_rows_of_videos_with_and_without_sound_equal_the_reference_alone(qwen2_5):
    """The reference supports one of the two a call, so it gets the rows alone."""
    rows = [scene(qwen2_5.omni, *CASES[case]) for case in ("video with sound", "video", "text", "video with sound")]
    asked = batch(rows)
    found = np.asarray(qwen2_5.omni.logits(asked))
    for row, logits, mask in zip(rows, found, asked.mask, strict=True):
        assert_close(logits[mask], theirs(qwen2_5, [row]).logits[0])


@pytest.mark.parametrize("kind", BATCHES)
def test_states_for_the_talker_equal_the_reference(qwen2_5, kind):
    """The first states, with media inserted, and the last ones, after the final norm."""
    rows = [scene(qwen2_5.omni, *CASES[case], words=3 + 5 * n, seed=n) for n, case in enumerate(BATCHES[kind])]
    embedded, states, lengths = ours(qwen2_5, batch(rows))
    expected = theirs(qwen2_5, rows, left=False).hidden_states
    for row, length in enumerate(lengths):
        assert_close(embedded[row, :length], expected[0][row, :length])
        assert_close(states[row, :length], expected[-1][row, :length])


@pytest.mark.parametrize("size", ["7B", *SIZES])
def test_prefill_and_steps_equal_the_reference(qwen2_5_of, size):
    """Prompts of unequal length, then six tokens one by one: logits and states equal those of the whole."""
    qwen2_5, steps = qwen2_5_of(size), 6
    rows = [
        scene(qwen2_5.omni, *CASES[case], words=20 - 9 * n, seed=n)
        for n, case in enumerate(["text", "image and audio"])
    ]
    said = np.random.default_rng(0).integers(0, 200, (2, steps))
    config, thinker = qwen2_5.omni.config.thinker, qwen2_5.omni.parts.thinker
    placed = encode.pad_and_index(batch(rows), config)
    asked = placed.batch
    prefill = jax.jit(thinker.prefill, static_argnames="fresh")
    logits, cache, _ = prefill(
        encode.embed(qwen2_5.omni.parts, placed, config), asked.positions, asked.lengths,
        thinker.empty_cache(len(asked.tokens), asked.tokens.shape[1] + steps), fresh=True,
    )  # fmt: skip
    for row, words in zip(rows, said, strict=True):
        row.tokens += words.tolist()
    expected = [theirs(qwen2_5, [row]) for row in rows]
    step, states = jax.jit(thinker.step), None
    for number in range(steps + 1):
        for row, whole in enumerate(expected):
            at = asked.lengths[row] + number - 1
            assert_close(logits[row], whole.logits[0, at])
            if states is not None:
                assert_close(states[row], whole.hidden_states[-1][0, at])
        if number < steps:
            last = np.stack([asked.positions[:, row, asked.lengths[row] - 1].max() for row in range(len(rows))])
            tokens = np.zeros(len(asked.tokens), np.int32)
            tokens[: len(rows)] = said[:, number]
            positions = np.zeros((3, len(asked.tokens)), np.float32)
            positions[:, : len(rows)] = last + 1 + number
            live = np.arange(len(asked.tokens)) < len(rows)
            logits, states, cache = step(tokens, positions, live.astype(np.int32), cache)
