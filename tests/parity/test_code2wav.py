"""The vocoder against Transformers: whole, in streams, and deep enough that lost context of a stream would show.

The reference is one forward pass. Its ``chunked_decode`` differs: see the last tests.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from omni_jax.speech.qwen3_omni import decode
from tests.parity.parity_close import assert_close

step = jax.jit(lambda model, state, codes, lengths: model.step(state, codes, lengths))


@pytest.fixture(scope="module")
def tiny_pair(loaded, reference):
    return loaded.code2wav, reference.code2wav


@pytest.fixture(scope="module")
def deep_pair(tmp_path_factory):
    """Narrow, with the published layers and window: a frame depends on 568 frames before it."""
    from transformers import Qwen3OmniMoeForConditionalGeneration

    from omni_jax import weights
    from omni_jax.config import from_hf
    from omni_jax.testing import tiny_config, write_tiny

    config = tiny_config()
    config["code2wav_config"] |= {"num_hidden_layers": 8, "sliding_window": 72}
    folder = write_tiny(tmp_path_factory.mktemp("deep"), config=config, seed=7)
    reference = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return weights.load(folder, from_hf(folder), dtype="float32").code2wav, reference.code2wav


def speech(rows, frames):
    return np.random.default_rng(frames).integers(0, 64, (rows, 4, frames), np.int32)


def theirs(reference, codes):
    with torch.no_grad():
        return reference(torch.from_numpy(np.asarray(codes, np.int64)))[:, 0].float().numpy()


@pytest.mark.parametrize("frames", [1, 310])
def test_a_whole_pass_equals_the_reference(tiny_pair, frames):
    model, reference = tiny_pair
    codes = speech(2, frames)
    found = decode(model, codes, np.full(2, frames))
    assert found.shape == (2, 1920 * frames - 555)
    assert_close(found, theirs(reference, codes))


@pytest.mark.parametrize(("kind", "lengths"), [("tiny", [1, 2, 3, 25, 60]), ("deep", [1, 2, 3, 25, 60, 310])])
def test_padded_rows_equal_the_reference(request, kind, lengths):
    """Every length in one call; each equals the reference alone."""
    model, reference = request.getfixturevalue(f"{kind}_pair")
    codes = speech(len(lengths), max(lengths))
    found = np.asarray(decode(model, codes, np.array(lengths)))
    for row, length in enumerate(lengths):
        assert_close(found[row : row + 1, : model.samples(length)], theirs(reference, codes[row : row + 1, :, :length]))


def test_a_stream_equals_the_reference(deep_pair):
    model, reference = deep_pair
    codes, size = speech(1, 310), 16
    state, samples = model.start(1), []
    for start in range(0, 310, size):
        piece = codes[..., start : start + size]
        new = piece.shape[-1]
        piece = np.pad(piece, [(0, 0), (0, 0), (0, size - new)])
        state, some = step(model, state, piece, np.array([new]))
        samples.append(np.asarray(some)[:, (0 if start else model.lag) : new * model.frame_samples])
    assert_close(np.concatenate(samples, axis=1), theirs(reference, codes))


def test_feeding_context_again_differs_from_a_stream(deep_pair, tiny_pair):
    """Others stream with 25 frames of context before each piece. That is right where layers times window is less, as in
    tiny models, and wrong in a deep model. The pieces are the reference's own."""
    for (_, reference), wrong in ((tiny_pair, False), (deep_pair, True)):
        codes = speech(1, 120)
        whole = theirs(reference, codes)[:, 100 * 1920 :]
        again = theirs(reference, codes[..., 75:])[:, 25 * 1920 :]
        error = np.abs(again - whole).max() / np.abs(whole).max()
        assert (error > 1e-3) == wrong
        assert wrong or error < 1e-5


def test_chunks_of_the_reference_lose_their_ends(tiny_pair):
    """555 samples are missing at the end of every chunk, not only the last. If this fails, Transformers was fixed."""
    model, reference = tiny_pair
    codes = speech(1, 60)
    with torch.no_grad():
        chunks = reference.chunked_decode(torch.from_numpy(codes.astype(np.int64)), chunk_size=20)[:, 0].numpy()
    assert chunks.shape[1] == 1920 * 60 - 3 * 555 < model.samples(60)
    assert_close(chunks[:, : 20 * 1920 - 555], theirs(reference, codes)[:, : 20 * 1920 - 555])


def test_bfloat16_is_as_accurate_as_the_reference(tiny_pair):
    """The vocoder has its weights' dtype, as the reference's, and so the same error."""
    model, reference = tiny_pair
    codes = speech(1, 4)
    half = copy.deepcopy(reference).bfloat16()
    half.pre_transformer.rotary_emb = reference.pre_transformer.rotary_emb  # its frequencies are float32 in any model
    exact, rounded = theirs(reference, codes), theirs(half, codes)
    found = decode(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model), codes, np.array([4]))
    ours, allowed = np.abs(found - exact).max(), np.abs(rounded - exact).max()
    assert 0 < ours < 1.5 * allowed
    assert allowed < 0.1 * np.abs(exact).max()
