"""What a tiny checkpoint of a family holds beside its configuration and its weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_jax.testing.tokenizer import Dialect


@dataclass(frozen=True, kw_only=True)
class TinyFamily:
    """What a folder holds beside weights.

    Attributes:
        dialect: of the tokenizer.
        preprocessor: makes preprocessor_config.json for a thinker's configuration.
        speaking: generation_config.json of the releases that speak.
        writing: generation_config.json of those that only write.
        silent: the codec ids that greedy speech must never choose, of the talker's configuration.
        write_speakers: writes the file of speakers for a configuration that speaks; None for a family without one.
    """

    dialect: Dialect
    preprocessor: Callable[[Mapping[str, Any]], dict[str, Any]]
    speaking: Mapping[str, Any]
    writing: Mapping[str, Any]
    silent: Callable[[Any], Sequence[int]]
    write_speakers: Callable[[Path, Any], Any] | None = None
