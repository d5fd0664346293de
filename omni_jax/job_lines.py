"""A line of a job's input: a conversation, perhaps with a name and options of its own."""

import json
from collections.abc import Mapping
from typing import Any

from omni_jax.decoding.sampling import Sampling
from omni_jax.mistakes import cut, shown
from omni_jax.processing.options import OF_A_PART, misspelt

OWN = ("seed", "speaker", "return_audio", "compat", "tools", "template", *OF_A_PART)
PREFIXES = ("thinker_", "talker_", "predictor_")
# What an option that is no sampling option and no option of media must be.
KINDS: dict[str, tuple[type, str]] = {
    "speaker": (str, "the name of one voice"),
    "compat": (str, "a name"),
    "tools": (list, "a list of JSON schemas"),
    "template": (dict, "an object of the chat template's variables"),
}
SEEDS = 2**32


def parsed(text: bytes) -> tuple[Any, list[Any], dict[str, Any]]:
    """The id of a line (None for none), its conversation, and options of its own; those that are null are left out.

    Raises:
        ValueError: in one line.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON ({shown(error, 200)})") from None
    if isinstance(found, list):
        return None, found, {}
    if not isinstance(found, dict) or not isinstance(found.get("messages"), list):
        got = type(found).__name__
        if isinstance(found, dict):
            got = (
                f"messages of type {type(found['messages']).__name__}"
                if "messages" in found
                else f"only {cut(', '.join(found))}"
                if found
                else "an empty object"
            )
        raise ValueError(f"expected a list of messages, or an object with such a list as messages, got {got}")
    name, messages = found.pop("id", None), found.pop("messages")
    if unknown := [option for option in found if option not in OWN and not option.startswith(PREFIXES)]:
        meant = [f"did you mean thinker_{option}?" for option in unknown if option in Sampling.__dataclass_fields__]
        meant = meant or [fault.partition("; ")[2] for fault in misspelt(unknown)]
        raise ValueError(
            f"unknown option {cut(', '.join(unknown))}; {cut(' '.join(meant))}{' ' * bool(meant)}expected messages, id, "
            f"thinker_..., talker_..., predictor_..., {', '.join(OWN)}"
        )
    own = {option: value for option, value in found.items() if value is not None}
    for option, (kind, words) in KINDS.items():
        if not isinstance(own.get(option, kind()), kind):
            raise ValueError(f"{option}: expected {words}, got {shown(own[option])}")
    seed = own.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < SEEDS:
        raise ValueError(f"seed: expected a whole number from 0 to {SEEDS - 1}, got {shown(seed)}")
    return name, messages, own


def over(own: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A line's options over those of the job: a temperature, top_k or top_p of a line decides that it samples."""
    drawn = [name for name in PREFIXES if any(f"{name}{how}" in own for how in ("temperature", "top_k", "top_p"))]
    greedy = {f"{name}do_sample" for name in drawn}
    return {**{name: value for name, value in options.items() if name not in greedy}, **own}
