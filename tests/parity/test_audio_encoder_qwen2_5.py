"""Qwen2.5-Omni's audio encoder against Transformers: lengths around pairs and chunks, alone and all in one call."""

import jax
import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as theirs

from omni_jax.config import Qwen25AudioEncoderConfig, halve
from omni_jax.models.qwen2_5_omni.audio_encoder import AudioEncoder
from tests.parity.parity_close import assert_close
from tests.parity.parity_qwen2_5 import filled

# Chunks as long as published.
CONFIG = Qwen25AudioEncoderConfig(
    mel_bins=16, layers=3, width=32, heads=4, ffn_width=48, chunk_frames=200, out_width=24
)
LENGTHS = [1, 2, 3, 4, 5, 7, 8, 9, 99, 100, 199, 200, 201, 237, 450]


@pytest.fixture(scope="module")
def tower():
    config = theirs.Qwen2_5OmniAudioEncoderConfig(
        num_mel_bins=CONFIG.mel_bins, encoder_layers=CONFIG.layers, encoder_attention_heads=CONFIG.heads,
        encoder_ffn_dim=CONFIG.ffn_width, d_model=CONFIG.width, n_window=CONFIG.chunk_frames // 2,
        output_dim=CONFIG.out_width,
    )  # fmt: skip
    model = theirs.Qwen2_5OmniAudioEncoder(config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        random = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            random = 0.3 * random + name.endswith(("norm.weight", "ln_post.weight"))
        else:
            random = random / parameter[0].numel() ** 0.5
        parameter.data.copy_(random)
    return model.eval()


@pytest.fixture(scope="module")
def encoder(tower):
    return filled("audio_encoder", lambda init: AudioEncoder(init, CONFIG), "thinker.audio_tower", tower)


def mel(frames, seed=0):
    return np.random.default_rng([seed, frames]).normal(size=(CONFIG.mel_bins, frames)).astype(np.float32)


_encode = jax.jit(lambda encoder, mel, extent: encoder.encode(mel, extent))


def ours(encoder, clips, spare=0):
    """Features of the clips, concatenated; ``spare`` slots of the call stay empty."""
    size = CONFIG.chunk_frames
    parts = [clip[:, start : start + size] for clip in clips for start in range(0, clip.shape[1], size)]
    chunks = np.zeros((len(parts) + spare, CONFIG.mel_bins, size), np.float32)
    extent = np.zeros(len(chunks), np.int32)
    for slot, part in enumerate(parts):
        extent[slot] = part.shape[1]
        chunks[slot, :, : part.shape[1]] = part
    found = np.asarray(_encode(encoder, chunks, extent))
    assert found.shape == (len(chunks), CONFIG.chunk_places // 2, CONFIG.out_width)
    assert np.isfinite(found).all()
    return np.concatenate([features[: halve(int(n)) // 2] for features, n in zip(found, extent, strict=True)])


def expected(tower, clips):
    """The reference takes clips packed along time, with their lengths."""
    lengths = torch.tensor([clip.shape[1] for clip in clips])
    with torch.no_grad():
        return tower(torch.from_numpy(np.concatenate(clips, axis=1)), lengths).last_hidden_state.numpy()


@pytest.mark.parametrize("frames", [n for n in LENGTHS if n > 2])
def test_a_single_clip_equals_the_reference(encoder, tower, frames):
    assert_close(ours(encoder, [mel(frames)]), expected(tower, [mel(frames)]))


@pytest.mark.parametrize("frames", [1, 2])
def test_a_clip_of_one_position_has_no_token(encoder, tower, frames):
    assert ours(encoder, [mel(frames)]).shape == expected(tower, [mel(frames)]).shape == (0, CONFIG.out_width)


@pytest.mark.parametrize("frames", [LENGTHS, LENGTHS[::-1], [3, 4, 5], [450, 237, 201, 3]])
def test_clips_in_one_call_equal_the_reference(encoder, tower, frames):
    clips = [mel(n, seed) for seed, n in enumerate(frames)]
    found = ours(encoder, clips, spare=3)
    assert len(found) == sum((halve(n) - 2) // 2 + 1 for n in frames)
    assert_close(found, expected(tower, clips))
