"""Shared by the readers of both families: rope in every spelling, decoder blocks, encoders, ids in a vocabulary."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from omni_jax.config.decoder import DecoderConfig, ExpertsConfig
from omni_jax.config.encoders import MelEncoderConfig, PatchEncoderConfig
from omni_jax.config.fields import LARGEST, MOST, Fields
from omni_jax.config.words import UNKNOWN, Words
from omni_jax.errors import cut, shown

# Upper bounds on the number of layers, of tokens in a context, and of coordinates a second.
LAYERS, CONTEXT, PER_SECOND = 1 << 10, 1 << 24, 1e4


def within(fields: Fields, ids: Mapping[str, int], vocabulary: int) -> None:
    """Reports a fault for each id that is outside the vocabulary."""
    for name, token in ids.items():
        if not 0 <= token < vocabulary:
            fields.fault(f"{fields.path}{name} {shown(token)} is outside the vocabulary of {vocabulary}")


@dataclass(frozen=True)
class Id:
    """Where to find a token id.

    Attributes:
        names: spellings of its field; the first one that is present counts.
        text: text of its token, which is looked up in the tokenizer where the field is left out.
        published: the id in all published checkpoints, used where the file and the tokenizer lack it and Transformers'
            class has no default.
    """

    names: tuple[str, ...]
    text: str = ""
    published: int = UNKNOWN


def token_ids(fields: Fields, ids: Mapping[str, Id], vocabulary: Fields, size: int, words: Words) -> dict[str, int]:
    """Ids in the thinker's vocabulary, by our names: from the file, else from the tokenizer, else the class's default.

    Args:
        fields: the object that holds the ids.
        ids: where to find each id, by our names.
        vocabulary: the object that states the vocabulary's size; if it is at fault, ids are not checked against the
            size.
        size: size of the vocabulary.
        words: looks up ids in the tokenizer.
    """
    found: dict[str, int] = {}
    for ours, known in ids.items():
        name = fields.same(*known.names)
        if fields.values.get(name) is not None:
            found[ours] = token = fields.get(name, int)
            if vocabulary.sound and not any(fault.startswith(f"{fields.path}{name}") for fault in fields.faults):
                within(fields, {name: token}, size)
            continue
        token = words(known.text) if known.text else None
        token = fields.default(known.names[0], known.published) if token is None else token
        found[ours] = token if token < size else UNKNOWN
    return found


def rope(fields: Fields, head_width: int, *, sections: bool) -> tuple[float, tuple[int, int, int] | None]:
    """Base and sections of rope, from ``rope_theta`` + ``rope_scaling`` (hub) or ``rope_parameters`` (newer files)."""
    nested = {}
    for name in ("rope_scaling", "rope_parameters"):
        value = fields.values.get(name)
        if isinstance(value, Mapping):
            for key, item in value.items():
                if key in nested and nested[key] != item:
                    both = (
                        f"rope_scaling.{cut(key)} = {shown(nested[key])} and rope_parameters.{cut(key)} = {shown(item)}"
                    )
                    fields.fault(f"{fields.path}{both} contradict each other")
                nested[key] = item
        elif value is not None:
            fields.fault(f"{fields.path}{name}: expected an object, got {shown(value)}")
    kind = nested.get("rope_type", nested.get("type", "default"))
    if kind not in ("default", "mrope"):
        fields.fault(f"{fields.path}rope_type: expected 'default', got {shown(kind)} (no scaled rope in this family)")
    theta = fields.values.get("rope_theta", nested.get("rope_theta"))
    theta = fields.default("rope_theta", None) if theta is None else theta
    if "rope_theta" in fields.values and "rope_theta" in nested and nested["rope_theta"] != theta:
        both = f"rope_theta = {shown(theta)} and rope_parameters.rope_theta = {shown(nested['rope_theta'])}"
        fields.fault(f"{fields.path}{both} contradict each other")
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta <= LARGEST:
        got = "nothing" if theta is None else shown(theta)
        fields.fault(f"{fields.path}rope_theta: expected a positive number, got {got} (at most {LARGEST:g})")
        theta = 1.0
    if not sections:
        return float(theta), None
    section = nested["mrope_section"] if "mrope_section" in nested else fields.default("mrope_section", None)
    if (
        not isinstance(section, list)
        or len(section) != 3
        or not all(type(item) is int and 0 <= item <= MOST for item in section)
    ):
        got = "nothing" if section is None else shown(section)
        fields.fault(f"{fields.path}mrope_section: expected three integers, got {got}")
        return float(theta), (0, 0, 0)
    if sum(section) != head_width // 2 and fields.sound:
        fields.fault(
            f"{fields.path}mrope_section {section} adds up to {sum(section)}, expected head_dim / 2 = {head_width // 2}"
        )
    return float(theta), (section[0], section[1], section[2])


def decoder(
    fields: Fields,
    *,
    sections: bool = False,
    mixture: Callable[[Fields], ExpertsConfig] | None = None,
    **rest: Any,
) -> DecoderConfig:
    """Reads the configuration of a stack of decoder blocks.

    Args:
        fields: the decoder's object.
        sections: whether the object has M-RoPE sections.
        mixture: reads the experts; None for a dense feed-forward.
        rest: fields of DecoderConfig that the family fixes and the file does not state.
    """
    stated = fields.values["head_dim"] if "head_dim" in fields.values else fields.default("head_dim", None)
    head_width = fields.size("head_dim") if stated is not None else 0
    width, heads, kv_heads = (
        fields.size("hidden_size"),
        fields.size("num_attention_heads"),
        fields.size("num_key_value_heads"),
    )
    if not head_width:
        head_width = width // heads
        if width % heads and fields.sound:
            fields.fault(
                f"{fields.path}hidden_size {width} is no multiple of num_attention_heads {heads}, and head_dim is left out"
            )
    if heads % kv_heads and fields.sound:
        fields.fault(f"{fields.path}num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    fields.must("hidden_act", "silu", "the gated feed-forward uses SiLU")
    experts = mixture(fields) if mixture else None
    theta, section = rope(fields, head_width, sections=sections)
    return DecoderConfig(
        layers=fields.size("num_hidden_layers", LAYERS),
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        ffn_width=0 if mixture else fields.size("intermediate_size"),
        norm_eps=fields.positive("rms_norm_eps", 1.0),
        rope_theta=theta,
        mrope_section=section,
        experts=experts,
        **rest,
    )


def mel_encoder(audio: Fields) -> dict[str, int]:
    """The fields of MelEncoderConfig."""
    audio.must("activation_function", "gelu", "the published encoder uses the exact GELU")
    found = {
        "mel_bins": audio.size("num_mel_bins"),
        "layers": audio.size(audio.same("encoder_layers", "num_hidden_layers"), LAYERS),
        "width": audio.size(audio.same("d_model", "hidden_size")),
        "heads": audio.size(audio.same("encoder_attention_heads", "num_attention_heads")),
        "ffn_width": audio.size(audio.same("encoder_ffn_dim", "intermediate_size")),
        "chunk_frames": 2 * audio.size("n_window"),
        "out_width": audio.size("output_dim"),
    }
    if found["width"] % found["heads"] and audio.sound:
        audio.fault(f"{audio.path}d_model {found['width']} is no multiple of encoder_attention_heads {found['heads']}")
    return found


def patch_encoder(vision: Fields) -> dict[str, int]:
    """The fields of PatchEncoderConfig."""
    found = {
        "layers": vision.size(vision.same("depth", "num_hidden_layers"), LAYERS),
        "width": vision.size(vision.same("hidden_size", "embed_dim")),
        "heads": vision.size(vision.same("num_heads", "num_attention_heads")),
        "ffn_width": vision.size("intermediate_size"),
        "channels": vision.size(vision.same("in_channels", "in_chans")),
        "patch": vision.size(vision.same("patch_size", "spatial_patch_size")),
        "temporal_patch": vision.size("temporal_patch_size"),
        "merge": vision.size("spatial_merge_size"),
        "out_width": vision.size("out_hidden_size"),
    }
    width, heads = found["width"], found["heads"]
    if width % heads and vision.sound:
        vision.fault(f"{vision.path}hidden_size {width} is no multiple of num_heads {heads}")
    elif width // heads % 4 and vision.sound:
        vision.fault(
            f"{vision.path}hidden_size / num_heads: expected a multiple of 4, for rows and columns turn half each"
        )
    if (1 << 6) % found["merge"] ** 2 and vision.sound:
        vision.fault(f"{vision.path}spatial_merge_size {found['merge']}: expected 1, 2, 4 or 8")
    return found


def equal_widths(
    text: Fields,
    width: int,
    audio: tuple[Fields, MelEncoderConfig],
    vision: tuple[Fields, PatchEncoderConfig],
) -> None:
    """Checks that both encoders' features are as wide as the thinker: they replace its embeddings."""
    for (part, encoder), name in ((audio, "output_dim"), (vision, "out_hidden_size")):
        if encoder.out_width != width and part.sound and text.sound:
            part.fault(f"{part.path}{name} {encoder.out_width} differs from the thinker's hidden_size {width}")
