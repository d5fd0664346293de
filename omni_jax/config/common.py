"""What the readers of both families do alike: rope in every spelling, decoder blocks, encoders, ids in a vocabulary."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from omni_jax.config.fields import Fields
from omni_jax.config.parts import DecoderConfig, ExpertsConfig, MelEncoderConfig, PatchEncoderConfig


def within(fields: Fields, ids: Mapping[str, int], vocabulary: int) -> None:
    """A fault for each id that the vocabulary does not have."""
    for name, token in ids.items():
        if not 0 <= token < vocabulary:
            fields.fault(f"{fields.path}{name} {token} is outside the vocabulary of {vocabulary}")


def rope(fields: Fields, head_width: int, *, sections: bool) -> tuple[float, tuple[int, int, int] | None]:
    """Base and sections from ``rope_theta`` + ``rope_scaling`` (the hub's files) or ``rope_parameters`` (newer files)."""
    nested = {}
    for name in ("rope_scaling", "rope_parameters"):
        value = fields.values.get(name)
        if isinstance(value, Mapping):
            for key, item in value.items():
                if key in nested and nested[key] != item:
                    both = f"rope_scaling.{key} = {nested[key]!r} and rope_parameters.{key} = {item!r}"
                    fields.fault(f"{fields.path}{both} contradict each other")
                nested[key] = item
    kind = nested.get("rope_type", nested.get("type", "default"))
    if kind not in ("default", "mrope"):
        fields.fault(f"{fields.path}rope_type: expected 'default', got {kind!r} (no scaled rope in this family)")
    theta = fields.values.get("rope_theta", nested.get("rope_theta"))
    if "rope_theta" in fields.values and "rope_theta" in nested and nested["rope_theta"] != theta:
        fields.fault(
            f"{fields.path}rope_theta = {theta!r} and rope_parameters.rope_theta = {nested['rope_theta']!r} contradict each other"
        )
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta < math.inf:
        fields.fault(
            f"{fields.path}rope_theta: expected a positive number, got {'nothing' if theta is None else repr(theta)}"
        )
        theta = 1.0
    if not sections:
        return float(theta), None
    section = nested.get("mrope_section")
    if not isinstance(section, list) or len(section) != 3 or not all(isinstance(item, int) for item in section):
        fields.fault(
            f"{fields.path}mrope_section: expected three integers, got {'nothing' if section is None else repr(section)}"
        )
        return float(theta), (0, 0, 0)
    if sum(section) != head_width // 2 and fields.sound:
        fields.fault(
            f"{fields.path}mrope_section {section} adds up to {sum(section)}, expected head_dim / 2 = {head_width // 2}"
        )
    return float(theta), (section[0], section[1], section[2])


def decoder(
    fields: Fields,
    *,
    head_dim: bool = False,
    sections: bool = False,
    mixture: Callable[[Fields], ExpertsConfig] | None = None,
    **rest: Any,
) -> DecoderConfig:
    """A stack of decoder blocks.

    Args:
        head_dim: the field must be there; else the width over the heads stands for it.
        sections: of M-RoPE must be there.
        mixture: reads the experts; None for a dense feed-forward.
        rest: what is no field of the file but the family's own.
    """
    head_width = fields.size("head_dim") if "head_dim" in fields.values or head_dim else 0
    width, heads, kv_heads = (
        fields.size("hidden_size"),
        fields.size("num_attention_heads"),
        fields.size("num_key_value_heads"),
    )
    if not head_width:
        head_width = width // heads
        if width % heads and fields.sound:
            fields.fault(
                f"{fields.path}hidden_size {width} is no multiple of num_attention_heads {heads}, and head_dim is missing"
            )
    if heads % kv_heads and fields.sound:
        fields.fault(f"{fields.path}num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    fields.must("hidden_act", "silu", "the gated feed-forward uses SiLU")
    experts = mixture(fields) if mixture else None
    theta, section = rope(fields, head_width, sections=sections)
    return DecoderConfig(
        layers=fields.size("num_hidden_layers"),
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        ffn_width=0 if mixture else fields.size("intermediate_size"),
        norm_eps=fields.positive("rms_norm_eps"),
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
        "layers": audio.size("encoder_layers"),
        "width": audio.size("d_model"),
        "heads": audio.size("encoder_attention_heads"),
        "ffn_width": audio.size("encoder_ffn_dim"),
        "chunk_frames": 2 * audio.size("n_window"),
        "out_width": audio.size("output_dim"),
    }
    if found["width"] % found["heads"] and audio.sound:
        audio.fault(f"{audio.path}d_model {found['width']} is no multiple of encoder_attention_heads {found['heads']}")
    return found


def patch_encoder(vision: Fields) -> dict[str, int]:
    """The fields of PatchEncoderConfig."""
    found = {
        "layers": vision.size("depth"),
        "width": vision.size("hidden_size"),
        "heads": vision.size("num_heads"),
        "ffn_width": vision.size("intermediate_size"),
        "channels": vision.get("in_channels", int, vision.values.get("in_chans", 3)),
        "patch": vision.size("patch_size"),
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
    """Features take the place of embeddings, so both encoders' are as wide as the thinker."""
    for (part, encoder), name in ((audio, "output_dim"), (vision, "out_hidden_size")):
        if encoder.out_width != width and part.sound and text.sound:
            part.fault(f"{part.path}{name} {encoder.out_width} differs from the thinker's hidden_size {width}")


def media_ids(fields: Fields, text: Fields, vocabulary: int, **spelt: tuple[str, ...]) -> dict[str, int]:
    """Ids that mark media: by our name, from the first spelling that is there."""
    names = {ours: fields.same(*spellings) for ours, spellings in spelt.items()}
    ids = {ours: fields.get(theirs, int) for ours, theirs in names.items()}
    if text.sound:
        within(fields, {names[ours]: token for ours, token in ids.items()}, vocabulary)
    return ids
