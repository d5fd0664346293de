"""The parts of a model: one typed container, and how they are built, abstract or with random weights."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from omni_jax.config import OmniConfig, family_of
from omni_jax.models.decoder import Decoder
from omni_jax.models.thinker import Thinker
from omni_jax.nn.cache import KVCache
from omni_jax.nn.layers import Init
from omni_jax.parallel.param_paths import axes, leaves, replace

__all__ = [
    "READING",
    "OmniParts",
    "abstract",
    "axes",
    "builders",
    "collect",
    "is_spoken",
    "leaves",
    "loaded",
    "random",
    "replace",
]

# The parts that every model has; of the others, which only speaking needs, each family has its own.
READING = ("thinker", "audio_encoder", "vision_encoder")

Part = TypeVar("Part")


class VisionEncoder(Protocol):
    """The members of a vision encoder that are used outside of its program."""

    @property
    def dtype(self) -> Any: ...


class Talker(Protocol):
    """The members that the talker of every family has; others are used in that family's files only."""

    @property
    def decoder(self) -> Decoder: ...

    @property
    def head(self) -> nnx.Module: ...

    @property
    def embedding(self) -> Any: ...

    @property
    def codes(self) -> Any: ...

    @property
    def config(self) -> Any: ...

    def extend(
        self, x: jax.Array, positions: jax.Array, lengths: jax.Array, cache: KVCache, *, fresh: bool = False
    ) -> tuple[jax.Array, jax.Array, KVCache]: ...

    def empty_cache(self, batch: int, slots: int) -> KVCache: ...


class CodePredictor(Protocol):
    """The members of a code predictor that are used outside of its program."""

    @property
    def decoder(self) -> Decoder: ...

    @property
    def heads(self) -> nnx.Module: ...

    @property
    def config(self) -> Any: ...


@dataclass(frozen=True, eq=False)
class OmniParts(Mapping[str, nnx.Module]):
    """The parts of a model. Each family has a subclass of its own, whose fields are its parts, vocoders included.

    A pytree: ``jax.jit``, ``jax.grad`` and optax take it as it is. The name of a field begins the paths of its
    parameters in checkpoints. A part that is not loaded is None and has no leaves. It is also a mapping of the loaded
    parts by name, for code that treats them alike: ``parts.items()``.

    Attributes:
        thinker: writes text.
        audio_encoder: turns log-mel frames into features.
        vision_encoder: turns patches into features.
        talker: writes the first code of each frame of speech; None in a text-only model, or if speech is not loaded.
        code_predictor: writes a frame's other codes; None where a frame has one code.
    """

    thinker: Thinker
    audio_encoder: nnx.Module
    vision_encoder: VisionEncoder
    talker: Talker | None = None
    code_predictor: CodePredictor | None = None

    def __init_subclass__(cls) -> None:
        """Makes a family's class a pytree, whose children are its loaded parts in alphabetic order, as in a dict."""
        jax.tree_util.register_pytree_with_keys(
            cls, _flatten_with_keys, lambda names, made: _unflatten(cls, names, made)
        )

    def __getitem__(self, name: str) -> nnx.Module:
        part = getattr(self, name) if isinstance(name, str) and name in self.__dataclass_fields__ else None
        if part is None:
            raise KeyError(name)
        return part

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self) if getattr(self, field.name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _flatten_with_keys(parts: OmniParts) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
    names = tuple(sorted(parts))
    return [(jax.tree_util.GetAttrKey(name), getattr(parts, name)) for name in names], names


def _unflatten(cls: type[OmniParts], names: tuple[str, ...], made: Any) -> OmniParts:
    """The parts from their flattened form. JAX passes any objects, so ``__init__`` and its types are not asked."""
    parts, loaded = object.__new__(cls), dict(zip(names, made, strict=True))
    for field in fields(cls):
        object.__setattr__(parts, field.name, loaded.get(field.name))
    return parts


def is_spoken(part: str) -> bool:
    """Whether only speaking needs a part."""
    return part not in READING


def loaded(part: Part | None) -> Part:
    """A part that may be absent, where the caller has checked that it is loaded."""
    assert part is not None
    return part


def builders(config: OmniConfig, *, speech: bool = True) -> dict[str, Callable[[Init], nnx.Module]]:
    """How to build each part of ``config``; without ``speech``, leaves out the parts that only speech needs."""
    found: dict[str, Callable[[Init], nnx.Module]] = {"thinker": lambda init: Thinker(init, config.thinker)}
    found |= family_of(config).module("models").builders(config)
    return {part: build for part, build in found.items() if speech or not is_spoken(part)}


def collect(config: OmniConfig, made: Mapping[str, Any]) -> OmniParts:
    """Modules by name as the parts of ``config``'s family."""
    return family_of(config).module("models").PARTS(**made)


def abstract(config: OmniConfig, dtype: Any, *, speech: bool = True) -> OmniParts:
    """The parts with ShapeDtypeStructs in place of arrays. It takes seconds for a large model; results are cached."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return _random.eval_shape(config, jnp.dtype(dtype), key, speech=speech)


def random(config: OmniConfig, dtype: Any, key: jax.Array, *, speech: bool = True) -> OmniParts:
    """The parts with random weights of a sensible scale. Under ``jax.jit`` they are made on the device."""
    made = builders(config, speech=speech)
    keys = jax.random.split(key, len(made))
    return collect(
        config, {name: build(Init(part_key, dtype)) for (name, build), part_key in zip(made.items(), keys, strict=True)}
    )


_random = jax.jit(random, static_argnames=("config", "dtype", "speech"))  # for ``abstract``, whose results it caches
