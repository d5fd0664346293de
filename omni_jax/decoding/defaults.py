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
class GenerationConfig:
    """Sampling options of the text, of speech's first codes, and of its other codes."""

    thinker: Sampling
    talker: Sampling
    predictor: Sampling

    @classmethod
    def read(cls, folder: Path, config: OmniConfig) -> "GenerationConfig":
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
            predictor = Sampling.named(known["predictor"])
            return cls(
                thinker=thinker.override(Sampling.named(known["thinker"])),
                talker=talker.override(Sampling.named(known["talker"])),
                predictor=replace(PREDICTOR.override(predictor), do_sample=predictor.samples),
            )

    def override(self, *, thinker: Sampling, talker: Sampling, predictor: Sampling) -> "GenerationConfig":
        """These options with those replaced that a request gives."""
        of_talker, of_predictor = self.talker.override(talker), self.predictor
        if of_predictor.do_sample is None:  # the code predictor samples when the talker does, as in the reference
            of_predictor = replace(of_predictor, do_sample=of_talker.do_sample)
        return GenerationConfig(self.thinker.override(thinker), of_talker, of_predictor.override(predictor))


def sampling_options(options: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Splits options into those of each part, by the prefix of their names, and the rest."""
    own = {part: _named(options, part) for part in PARTS}
    taken = {name for part in own.values() for name in part}
    return own, {name: value for name, value in options.items() if name not in taken}


def _named(options: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name.startswith(f"{part}_")}


def _of_part(options: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {name.removeprefix(f"{part}_"): value for name, value in _named(options, part).items()}
