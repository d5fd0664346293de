"""Memory layouts of weights, where a platform reads them in another layout than the declared one.

A TPU's product reads a kernel whose contracted axis is the last but one. A kernel [D, N, H], whose product has two
axes, is not in this layout by default. Each program that takes it as it is transposes it first: a copy beside the
weights, made at every call. Heads narrower than a tile (64), and a share of a feed-forward width that tiles do not
divide (192 of a shared expert's 768), are made the last axis but one instead, because as the innermost axis they would
be padded. Where tiles do not divide the feed-forward width (3,420 in Qwen2.5-Omni's vision encoder), the default layout
has another axis innermost than a product reads, with the same result: 0.84 GB beside the weights at every call.

A CPU's product reads an array from its beginning. So each layer of a stack is copied out first, at every token: three
times the bytes of reading it. On a CPU the layers of decoders are therefore arrays of their own.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.layout import Format, Layout

from omni_jax.models.decoder import Decoder
from omni_jax.models.parts import OmniParts

Parts = TypeVar("Parts", bound=OmniParts)

# Rows of a TPU's tile, and columns.
TILE, LANES = 8, 128


def to_platform_layout(parts: Parts, platform: str) -> Parts:
    """The same parts in the layout that a platform reads. Programs take them in the layout that they have."""
    if platform == "cpu":
        return replace(parts, **{name: _with_layers(part, _unstack) for name, part in parts.items()})
    if platform != "tpu":
        return parts
    return _mapped(
        parts, lambda leaf, order: leaf if order is None else jax.device_put(leaf, _format(order, leaf.sharding))
    )


def to_canonical(parts: Mapping[str, nnx.Module]) -> dict[str, nnx.Module]:
    """The same parts with their layers stacked again, as in checkpoints."""
    return {name: _with_layers(part, _restack) for name, part in parts.items()}


def abstract_layout(tree: Any) -> Any:
    """Abstract parameters with the layouts and shardings that ``to_platform_layout`` gives on a TPU."""

    def place(leaf, order):
        where = leaf.sharding if order is None else _format(order, leaf.sharding)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return _mapped(tree, place)


def _with_layers(part, form):
    """A part with ``form`` applied to the layers of its decoder."""
    decoder = getattr(part, "decoder", None)
    if not isinstance(decoder, Decoder):
        return part
    part = jax.tree.map(lambda leaf: leaf, part)
    part.decoder.layers = form(decoder.layers)
    return part


def _unstack(stacked):
    """The layers as arrays of their own, without a copy: on a CPU they can be views."""
    views = jax.tree.map(np.asarray, stacked)
    count = jax.tree.leaves(views)[0].shape[0]
    return nnx.List(
        jax.tree.map(lambda view, layer=layer: jax.device_put(view[layer]), views) for layer in range(count)
    )


def _restack(layers):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers) if isinstance(layers, nnx.List) else layers


def _mapped(tree, place):
    def visit(param):
        named = param.get_metadata("axes") if isinstance(param, nnx.Variable) else ()
        return jax.tree.map(lambda leaf: place(leaf, _order(named, _held(leaf))), param)

    return jax.tree.map(visit, tree, is_leaf=lambda node: isinstance(node, nnx.Variable))


def _held(leaf: Any) -> tuple[int, ...]:
    """The shape of one device's shard."""
    where = getattr(leaf, "sharding", None)
    return leaf.shape if where is None else where.shard_shape(leaf.shape)


def _order(axes: tuple[str | None, ...], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes from the slowest to the fastest in memory; None for the default. Names count from the right."""
    before = len(shape) - len(axes)
    if "embed" in axes and "ffn" in axes and shape[before + axes.index("ffn")] % TILE:
        width = before + axes.index("embed")
        return (*(axis for axis in range(len(shape)) if axis != width), width)
    if len(axes) != 3 or axes[0] != "embed":
        return None
    if axes[2] in ("head", "ffn") and shape[-1] % LANES:
        return (*range(before), before + 1, before + 2, before)
    return (*range(before), before + 1, before, before + 2)


def _format(order, sharding):
    return Format(Layout(major_to_minor=order), sharding)
