"""What a plan is made for: how many replies at a time, how long, and whether they are spoken."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from omni_jax.config import OmniConfig


@dataclass(frozen=True)
class Workload:
    """What programs are compiled for.

    Attributes:
        batch: replies at once.
        context: tokens of the longest conversation, including the most that its reply may have.
        speech: whether replies are spoken, with up to ``context`` frames and INITIAL_NEW_SLOTS (41 s) more.
        dtype: of weights and arithmetic.
    """

    batch: int = 1
    context: int = 8192
    speech: bool = False
    dtype: Any = jnp.bfloat16

    def check(self, config: OmniConfig) -> None:
        """Raises a one-line ValueError for what the model cannot do."""
        if self.speech and config.talker is None:
            raise ValueError("speech: this checkpoint has no talker; leave speech out, or use the Instruct release")
        if not 1 <= self.context <= config.thinker.context:
            raise ValueError(f"context: expected 1 to {config.thinker.context} tokens, got {self.context}")
        if self.batch < 1:
            raise ValueError(f"batch: expected at least 1, got {self.batch}")
