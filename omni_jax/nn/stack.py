"""Equal layers as one: parameters stacked along a leading axis, one compiled body under ``lax.scan``."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from omni_jax.nn.layers import Init


def stack(init: Init, layers: int, build: Callable[[Init], Any]) -> Any:
    """``layers`` modules from ``build``, each with its own keys, as one module whose leaves have a leading axis."""
    return jax.vmap(lambda key: build(Init(key, init.dtype)))(jax.random.split(init.key(), layers))


def scan(body: Callable[..., Any], carry: Any, stacked: Any, *xs: Any) -> tuple[Any, Any]:
    """``carry, y = body(carry, layer, index, *x)`` over the layers of a stacked module.

    Weights that a grouped kernel reads (experts) must not come this way: the compiler copies each layer's slice for such a
    call. They are captured whole and addressed by the layer's index instead (docs/adr/0002).
    """

    def step(carry, inputs):
        layer, index, *x = inputs
        return body(carry, layer, index, *x)

    length = jax.tree.leaves(stacked)[0].shape[0]
    return jax.lax.scan(step, carry, (stacked, jnp.arange(length), *xs))
