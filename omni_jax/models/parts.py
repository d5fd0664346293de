"""Builds the parts of a model by name, abstract or with random weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from omni_jax.config import OmniConfig, family_of
from omni_jax.models.thinker import Thinker
from omni_jax.nn.layers import Init
from omni_jax.parallel.param_paths import axes, leaves, replace

__all__ = ["READING", "abstract", "axes", "builders", "is_spoken", "leaves", "random", "replace"]

# The parts that every model has; of the others, which only speaking needs, each family has its own.
READING = ("thinker", "audio_encoder", "vision_encoder")


def is_spoken(part: str) -> bool:
    """Whether only speaking needs a part."""
    return part not in READING


def builders(config: OmniConfig, *, speech: bool = True) -> dict[str, Callable[[Init], nnx.Module]]:
    """How to build each part of ``config``; without ``speech``, leaves out the parts that only speech needs."""
    found: dict[str, Callable[[Init], nnx.Module]] = {"thinker": lambda init: Thinker(init, config.thinker)}
    found |= family_of(config).module("models").builders(config)
    return {part: build for part, build in found.items() if speech or not is_spoken(part)}


def abstract(config: OmniConfig, dtype: Any, *, speech: bool = True) -> dict[str, nnx.Module]:
    """The parts with ShapeDtypeStructs in place of arrays. It takes seconds for a large model; results are cached."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return _random.eval_shape(config, jnp.dtype(dtype), key, speech=speech)


def random(config: OmniConfig, dtype: Any, key: jax.Array, *, speech: bool = True) -> dict[str, nnx.Module]:
    """The parts with random weights of a sensible scale. Under ``jax.jit`` they are made on the device."""
    made = builders(config, speech=speech)
    keys = jax.random.split(key, len(made))
    return {name: build(Init(part_key, dtype)) for (name, build), part_key in zip(made.items(), keys, strict=True)}


_random = jax.jit(random, static_argnames=("config", "dtype", "speech"))  # for ``abstract``, whose results it caches
