"""Prompts and clips for the parity tests, and their form for the reference."""

import numpy as np
import torch


def ids(omni, *frames, words=9, seed=0):
    """A prompt of random text with clips of the given numbers of frames."""
    rng, config = np.random.default_rng(seed), omni.config
    thinker = config.thinker
    row = [config.im_start, config.user, *rng.integers(0, 200, words).tolist()]
    for n in frames:
        row += [thinker.audio_start, *[thinker.audio_token] * thinker.audio_encoder.tokens(n), thinker.audio_end]
        row += rng.integers(0, 200, 3).tolist()
    return [*row, config.im_end]


def clip(frames, seed=0):
    return np.random.default_rng([seed, frames]).normal(size=(128, frames)).astype(np.float32)


def pad(rows, *, left):
    width = max(map(len, rows))
    tokens, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for number, row in enumerate(rows):
        at = slice(width - len(row), None) if left else slice(0, len(row))
        tokens[number, at], mask[number, at] = row, 1
    return tokens, mask


def reference_inputs(tokens, mask, clips=()):
    inputs = {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(mask)}
    if clips:
        longest = max(c.shape[1] for c in clips)
        inputs["input_features"] = torch.from_numpy(
            np.stack([np.pad(c, [(0, 0), (0, longest - c.shape[1])]) for c in clips])
        )
        inputs["feature_attention_mask"] = torch.tensor(
            [[1] * c.shape[1] + [0] * (longest - c.shape[1]) for c in clips]
        )
    return inputs
