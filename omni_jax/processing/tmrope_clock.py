"""The clock of TM-RoPE: how a video and its sound share time, in each family.

Qwen3-Omni (arXiv:2509.17765) merges the two token by token and never rounds a time. Qwen2.5-Omni (arXiv:2503.20215)
alternates between them in turns of some seconds, and its times are whole numbers. The configuration's ``chunk_seconds``
decides which.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Num

from omni_jax.config import ThinkerConfig


@dataclass(frozen=True)
class Clock:
    """Times that are not rounded; a video and its sound are merged by time. ``rate`` is in positions a second."""

    rate: float

    def times(self, steps: int, seconds: float, dtype: Any) -> Float[np.ndarray, "steps"]:
        """When each step of a grid is shown, in positions from the first; ``seconds`` is the time between two steps.

        ``dtype`` is float64 in the reference's processor and float32 in its model.
        """
        return np.arange(steps, dtype=dtype) * dtype(seconds) * dtype(self.rate)

    def turns(self, times: Num[np.ndarray, "T"]) -> Num[np.ndarray, "T"]:
        """The keys by which tokens of a video and its sound are merged, from ascending times, the first at 0."""
        return times

    def mix(self, video: Num[np.ndarray, "V"], sound: Num[np.ndarray, "A"]) -> Bool[np.ndarray, "T"]:
        """Which tokens of a mix are the video's, from the times of both; at equal keys the video's come first."""
        turns = np.concatenate([self.turns(video), self.turns(sound)])
        return np.argsort(turns, kind="stable") < len(video)

    def marks(self, count: int) -> Float[np.ndarray, "count"]:
        """Positions of ``count`` start (or end) tokens side by side, relative to the first of them."""
        return np.arange(count, dtype=np.float32)


@dataclass(frozen=True)
class ChunkedClock(Clock):
    """Whole positions, and turns of ``chunk`` positions; the marks of a video and of its sound share a position."""

    chunk: int

    def times(self, steps: int, seconds: float, dtype: Any) -> Float[np.ndarray, "steps"]:
        return np.trunc(super().times(steps, seconds, dtype))

    def turns(self, times: Num[np.ndarray, "T"]) -> Num[np.ndarray, "T"]:
        """The number of each token's turn: that of its time, but at most one more than the previous token's.

        So where steps are longer than a turn, a frame is cut. The reference does the same: it compares each token with
        the end of the current turn and then opens the next turn, not the one that holds the token's time.
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
