"""A request's options, checked before anything is read: its rows, their seeds, sampling, and whether it is spoken."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omni_jax.config import OmniConfig, read_json
from omni_jax.decoding.defaults import Defaults, sampling_options
from omni_jax.decoding.sampling import Sampling
from omni_jax.engine.transformers_keywords import translated
from omni_jax.errors import check_progress, cut, listed, shown
from omni_jax.processing.batch import PROCESSED, Batch
from omni_jax.processing.conversation import speaks
from omni_jax.processing.media.video_track import Progress
from omni_jax.processing.options import NAMES, MediaOptions, is_number, misspelt, per_conversation
from omni_jax.speech.synthesizer import Synthesizer

KNOWN = "speaker, return_audio, compat, seed, media, tools, template, progress, thinker_..., talker_..., predictor_..."


@dataclass(frozen=True)
class Asked:
    """Options of a request, complete.

    Attributes:
        seeds: one a row.
        media: how the media of each row are read.
        sampling: options of each part.
        aloud: whether replies are spoken.
        insisted: whether sound was asked for explicitly, so that a prompt that cannot be spoken is an error.
        voices: of the rows; empty if nothing is spoken.
        compat: as it was given.
        tools: as they were given.
        template: as it was given.
        progress: as it was given.
    """

    seeds: tuple[int, ...]
    media: Sequence[MediaOptions]
    sampling: Defaults
    aloud: bool
    insisted: bool
    voices: tuple[Any, ...]
    compat: str | None
    tools: Sequence[Mapping[str, Any]] | None
    template: Mapping[str, Any] | None
    progress: Progress | None


def ask(
    conversations: Any,
    base: Defaults,
    synthesizer: Synthesizer[Any],
    /,
    *,
    seed: int | Sequence[int] = 0,
    thinker: Sampling | None = None,
    talker: Sampling | None = None,
    predictor: Sampling | None = None,
    speaker: str | Sequence[str] | None = None,
    return_audio: bool | None = None,
    compat: str | None = None,
    media: MediaOptions | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    template: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Asked:
    """Checks the options of ``Omni.generate_batch``, which documents them.

    Raises:
        ValueError: in one line.
    """
    count = _count(conversations)
    own, options = sampling_options(options)
    how, options = per_conversation(media, options, count)
    if faults := misspelt(options):
        raise ValueError(listed(faults))
    if options:
        name = next(iter(options))
        meant = f"did you mean thinker_{name}? " * (name in Sampling.__dataclass_fields__)
        raise ValueError(f"unknown option {cut(name)}; {meant}Expected {KNOWN} or an option of media")
    sampling = base.over(own, thinker=thinker, talker=talker, predictor=predictor)
    can, seeds = synthesizer.loaded, _seeds(seed, count)
    check_progress(progress)
    if return_audio is not None and not isinstance(return_audio, bool | np.bool_):
        raise ValueError(
            f"return_audio: expected True, False or None, one for all conversations, got {shown(return_audio)}"
        )
    if return_audio and not can:
        why = "was loaded with speech=False" if synthesizer.config.talker else silence(synthesizer.folder)
        raise ValueError(f"return_audio=True, but this checkpoint {why}")
    aloud = can if return_audio is None else bool(return_audio)
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
    insisted = bool(spoken or return_audio)
    return Asked(seeds, how, sampling, aloud, insisted, voices, compat, tools, template, progress)


def prompts(
    given: Any, options: Mapping[str, Any], *, alone: bool, control_tokens: bool = True
) -> tuple[Any, dict[str, Any]]:
    """The prompts as the batched functions take them, and the options by our names.

    Args:
        given: a conversation or several, a Batch, or what a Transformers processor gives, which may also be among the
            options: ``generate(**inputs)``.
        options: of the request, by our names or Transformers'.
        alone: whether one prompt is meant.
        control_tokens: whether ids are accepted in place of a conversation; ids from JSON could be any control token.

    Raises:
        ValueError: one prompt where several are meant, or several where one is; options that are not supported.
    """
    options = translated(options)
    if hasattr(given, "__array__") or (given is None and "input_ids" in options):
        inputs = {name: options.pop(name) for name in PROCESSED & options.keys() - NAMES}
        given = inputs if given is None else {"input_ids": given, **inputs}
    if isinstance(given, Mapping) and "input_ids" in given:
        if not control_tokens:
            raise ValueError(
                "conversation: expected a list of messages, got input_ids, which may be control tokens that this model was "
                "loaded to refuse; give Batch.from_hf(...), or generate(**inputs)"
            )
        given = Batch.from_hf(given)
    if isinstance(given, Batch):
        if alone and len(given.tokens) != 1:
            raise ValueError(f"a Batch of {len(given.tokens)} rows: expected one; use generate_batch or stream_batch")
        return given, options
    first = given[0] if isinstance(given, list | tuple) and given else None
    if alone and isinstance(first, list | tuple):
        raise ValueError(
            "conversation: expected one, a list of messages (dicts), got several; use generate_batch or stream_batch"
        )
    if not alone and isinstance(first, dict):
        raise ValueError(
            "conversations: expected a list of conversations, got the messages of one; use generate or stream, or give "
            "[conversation]"
        )
    return [given] if alone else given, options


def _count(conversations: Any) -> int:
    if isinstance(conversations, Batch):
        return len(conversations.tokens)
    if not isinstance(conversations, list | tuple) or not conversations:
        got = "an empty list" if conversations == [] else type(conversations).__name__
        raise ValueError(f"conversations: expected a list of at least one, or a Batch, got {got}")
    return len(conversations)


def _seeds(seed: Any, count: int) -> tuple[int, ...]:
    several = isinstance(seed, list | tuple | np.ndarray) and np.ndim(seed)
    seeds = tuple(seed) if several else (seed,) * count
    if len(seeds) != count or not all(is_number(item, whole=True) for item in seeds):
        expected = f"one whole number, or one for each of the {count} conversations"
        raise ValueError(f"seed: expected {expected}, got {shown(seed)}")
    return tuple(map(int, seeds))


def silence(folder: Path) -> str:
    """Why a checkpoint has no talker, and what to do: it was saved without one, or its release has none."""
    if "talker_config" in read_json(folder / "config.json"):
        return "was saved without its talker (speech=False); use the one that it was made from"
    return "has no talker; use the Instruct release"


def advise(system: str | None, conversations: Iterable[Any], *, stacklevel: int = 2) -> None:
    """Warns of conversations that are to be spoken without the system prompt that speech was trained with.

    Args:
        system: the ``Synthesizer``'s system prompt; None where it does not matter.
        conversations: the conversations.
        stacklevel: as for ``warnings.warn``, from the caller on.
    """
    if system and not all(map(speaks, conversations)):
        warnings.warn(
            "speech wants the system prompt that it was trained with, alone in the first message "
            f"(omni_jax.processing.conversation.SPOKEN_SYSTEM): {system}",
            stacklevel=stacklevel + 1,
        )


def loads_speech(config: OmniConfig, folder: Path, speech: bool | None) -> bool:
    """Whether the weights that only speaking needs are loaded: as ``speech`` says, or if None, where they exist."""
    if speech and config.talker is None:
        raise ValueError(f"{folder}: speech=True, but this checkpoint {silence(folder)}")
    return config.talker is not None if speech is None else speech
