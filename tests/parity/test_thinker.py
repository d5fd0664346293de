"""The thinker against Transformers: text, audio in text, padding on either side, rows of unequal length."""

import numpy as np
import pytest
import torch

from omni_jax.processing.batch import Batch
from tests.parity.parity_close import assert_close
from tests.parity.parity_inputs import clip, ids, pad, reference_inputs


def theirs(reference, tokens, mask, clips=()):
    with torch.no_grad():
        return reference.thinker(**reference_inputs(tokens, mask, clips)).logits.numpy()


@pytest.mark.parametrize("words", [1, 13, 61, 200])
def test_logits_of_text_equal_the_reference(omni, reference, words):
    tokens, mask = pad([ids(omni, words=words)], left=False)
    assert_close(omni.logits(tokens), theirs(reference, tokens, mask))


@pytest.mark.parametrize("frames", [[237], [100, 450], [999, 137, 100]])
def test_logits_of_audio_in_text_equal_the_reference(omni, reference, frames):
    tokens, mask = pad([ids(omni, *frames)], left=False)
    clips = [clip(n, seed) for seed, n in enumerate(frames)]
    assert_close(omni.logits(Batch.from_tokens(tokens, mel=clips)), theirs(reference, tokens, mask, clips))


@pytest.mark.parametrize("left", [True, False])
def test_logits_of_unequal_rows_equal_the_reference(omni, reference, left):
    frames = [[237], [], [120, 450]]
    tokens, mask = pad([ids(omni, *row, words=5 + 7 * n, seed=n) for n, row in enumerate(frames)], left=left)
    clips = [clip(n, seed) for seed, n in enumerate(n for row in frames for n in row)]
    real = mask.astype(bool)
    ours = np.asarray(omni.logits(Batch.from_tokens(tokens, mask, clips)))
    assert_close(ours[real], theirs(reference, tokens, mask, clips)[real])


@pytest.mark.parametrize("left", [True, False])
def test_logits_of_a_processors_output_equal_the_reference(omni, reference, left):
    rows = [ids(omni, 237), ids(omni, 100, words=3)]
    tokens, mask = pad(rows, left=left)
    inputs = reference_inputs(tokens, mask, [clip(237), clip(100)])
    real = mask.astype(bool)
    ours = np.asarray(omni.logits(Batch.from_hf(inputs)))
    assert_close(ours[real], theirs(reference, tokens, mask, [clip(237), clip(100)])[real])


def test_logits_with_128_experts_equal_the_reference(tmp_path):
    """128 experts, 8 a token, as published; narrow, so that most experts of a short prompt stay empty."""
    from transformers import Qwen3OmniMoeForConditionalGeneration

    from omni_jax import Omni
    from omni_jax.testing import tiny_config, write_tiny

    config = tiny_config()
    config["thinker_config"]["text_config"] |= {
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 8,
    }
    folder = write_tiny(tmp_path, config=config, seed=5)
    reference = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    omni = Omni.load(folder, speech=False)
    for words in (1, 300):
        tokens, mask = pad([ids(omni, words=words)], left=False)
        assert_close(omni.logits(tokens), theirs(reference, tokens, mask))


def test_a_processors_output_in_torch_bfloat16_is_read(omni):
    """As Qwen's examples do with ``inputs.to(model.dtype)``: torch's bfloat16, which NumPy does not know."""
    tokens, mask = pad([ids(omni, 100)], left=False)
    inputs = reference_inputs(tokens, mask, [clip(100)])
    plain = np.asarray(omni.logits(Batch.from_hf(inputs)))
    inputs["input_features"] = inputs["input_features"].bfloat16().requires_grad_()
    rounded = np.asarray(omni.logits(Batch.from_hf(inputs)))
    assert 0 < np.abs(rounded - plain).max() < 0.05 * np.abs(plain).max()
