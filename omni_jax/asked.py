"""What a request asks for, checked before anything is read: its rows, their seeds, how text is chosen, whether it is spoken."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from omni_jax.config import read_json
from omni_jax.decoding.sampling import Sampling
from omni_jax.defaults import Defaults, sampling_options
from omni_jax.processing.options import MediaOptions, misspelt, per_conversation
from omni_jax.processing.prompt import speaks
from omni_jax.processing.request import Batch
from omni_jax.synthesizer import Synthesizer

KNOWN = "speaker, return_audio, compat, seed, media, tools, template, progress, thinker_..., talker_..., predictor_..."


@dataclass(frozen=True)
class Asked:
    """Options of a request, complete.

    Attributes:
        media: how the media of each row are read.
        aloud: whether replies are spoken; ``insisted``: also where that is no natural thing to do.
        voices: of the rows; none where nothing is spoken.
    """

    seeds: tuple[int, ...]
    media: Sequence[MediaOptions]
    sampling: Defaults
    aloud: bool
    insisted: bool
    voices: tuple[Any, ...]


def ask(
    conversations: Any,
    defaults: Defaults,
    synthesizer: Synthesizer[Any],
    *,
    seed: Any,
    thinker: Sampling | None,
    talker: Sampling | None,
    predictor: Sampling | None,
    speaker: str | Sequence[str] | None,
    return_audio: bool | None,
    compat: str | None,
    media: MediaOptions | None,
    **options: Any,
) -> Asked:
    """Checks what ``Omni.generate_batch`` takes beside its prompts.

    Raises:
        ValueError: in one line.
    """
    if not isinstance(conversations, Batch | list | tuple) or (
        isinstance(conversations, list | tuple) and not conversations
    ):
        got = "an empty list" if conversations == [] else type(conversations).__name__
        raise ValueError(f"conversations: expected a list of at least one, or a Batch, got {got}")
    count = len(conversations.tokens) if isinstance(conversations, Batch) else len(conversations)
    own, options = sampling_options(options)
    how, options = per_conversation(media, options, count)
    if faults := misspelt(options):
        raise ValueError("; ".join(faults))
    if options:
        name = next(iter(options))
        meant = f"did you mean thinker_{name}? " * (name in Sampling.__dataclass_fields__)
        raise ValueError(f"unknown option {name}; {meant}Expected {KNOWN} or an option of media")
    sampling = defaults.over(own, thinker=thinker, talker=talker, predictor=predictor)
    seeds: list[Any] = [seed] * count if np.ndim(seed) == 0 else list(np.asarray(seed, object))
    if len(seeds) != count or not all(isinstance(item, Integral) for item in seeds):
        raise ValueError(f"seed: expected one whole number, or one for each of the {count} conversations, got {seed!r}")
    can = synthesizer.loaded
    if return_audio and not can:
        why = "was loaded with speech=False" if synthesizer.config.talker else silence(synthesizer.folder)
        raise ValueError(f"return_audio=True, but this checkpoint {why}")
    if return_audio not in (None, True, False):
        raise ValueError(f"return_audio: expected True, False or None, one for all conversations, got {return_audio!r}")
    aloud = can if return_audio is None else return_audio
    given = {"speaker": speaker, "talker": talker, "predictor": predictor, "compat": compat}
    given |= {**own["talker"], **own["predictor"]}
    spoken = ", ".join(name for name, value in given.items() if value is not None)
    if spoken and return_audio is None and not aloud:
        raise ValueError(f"{spoken}: nothing is spoken without a talker; leave it out, or say return_audio=False")
    if aloud and not synthesizer.predicts and (predictor is not None or own["predictor"]):
        raise ValueError(
            "predictor: a frame of this family is one code, which the talker writes; use talker_... options"
        )
    voices = synthesizer.choose(speaker, count) if aloud or speaker is not None else ()
    return Asked(tuple(seeds), how, sampling, aloud, bool(spoken or return_audio), voices)


def silence(folder: Path) -> str:
    """Why a checkpoint without a talker has none, and what to do: it was saved so, or its release is."""
    if "talker_config" in read_json(folder / "config.json"):
        return "was saved without its talker (speech=False); use the one that it was made from"
    return "has no talker; use the Instruct release"


def advise(system: str | None, conversations: Iterable[Any], *, stacklevel: int = 2) -> None:
    """Warns of conversations that are to be spoken without the system prompt that speech was trained with.

    Args:
        system: of a ``Synthesizer``; None where it does not matter.
    """
    if system and not all(map(speaks, conversations)):
        warnings.warn(
            "speech wants the system prompt that it was trained with, alone in the first message "
            f"(omni_jax.processing.prompt.SPOKEN_SYSTEM): {system}",
            stacklevel=stacklevel + 1,
        )
