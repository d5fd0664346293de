"""The order in memory of a weight's axes, where a TPU's products want another one than its shape has.

A product reads a kernel with the contracted axis next to the last. One of shape [D, N, H], which gives two axes, lies otherwise,
and each program that takes it as it is turns it around first: held beside the weights, and moved at every call.
"""

from typing import Any

import jax
from flax import nnx
from jax.experimental.layout import Format, Layout
from jax.sharding import Sharding


def arranged(tree: Any) -> Any:
    """The same parameters in the order in which a TPU multiplies; programs take them as they lie."""
    return _mapped(
        tree, lambda leaf, order: leaf if order is None else jax.device_put(leaf, _format(order, leaf.sharding))
    )


def formats(tree: Any, sharding: Sharding) -> Any:
    """The same for abstract parameters, all placed as ``sharding`` says."""

    def place(leaf, order):
        where = sharding if order is None else _format(order, sharding)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return _mapped(tree, place)


def _mapped(tree, place):
    def visit(param):
        named = param.get_metadata("axes") if isinstance(param, nnx.Variable) else ()
        return jax.tree.map(lambda leaf: place(leaf, _order(named, leaf.ndim)), param)

    return jax.tree.map(visit, tree, is_leaf=lambda node: isinstance(node, nnx.Variable))


def _order(axes: tuple[str | None, ...], rank: int) -> tuple[int, ...] | None:
    """Axes from the slowest to the fastest; names count from the right. None leaves them."""
    if len(axes) != 3 or axes[0] != "embed":
        return None
    return (*range(rank - 3), rank - 2, rank - 3, rank - 1)


def _format(order, sharding):
    return Format(Layout(major_to_minor=order), sharding)
