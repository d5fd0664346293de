"""Keywords of Transformers' ``generate``: renamed, dropped if they change nothing, refused if they would.

In Transformers a keyword without a prefix goes to the thinker, except ``max_new_tokens`` and, for Qwen3-Omni,
``eos_token_id``, which are silently ignored; here these must be named with their part. A prefixed keyword wins.
"""

from collections.abc import Mapping
from typing import Any

from omni_jax.errors import shown

PREFIXES = ("thinker_", "talker_", "")
OF_THINKER = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "stop_strings")
EITHER = (True, False)
# Values with which a reply is the same as without the keyword; Ellipsis for any value.
HARMLESS: dict[str, Any] = {
    **dict.fromkeys(
        ("return_dict_in_generate", "use_cache", "synced_gpus", "low_memory", "remove_invalid_values"), EITHER
    ),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "decoder_start_token_id"), ...),
    **dict.fromkeys(("length_penalty", "early_stopping"), ...),  # of beam search, which is not used
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences", "encoder_repetition_penalty"), (1,)),
    **dict.fromkeys(("typical_p", "guidance_scale"), (1,)),
    **dict.fromkeys(("output_scores", "output_logits", "output_attentions", "output_hidden_states"), (False,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_p", "top_h"), (0,)),
    **dict.fromkeys(("diversity_penalty", "epsilon_cutoff", "eta_cutoff"), (0,)),
    **dict.fromkeys(("renormalize_logits", "exponential_decay_length_penalty"), (False,)),
    **{"token2wav_num_steps": (10,), "token2wav_guidance_scale": (0.5,), "token2wav_sway_coefficient": (-1.0,)},
    **dict.fromkeys(("logits_processor", "stopping_criteria", "suppress_tokens", "begin_suppress_tokens"), ([],)),
    **dict.fromkeys(("bad_words_ids", "sequence_bias", "force_words_ids", "constraints"), ([],)),
    **dict.fromkeys(("generation_config", "streamer", "assistant_model", "past_key_values", "penalty_alpha"), ()),
    **dict.fromkeys(("cache_implementation", "max_length", "max_time", "prefix_allowed_tokens_fn"), ()),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "negative_prompt_ids", "watermarking_config"), ()),
}
INSTEAD = {
    "num_return_sequences": "give generate_batch the conversation as often, with a list of seeds",
    "output_scores": "a Reply has .logprobs of its tokens",
    "output_logits": "omni.logits has them",
    "generation_config": "give its options by name, such as thinker_temperature",
    "streamer": "use omni.stream",
    "stopping_criteria": "use thinker_stop_strings, or close omni.stream",
    "max_length": "use thinker_max_new_tokens",
    "min_length": "use thinker_min_new_tokens",
}
MODES = {"text": False, "audio": True}


def translated(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by our names alone.

    Raises:
        ValueError: an option that would change the reply and is not supported.
    """
    ours = dict(options)
    for name in options:
        prefix = next(part for part in PREFIXES if name.startswith(part))
        bare = name.removeprefix(prefix)
        if bare in HARMLESS:
            _require_harmless(name, bare, ours.pop(name))
        elif bare in OF_THINKER and not prefix:
            value = ours.pop(name)
            ours.setdefault(f"thinker_{bare}", value)
    if "spk" in ours:
        _rename(ours, "spk", "speaker", ours["spk"])
    mode = ours.get("generation_mode")
    if mode is not None and (not isinstance(mode, str) or mode not in MODES):
        raise ValueError(f"generation_mode: expected 'text' or 'audio', got {shown(mode)}")
    if "generation_mode" in ours:
        _rename(ours, "generation_mode", "return_audio", None if mode is None else MODES[mode])
    return ours


def _require_harmless(name: str, bare: str, value: Any) -> None:
    known = HARMLESS[bare]
    plain = isinstance(value, bool | int | float | list)
    if value is None or known is ... or (plain and value in known):
        return
    raise ValueError(f"{name}={shown(value)} is not supported; {INSTEAD.get(bare, 'leave it out')}")


def _rename(options: dict[str, Any], name: str, ours: str, value: Any) -> None:
    """Moves an option to our name for it."""
    del options[name]
    if options.get(ours) is not None and value is not None:
        raise ValueError(f"{name} and {ours} are one option; give one of them")
    options[ours] = options.get(ours) if value is None else value
