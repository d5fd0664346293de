"""Checks the shapes and dtypes in signatures whenever a test calls the function (jaxtyping's import hook, by beartype)."""

import collections.abc
import functools
import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin

import jax
import numpy as np
from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

PACKAGES = [
    "omni_jax.cli.sound_file",
    "omni_jax.decoding",
    "omni_jax.engine",
    "omni_jax.models",
    "omni_jax.nn",
    "omni_jax.omni",
    "omni_jax.processing",
    "omni_jax.speech",
]


def install() -> None:
    """Must come before the first import of ``omni_jax``."""
    install_import_hook(PACKAGES, f"{__name__}.checked")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the arguments and results checked that are annotated with shapes; pyright checks the rest.

    Fields of Flax's dataclasses are not checked: JAX builds these with placeholders in place of arrays, and with slices
    of them.
    """
    shaped = {name: hint for name, hint in function.__annotations__.items() if _has_shape(hint)}
    if not shaped:
        return function
    hints = {name: _or_numpy(shaped[name]) if name in shaped else Any for name in function.__annotations__}
    function.__annotations__ = hints
    check = beartype(function)
    if function.__name__ != "__init__":
        return check

    @functools.wraps(function)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        (function if hasattr(self, "_flax_dataclass") else check)(self, *args, **kwargs)

    return init


def _is_array(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def _has_shape(hint: Any) -> bool:
    """Whether a hint is, or contains, an array's with its shape."""
    return _is_array(hint) or any(map(_has_shape, get_args(hint)))


def _or_numpy(hint: Any) -> Any:
    """The hint with NumPy's arrays admitted beside JAX's: JAX takes either."""
    if _is_array(hint):
        return Union[hint, hint.dtype[np.ndarray, hint.dim_str]] if hint.array_type is jax.Array else hint  # noqa: UP007
    origin = get_origin(hint)
    if not _has_shape(hint) or origin is collections.abc.Callable:
        return hint
    arguments = tuple(map(_or_numpy, get_args(hint)))
    return Union[arguments] if origin in (Union, types.UnionType) else origin[arguments]  # noqa: UP007
