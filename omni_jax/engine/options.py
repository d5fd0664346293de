"""The options of a request: one frozen object, whether keywords, a batch line or a command gave them.

One precedence everywhere: in ``a.override(b)``, b's options win over a's. A request's options override the checkpoint's
(``GenerationConfig``), a batch line's those of its job, and a medium's those of its request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np

from omni_jax.decoding.defaults import OF_PREDICTOR, PARTS, sampling_options
from omni_jax.decoding.sampling import Sampling
from omni_jax.engine.keywords import NAMES
from omni_jax.engine.transformers_keywords import translated
from omni_jax.errors import check_progress, cut, listed, shown
from omni_jax.processing.media.video_track import Progress
from omni_jax.processing.options import OF_A_PART, MediaOptions, is_number, misspelt, per_conversation

PREFIXES = tuple(f"{part}_" for part in PARTS)
KNOWN = "speaker, return_audio, compat, seed, media, tools, template, progress, thinker_..., talker_..., predictor_..."
# Options that JSON may give. The others are objects, or decide what this process may read and how long it may take.
OF_JSON = ("seed", "speaker", "return_audio", "compat", "tools", "template", *OF_A_PART)
TYPES_OF_JSON: dict[str, tuple[type, str]] = {
    "speaker": (str, "the name of one speaker"),
    "compat": (str, "a name"),
    "tools": (list, "a list of JSON schemas"),
    "template": (dict, "an object of the chat template's variables"),
}
SEEDS = 2**32


@dataclass(frozen=True, kw_only=True)
class RequestOptions:
    """Options of a request's conversations; None, and a ``Sampling``'s None, leave the choice to the checkpoint.

    Attributes:
        seed: one for all conversations, or one a conversation.
        thinker: how the text's tokens are chosen.
        talker: how the first code of each frame of speech is chosen.
        predictor: how its other codes are chosen.
        speaker: one for all conversations, or one a conversation.
        return_audio: whether replies are spoken.
        compat: the release of Transformers whose speech is repeated.
        media: how the media of each conversation are read: one for all, or one a conversation.
        tools: JSON schemas of functions that the model may call.
        template: variables of the chat template.
        progress: called while a long video is read.

    Raises:
        ValueError: an impossible option, in one line.
    """

    seed: int | Sequence[int] = 0
    thinker: Sampling = field(default_factory=Sampling)
    talker: Sampling = field(default_factory=Sampling)
    predictor: Sampling = field(default_factory=Sampling)
    speaker: str | Sequence[str] | None = None
    return_audio: bool | None = None
    compat: str | None = None
    media: tuple[MediaOptions, ...] = (MediaOptions(),)
    tools: Sequence[Mapping[str, Any]] | None = None
    template: Mapping[str, Any] | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.talker.stop_strings:
            raise ValueError("talker_stop_strings: speech has no text to stop at; use thinker_stop_strings")
        unfit = [f"predictor_{name}" for name in _given(self.predictor) if name not in OF_PREDICTOR]
        if unfit:
            raise ValueError(f"{', '.join(unfit)}: expected predictor_... options among {', '.join(OF_PREDICTOR)}")
        check_progress(self.progress)
        if self.return_audio is not None and not isinstance(self.return_audio, bool | np.bool_):
            raise ValueError(
                f"return_audio: expected True, False or None, one for all conversations, got {shown(self.return_audio)}"
            )

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any], *, rows: int = 1) -> Self:
        """Options from keywords: those of ``RequestKeywords``, and Transformers' names for them.

        Args:
            options: by name; single ones such as ``thinker_top_k`` win over their part's ``Sampling``, and media
                options over ``media``. None leaves an option as it is.
            rows: conversations of the request; options of media may be lists of so many.

        Raises:
            ValueError: an unknown name or an impossible value, in one line.
        """
        return cls().override(options, rows=rows)

    def override(self, options: Mapping[str, Any], *, rows: int = 1) -> Self:
        """These options with those replaced that ``options`` gives; arguments and errors as in ``from_mapping``."""
        single, rest = sampling_options(translated(options))
        media, rest = per_conversation(rest.pop("media", None), rest, rows, base=self.media)
        if faults := misspelt(rest):
            raise ValueError(listed(faults))
        if unknown := next((name for name in rest if name not in NAMES), None):
            meant = f"did you mean thinker_{unknown}? " * (unknown in Sampling.__dataclass_fields__)
            raise ValueError(f"unknown option {cut(unknown)}; {meant}Expected {KNOWN} or an option of media")
        given = {name: value for name, value in rest.items() if value is not None or name == "seed"}
        for part in PARTS:
            given[part] = _sampling(getattr(self, part), part, given.get(part), single[part])
        return replace(self, media=tuple(media), **given)

    @property
    def of_speech(self) -> list[str]:
        """Names of the options given that only speech has."""
        parts = ("talker", "predictor")
        return [name for name in ("speaker", "compat") if getattr(self, name) is not None] + [
            f"{part}_{name}" for part in parts for name in _given(getattr(self, part))
        ]

    def seeds(self, rows: int) -> tuple[int, ...]:
        """The seed of each of ``rows`` conversations.

        Raises:
            ValueError: seeds that are no whole numbers, or not one for each.
        """
        several = isinstance(self.seed, list | tuple | np.ndarray) and np.ndim(self.seed)
        seeds: tuple[Any, ...] = tuple(self.seed) if several else (self.seed,) * rows  # pyright: ignore
        if len(seeds) != rows or not all(is_number(item, whole=True) for item in seeds):
            expected = f"one whole number, or one for each of the {rows} conversations"
            raise ValueError(f"seed: expected {expected}, got {shown(self.seed)}")
        return tuple(map(int, seeds))


def json_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of one conversation that came as JSON, checked, without those that are null.

    Raises:
        ValueError: a name that JSON may not give, or a value of a wrong type, in one line.
    """
    if unknown := [name for name in options if name not in OF_JSON and not name.startswith(PREFIXES)]:
        meant = [f"did you mean thinker_{name}?" for name in unknown if name in Sampling.__dataclass_fields__]
        meant = meant or [fault.partition("; ")[2] for fault in misspelt(unknown)]
        raise ValueError(
            f"unknown option {cut(', '.join(unknown))}; {cut(' '.join(meant))}{' ' * bool(meant)}expected messages, id, "
            f"{', '.join(f'{prefix}...' for prefix in PREFIXES)}, {', '.join(OF_JSON)}"
        )
    given = {name: value for name, value in options.items() if value is not None}
    for name, (kind, words) in TYPES_OF_JSON.items():
        if not isinstance(given.get(name, kind()), kind):
            raise ValueError(f"{name}: expected {words}, got {shown(given[name])}")
    seed = given.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < SEEDS:
        raise ValueError(f"seed: expected a whole number from 0 to {SEEDS - 1}, got {shown(seed)}")
    return given


def _sampling(base: Sampling, part: str, whole: Any, single: Mapping[str, Any]) -> Sampling:
    """A part's options, overridden by a whole ``Sampling``, and that by single options."""
    if whole is not None and not isinstance(whole, Sampling):
        raise ValueError(f"{part}: expected a Sampling, got {type(whole).__name__}; or use {part}_... options")
    return base.override(whole or Sampling()).override(Sampling.named(single, prefix=f"{part}_"))


def _given(sampling: Sampling) -> list[str]:
    return [item.name for item in fields(Sampling) if getattr(sampling, item.name) is not None]
