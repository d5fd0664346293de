"""Parameters of a tree of modules by dotted path, such as ``thinker.decoder.layers.attention.q.kernel``."""

from typing import Any

import jax
from flax import nnx


def leaves(tree: Any) -> dict[str, Any]:
    """Parameters by path.

    Works for arrays, ShapeDtypeStructs and shardings alike. Flax's key paths end in ``value``, which is dropped.
    """
    return {_path(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def replace(tree: Any, values: dict[str, Any]) -> Any:
    """The same tree with the leaves in ``values`` replaced, by path."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: values.get(_path(path), leaf), tree)


def axes(tree: Any) -> dict[str, tuple[str | None, ...]]:
    """Logical axis names of each parameter by path, named from the right."""
    params = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: isinstance(node, nnx.Variable))[0]
    return {_path(path): param.get_metadata("axes") for path, param in params}


def _path(path: tuple[Any, ...]) -> str:
    names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    return ".".join(name for name in names if name != "value")
