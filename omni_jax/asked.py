"""What a request asks for, checked before anything is read: its rows, their seeds, how text is chosen, whether it is spoken."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from omni_jax.decoding.sampling import Sampling
from omni_jax.defaults import Defaults, sampling_options
from omni_jax.processing.options import MediaOptions, misspelt, per_conversation
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
        why = "was loaded with speech=False" if synthesizer.config.talker else "has no talker; use the Instruct release"
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
