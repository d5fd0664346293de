"""The clock of TM-RoPE, by which a video and its sound share time: one way for each family.

Qwen3-Omni (arXiv:2509.17765) merges the two token by token and never rounds a time. Qwen2.5-Omni (arXiv:2503.20215) lets
them take turns of some seconds, and its times are whole numbers. Which it is, the configuration says in a number.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Num

from omni_jax.config import ThinkerConfig


@dataclass(frozen=True)
class Clock:
    """Times as they are; of a video and its sound, the earlier token stands first. ``rate`` is in positions a second."""

    rate: float

    def times(self, steps: int, seconds: float, dtype: Any) -> Float[np.ndarray, "steps"]:
        """When each of the steps of a grid is shown, in positions from the first; ``seconds`` lie between two.

        The reference's processor counts in float64, its model in float32: ``dtype``.
        """
        return np.arange(steps, dtype=dtype) * dtype(seconds) * dtype(self.rate)

    def turns(self, times: Num[np.ndarray, "T"]) -> Num[np.ndarray, "T"]:
        """What a video and its sound are sorted by, of tokens at rising times, the first at 0."""
        return times

    def mix(self, video: Num[np.ndarray, "V"], sound: Num[np.ndarray, "A"]) -> Bool[np.ndarray, "T"]:
        """Which tokens of a mix are the video's, from the times of both; of one turn or time, the video's stand first."""
        turns = np.concatenate([self.turns(video), self.turns(sound)])
        return np.argsort(turns, kind="stable") < len(video)

    def marks(self, count: int) -> Float[np.ndarray, "count"]:
        """Positions of so many start (or end) tokens side by side, from the first of them."""
        return np.arange(count, dtype=np.float32)


@dataclass(frozen=True)
class ChunkedClock(Clock):
    """Whole positions, and turns of ``chunk`` positions; the marks of a video and of its sound share a position."""

    chunk: int

    def times(self, steps: int, seconds: float, dtype: Any) -> Float[np.ndarray, "steps"]:
        return np.trunc(super().times(steps, seconds, dtype))

    def turns(self, times: Num[np.ndarray, "T"]) -> Num[np.ndarray, "T"]:
        """The number of each token's turn: that of its time, but never more than one above the token's before it.

        So where steps are longer than a turn, a frame is cut: as in the reference, which compares each token with the end
        of the turn at hand and then opens the next, not the one that the time is in.
        """
        place = np.arange(len(times))
        return np.minimum.accumulate(times // self.chunk - place) + place

    def marks(self, count: int) -> Float[np.ndarray, "count"]:
        return np.zeros(count, np.float32)


def clock(config: ThinkerConfig) -> Clock:
    """The clock that a model was trained with."""
    if config.chunk_seconds is None:
        return Clock(config.positions_per_second)
    return ChunkedClock(config.positions_per_second, int(config.positions_per_second * config.chunk_seconds))
