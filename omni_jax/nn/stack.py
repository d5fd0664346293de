"""Stacks of equal layers: parameters stacked along a leading axis, one compiled body under ``lax.scan``."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from omni_jax.nn.layers import Init


def stack(init: Init, layers: int, build: Callable[[Init], Any]) -> Any:
    """Builds ``layers`` modules, each with its own keys, as one module whose leaves have a leading axis."""
    return jax.vmap(lambda key: build(Init(key, init.dtype)))(jax.random.split(init.key(), layers))


def unstack(stacked: Any) -> nnx.List:
    """Unstacks the layers, for ``scan`` inside of another loop. A list of layers is returned as it is.

    Compilers for CPU and GPU copy a layer out of its stack before they multiply with it: three times the bytes of
    reading it. A stack that is taken apart outside of the outer loop is copied only once. A TPU's compiler reads a
    layer in place.
    """
    if isinstance(stacked, nnx.List):
        return stacked
    length = jax.tree.leaves(stacked)[0].shape[0]
    return nnx.List([jax.tree.map(lambda leaf, index=index: leaf[index], stacked) for index in range(length)])


def scan(body: Callable[..., Any], carry: Any, stacked: Any, *xs: Any) -> tuple[Any, Any]:
    """``carry, y = body(carry, layer, index, *x)`` over the layers of a stacked module, or of one that ``unstack`` returned.

    Weights that a grouped kernel reads (experts) must not be part of ``stacked``: the compiler would copy each layer's
    slice for such a call. ``body`` captures them whole and addresses them by the layer's index (docs/adr/0002).
    """

    def step(carry, inputs):
        layer, index, *x = inputs
        return body(carry, layer, index, *x)

    if isinstance(stacked, nnx.List):
        made, body = [], jax.jit(body)  # traced for the first layer, and taken for all that have its shapes
        for index, layer in enumerate(stacked):
            carry, y = body(carry, layer, jnp.int32(index), *(x[index] for x in xs))
            made.append(y)
        return carry, jax.tree.map(lambda *ys: jnp.stack(ys), *made)
    length = jax.tree.leaves(stacked)[0].shape[0]
    return jax.lax.scan(step, carry, (stacked, jnp.arange(length), *xs))
