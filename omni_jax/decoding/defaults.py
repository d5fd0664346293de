"""Default sampling options, from the checkpoint's generation config."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omni_jax.config import OmniConfig, read_json
from omni_jax.decoding.sampling import Sampling
from omni_jax.errors import about

DEFAULT_NEW_TOKENS = 1024
PARTS = ("thinker", "talker", "predictor")
# Transformers' defaults for options that a generation config omits; each family's talker has its own top_k and top_p.
TALKER = Sampling(max_new_tokens=4096, do_sample=True, temperature=0.9, repetition_penalty=1.05)
PREDICTOR = Sampling(temperature=1.0, top_k=50, top_p=0.8)
# A frame always has the same number of codes, and no code ends it.
OF_PREDICTOR = ("do_sample", "temperature", "top_k", "top_p")


@dataclass(frozen=True)
class Defaults:
    """Sampling options of the text, of speech's first codes, and of its other codes."""

    thinker: Sampling
    talker: Sampling
    predictor: Sampling

    @classmethod
    def read(cls, folder: Path, config: OmniConfig) -> "Defaults":
        """Options of ``generation_config.json``, over Transformers' own defaults.

        Raises:
            ValueError: an impossible value, in one line.
        """
        path = folder / "generation_config.json"
        published = read_json(path) if path.exists() else {}
        # Options without a part's name are the thinker's; options with a part's name take precedence.
        named = {part: {**(published if part == "thinker" else {}), **_of_part(published, part)} for part in PARTS}
        known = {
            part: {name: values[name] for name in Sampling.__dataclass_fields__ if values.get(name) is not None}
            for part, values in named.items()
        }
        thinker = Sampling(max_new_tokens=DEFAULT_NEW_TOKENS, do_sample=False, eos_token_id=config.im_end)
        talker = replace(TALKER, eos_token_id=config.talker.ends, **config.talker.sampling) if config.talker else TALKER
        with about(str(path)):
            return cls(
                thinker=Sampling.named(known["thinker"]).over(thinker),
                talker=Sampling.named(known["talker"]).over(talker),
                predictor=Sampling.named(known["predictor"]).over(PREDICTOR),
            )

    def over(
        self,
        options: Mapping[str, Mapping[str, Any]],
        *,
        thinker: Sampling | None,
        talker: Sampling | None,
        predictor: Sampling | None,
    ) -> "Defaults":
        """These options overridden by a request's: single options win over a part's ``Sampling``."""
        made: dict[str, Sampling] = {}
        for part, whole in zip(PARTS, (thinker, talker, predictor), strict=True):
            if whole is not None and not isinstance(whole, Sampling):
                raise ValueError(f"{part}: expected a Sampling, got {type(whole).__name__}; or use {part}_... options")
            single = Sampling.named(options[part], prefix=f"{part}_")
            made[part] = single.over(whole or Sampling())
        if made["talker"].stop_strings:
            raise ValueError("talker_stop_strings: speech has no text to stop at; use thinker_stop_strings")
        unfit = [
            f"predictor_{name}"
            for name in Sampling.__dataclass_fields__
            if name not in OF_PREDICTOR and getattr(made["predictor"], name) is not None
        ]
        if unfit:
            raise ValueError(f"{', '.join(unfit)}: expected predictor_... options among {', '.join(OF_PREDICTOR)}")
        of_talker = made["talker"].over(self.talker)
        # The code predictor samples when the talker does, as in the reference.
        follows = Sampling(do_sample=of_talker.do_sample) if self.predictor.do_sample is None else Sampling()
        return Defaults(
            thinker=made["thinker"].over(self.thinker),
            talker=of_talker,
            predictor=made["predictor"].over(follows.over(self.predictor)),
        )


def sampling_options(options: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Splits options into those of each part, by the prefix of their name, and the rest."""
    own = {part: _named(options, part) for part in PARTS}
    taken = {name for part in own.values() for name in part}
    return own, {name: value for name, value in options.items() if name not in taken}


def _named(options: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name.startswith(f"{part}_")}


def _of_part(options: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {name.removeprefix(f"{part}_"): value for name, value in _named(options, part).items()}
