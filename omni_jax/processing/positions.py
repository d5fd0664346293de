"""Rotary coordinates (time, height, width) of the tokens of a prompt: TM-RoPE (arXiv:2509.17765)."""

import numpy as np
from jaxtyping import Bool, Float


def text_positions(mask: Bool[np.ndarray, "B T"]) -> Float[np.ndarray, "3 B T"]:
    """Coordinates of rows of text and audio: all three count the real tokens, wherever the padding is; padding has 0.

    An audio token stands for 80 ms and takes one position like a word: at 13 positions a second the two clocks agree.
    """
    counted = np.where(mask, np.cumsum(mask, axis=1) - 1, 0).astype(np.float32)
    return np.broadcast_to(counted, (3, *counted.shape)).copy()
