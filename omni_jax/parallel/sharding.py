"""The rules of sharding, from logical axes of parameters and activations to axes of a device mesh.

A mesh has the axes ``data`` (rows of a batch), ``expert`` and ``model`` (heads, feed-forward, vocabulary). A program
takes the mesh from its weights' shardings, so no context has to be set around a call (docs/adr/0009).
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "expert", "model")
# The mesh axes over which a logical axis may be sharded, in this order: the subset that divides its size the most is
# used. Experts are sharded over all axes: they are most of a model's weights, and sending tokens is cheaper than
# holding them twice.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data",),
    "alone": ("data", "expert", "model"),  # rows that one device computes from beginning to end: those of code2wav
    "expert": ("expert", "model", "data"),
    "heads": ("model",),
    "kv_heads": ("model",),
    "group": ("data", "expert"),  # query heads of a key head, in long prompts
    "ffn": ("model",),
    "vocab": ("model",),
}

AnyMesh = Mesh | AbstractMesh


def spec(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
    """How an array is sharded on a mesh. Names count from the right, so a leading axis of stacked layers has none."""
    named = (None,) * (len(shape) - len(names)) + names
    taken: list[str] = []
    entries: list[tuple[str, ...] | str | None] = []
    for name, size in zip(named, shape, strict=True):
        own = mesh_axes(name, size, mesh, without=taken)
        taken += own
        entries.append(own if len(own) > 1 else own[0] if own else None)
    return PartitionSpec(*entries)


def mesh_axes(name: str | None, size: int, mesh: AnyMesh, *, without: Sequence[str] = ()) -> tuple[str, ...]:
    """The mesh axes over which a logical axis of this size is sharded: those that give the smallest shards."""
    known = [axis for axis in candidates(name, mesh) if axis not in without]
    subsets = (found for count in range(len(known) + 1) for found in combinations(known, count))
    fitting = [found for found in subsets if size % math.prod(mesh.shape[axis] for axis in found) == 0]
    return max(fitting, key=lambda found: math.prod(mesh.shape[axis] for axis in found))


def candidates(name: str | None, mesh: AnyMesh) -> list[str]:
    return [axis for axis in RULES.get(name or "", ()) if axis in mesh.axis_names and mesh.shape[axis] > 1]


def mesh_of(weight: jax.Array) -> AbstractMesh | None:
    """The mesh of a weight, also while a program is traced; None for a single device and inside ``shard_map``."""
    mesh = getattr(jax.typeof(weight).sharding, "mesh", None)
    return mesh if mesh is not None and mesh.size > 1 and AxisType.Manual not in mesh.axis_types else None


def constrain(x: jax.Array, names: tuple[str | None, ...], mesh: AnyMesh | None) -> jax.Array:
    """The same array, sharded on the mesh by the rules; without a mesh, unchanged."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(names, x.shape, mesh)))


def zeros(shape: tuple[int, ...], dtype: Any, names: tuple[str | None, ...], like: jax.Array | None) -> jax.Array:
    """Zeros that are created sharded on the mesh of the weight ``like``, so that no device ever holds them whole."""
    if like is None:
        return jnp.zeros(shape, dtype)
    if isinstance(like, Tracer):
        return constrain(jnp.zeros(shape, dtype), names, mesh_of(like))
    mesh = like.sharding.mesh if isinstance(like.sharding, NamedSharding) else None
    if not isinstance(mesh, Mesh) or mesh.size == 1:
        return jnp.zeros(shape, dtype)
    return jnp.zeros(shape, dtype, device=NamedSharding(mesh, spec(names, shape, mesh)))
