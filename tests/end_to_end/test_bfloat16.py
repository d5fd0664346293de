"""Speech in the dtype of TPUs and GPUs."""

import numpy as np

from omni_jax import Omni
from tests.support.spoken import SAMPLED, picture, sound, user

# --- where it runs


def test_bfloat16_replies_are_finite(tiny):
    """The dtype of TPUs and GPUs; every path runs."""
    half = Omni.load(tiny, dtype="bfloat16")
    reply = half.generate(user(sound(1), picture()), talker_min_new_tokens=41, **SAMPLED)
    assert reply.codes.shape == (4, 40)
    assert reply.audio.dtype == np.float32
    assert np.isfinite(reply.audio).all()
