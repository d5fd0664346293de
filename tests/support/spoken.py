"""Requests for speech whose programs the tests share, and replies compared."""

import jax
import numpy as np

WRITTEN = {"thinker_do_sample": False, "thinker_max_new_tokens": 9, "thinker_eos_token_id": -1}
GREEDY = {**WRITTEN, "talker_do_sample": False, "talker_max_new_tokens": 41}
SAMPLED = {**WRITTEN, "talker_max_new_tokens": 41}
LAG, FRAME = 555, 1920


def user(*content):
    return [{"role": "user", "content": list(content) if content else "Hi"}]


def text(words):
    return {"type": "text", "text": words}


def sound(seconds, seed=0):
    samples = np.random.default_rng(seed).normal(size=int(16_000 * seconds)).astype(np.float32) / 8
    return {"type": "audio", "audio": (samples, 16_000)}


def picture(height=64, width=96, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return {"type": "image", "image": pixels}


def film(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
    return {"type": "video", "video": pixels}


def assert_spoken_alike(found, expected, *, tolerance=1e-5):
    assert found.tokens == expected.tokens
    np.testing.assert_array_equal(found.codes, expected.codes)
    assert found.audio.shape == expected.audio.shape
    np.testing.assert_allclose(found.audio, expected.audio, atol=tolerance * np.abs(expected.audio).max(initial=1e-9))


def states(omni, length):
    """Shapes of live arrays as long as a prompt and as wide as the thinker, and of its caches."""
    decoder = omni.config.thinker.decoder
    return [
        array.shape for array in jax.live_arrays()
        if array.shape[-2:] == (length, decoder.width)
        or (array.ndim == 5 and array.shape[0] == decoder.layers and array.shape[-2:] == (decoder.kv_heads, decoder.head_width))
    ]  # fmt: skip
