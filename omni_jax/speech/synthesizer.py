"""What a checkpoint speaks with: its voices, what its talker reads, its talker and vocoder. Each family has a file for that."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Float32, Int

from omni_jax.config import OmniConfig, family_of
from omni_jax.decoding.defaults import Defaults
from omni_jax.errors import cut, shown
from omni_jax.processing.arrays import to_numpy
from omni_jax.processing.batch import Batch
from omni_jax.speech.stream import Speech

Whole = TypeVar("Whole", bound=OmniConfig)


class Synthesizer(ABC, Generic[Whole]):
    """How replies become speech.

    Attributes:
        first: the voice of those who name none, where there is one of that name.
        frame_rate: frames of codes a second.
        system: what the system's turn must say for speech to be good; None where it does not matter.
    """

    first: str
    frame_rate: float
    system: str | None = None

    def __init__(self, parts: Mapping[str, Any], config: Whole, folder: Path):
        """Args: ``parts`` may be empty where nothing but ``voices`` is asked for."""
        self.parts, self.config, self.folder = parts, config, folder

    @property
    def loaded(self) -> bool:
        """Whether the parts that speak are there."""
        return "talker" in self.parts

    @property
    def predicts(self) -> bool:
        """Whether a code predictor writes codes too."""
        return "code_predictor" in self.parts

    @cached_property
    @abstractmethod
    def voices(self) -> Mapping[str, Any]:
        """What makes a voice, by its name; empty for a checkpoint that has none."""

    def choose(self, speaker: str | Sequence[str] | None, count: int) -> tuple[Any, ...]:
        """The voice of each row.

        Raises:
            ValueError: an unknown voice, or not one for each row.
        """
        known = {name.lower(): voice for name, voice in self.voices.items()}
        if speaker is None:
            return (known.get(self.first, next(iter(known.values()), None)),) * count
        names: list[Any] = (
            list(speaker) if isinstance(speaker, list | tuple | np.ndarray) and np.ndim(speaker) else [speaker] * count
        )
        if len(names) != count:
            raise ValueError(
                f"speaker: expected one name, or one for each of the {count} conversations, got {len(names)}"
            )
        for name in names:
            if not isinstance(name, str) or name.lower() not in known:
                choices = f"one of {', '.join(self.voices)}" if known else "none, for this checkpoint has no voices"
                raise ValueError(f"speaker: expected {cut(choices, 200)}, got {shown(name)}")
        return tuple(known[name.lower()] for name in names)

    def tokens(self, seconds: float) -> int:
        """``talker_max_new_tokens`` for at most so much speech."""
        return math.ceil(seconds * self.frame_rate)

    def speakable(self, batch: Batch) -> bool:
        """Whether any of the rows can be spoken, so that replies are unless somebody says otherwise."""
        return True

    def recited(self, batch: Batch, words: Sequence[int]) -> Batch:
        """What the thinker reads of one row where the reply is given."""
        return batch

    @abstractmethod
    def speech(
        self,
        batch: Batch,
        voices: Sequence[Any],
        seeds: tuple[int, ...],
        sampling: Defaults,
        *,
        words: Sequence[int] | None = None,
        compat: str | None = None,
    ) -> Speech:
        """What rows are spoken from.

        Args:
            batch: placed, padding rows too. words: the reply of its one row, where that is given.
            compat: see ``Omni.generate_batch``.

        Raises:
            ValueError: a prompt that cannot be spoken; one line says what to do.
        """

    @abstractmethod
    def decode(self, codes: np.ndarray, lengths: Any, **options: Any) -> Float32[np.ndarray, "B W"]:
        """Codes [B, Q, Y] to waveforms; see ``Omni.decode_codes``."""


def checked(
    codes: np.ndarray, lengths: Any, *, codebooks: int, codebook: int
) -> tuple[Int[np.ndarray, "B Q Y"], Int[np.ndarray, "B"]]:
    """Codes [B, Q, Y] or [Q, Y] as vocoders take them, zero beyond each row's frames, and these.

    Args:
        codebooks: codes of a frame. codebook: how many codes there are.

    Raises:
        ValueError: in one line, for codes or lengths that cannot be.
    """
    ids = codes[None] if codes.ndim == 2 else codes
    if ids.ndim != 3 or ids.shape[1] != codebooks or not ids.shape[0] or ids.dtype.kind not in "iu":
        raise ValueError(
            f"codes: expected whole numbers of shape [B, {codebooks}, Y] or [{codebooks}, Y], got {ids.dtype} of shape "
            f"{list(codes.shape)}"
        )
    rows, _, most = ids.shape
    frames = np.full(rows, most) if lengths is None else np.atleast_1d(to_numpy(lengths))
    if frames.shape != (rows,) or frames.dtype.kind not in "iu" or ((frames < 0) | (frames > most)).any():
        raise ValueError(
            f"lengths: expected a number of frames from 0 to {most} for each of {rows} rows, got {frames.tolist()}"
        )
    own = np.where(np.arange(most) < frames[:, None, None], ids, 0)
    if ids.size and (own.min() < 0 or own.max() >= codebook):
        raise ValueError(f"codes: expected ids from 0 to {codebook - 1}, got {own.min()} to {own.max()}")
    return own, frames


def synthesizer(config: OmniConfig, folder: Path, parts: Mapping[str, Any] | None = None) -> Synthesizer:
    """What a checkpoint speaks with; without ``parts`` it can only say with which voices."""
    return family_of(config).module("speech").SYNTHESIZER(parts or {}, config, folder)
