"""Messages of a user with text and media that the tests make."""

import numpy as np


def user(*content):
    return [{"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}]


def sound(seconds, seed=0):
    samples = np.random.default_rng(seed).normal(scale=0.1, size=int(16_000 * seconds)).astype(np.float32)
    return {"type": "audio", "audio": samples}


def text(words):
    return {"type": "text", "text": words}


def one_line(error):
    assert "\n" not in str(error.value)
