"""Synthesizers: a checkpoint's speakers, talker prompts, talker and vocoder. Each family has a file of its own."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Float32, Int

from omni_jax.config import OmniConfig, family_of
from omni_jax.decoding.defaults import GenerationConfig
from omni_jax.errors import cut, shown
from omni_jax.models.parts import OmniParts
from omni_jax.processing.arrays import to_numpy
from omni_jax.processing.batch import Batch
from omni_jax.speech.stream import SpeechRequest

# The release of Transformers whose speech ``compat`` repeats.
COMPAT = "transformers-5.23"

Whole = TypeVar("Whole", bound=OmniConfig)
Parts = TypeVar("Parts", bound=OmniParts)


class Synthesizer(ABC, Generic[Whole, Parts]):
    """How replies become speech.

    Attributes:
        first: the default speaker, in lower case, if the checkpoint has one of that name.
        frame_rate: frames of codes a second.
        system: the system message that good speech needs; None where it does not matter.
    """

    first: str
    frame_rate: float
    system: str | None = None

    def __init__(self, parts: Parts | None, config: Whole, folder: Path):
        """Makes a synthesizer; ``parts`` may be None where only ``speakers`` is used."""
        self.parts, self.config, self.folder = parts, config, folder

    @property
    def loaded(self) -> bool:
        """Whether the parts that speak are loaded."""
        return self.parts is not None and self.parts.talker is not None

    @property
    def predicts(self) -> bool:
        """Whether a code predictor generates codes too."""
        return self.parts is not None and self.parts.code_predictor is not None

    @cached_property
    @abstractmethod
    def speakers(self) -> Mapping[str, Any]:
        """The data of each speaker, by its name; empty for a checkpoint that has none."""

    def select_speakers(self, speaker: str | Sequence[str] | None, count: int) -> tuple[Any, ...]:
        """The speaker of each row.

        Raises:
            ValueError: an unknown speaker, or names that are not one a row.
        """
        known = {name.lower(): each for name, each in self.speakers.items()}
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
                choices = f"one of {', '.join(self.speakers)}" if known else "none, for this checkpoint has no speakers"
                raise ValueError(f"speaker: expected {cut(choices, 200)}, got {shown(name)}")
        return tuple(known[name.lower()] for name in names)

    def tokens(self, seconds: float) -> int:
        """``talker_max_new_tokens`` for at most so much speech."""
        return math.ceil(seconds * self.frame_rate)

    def speakable(self, batch: Batch) -> bool:
        """Whether any of the rows can be spoken; if so, replies are spoken by default."""
        return True

    def with_reply(self, batch: Batch, text_tokens: Sequence[int]) -> Batch:
        """The thinker's input for one row whose reply is given."""
        return batch

    @abstractmethod
    def speech(
        self,
        batch: Batch,
        speakers: Sequence[Any],
        seeds: tuple[int, ...],
        sampling: GenerationConfig,
        *,
        text_tokens: Sequence[int] | None = None,
        compat: str | None = None,
    ) -> SpeechRequest:
        """The inputs of rows' speech.

        Args:
            batch: placed, padding rows too.
            speakers: one a real row.
            seeds: one a real row.
            sampling: options of talker and predictor.
            text_tokens: tokens of the only row's reply, if that is given.
            compat: see ``Omni.generate_batch``.

        Raises:
            ValueError: a prompt that cannot be spoken; one line says what to do.
        """

    @abstractmethod
    def decode(self, codes: np.ndarray, lengths: Any, **options: Any) -> Float32[np.ndarray, "B W"]:
        """Codes [B, Q, Y] to waveforms; see ``Omni.decode_codes``."""


def check_compat(compat: object) -> None:
    """Raises a ValueError of one line unless ``compat`` is None or the release whose speech can be repeated."""
    if compat is not None and not (isinstance(compat, str) and compat == COMPAT):
        raise ValueError(f"compat: expected None or {COMPAT!r}, got {shown(compat)}")


def checked(
    codes: np.ndarray, lengths: Any, *, codebooks: int, codebook: int
) -> tuple[Int[np.ndarray, "B Q Y"], Int[np.ndarray, "B"]]:
    """Checked codes [B, Q, Y], zero beyond each row's frames, and the rows' numbers of frames.

    Args:
        codes: [B, Q, Y] or [Q, Y].
        lengths: frames of each row; None for all.
        codebooks: codes of a frame.
        codebook: number of different codes.

    Raises:
        ValueError: in one line, for impossible codes or lengths.
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


def synthesizer(config: OmniConfig, folder: Path, parts: OmniParts | None = None) -> Synthesizer[Any, Any]:
    """What a checkpoint speaks with; without ``parts`` it can only say which speakers it has."""
    return family_of(config).module("speech").SYNTHESIZER(parts, config, folder)
