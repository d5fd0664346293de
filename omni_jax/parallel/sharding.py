"""The legend of sharding: logical axes of parameters and activations to axes of a device mesh.

A mesh has the axes ``data`` (rows of a batch), ``expert`` and ``model`` (heads, feed-forward, vocabulary). What a program
needs to know of it, it reads off its weights: they carry their mesh, so nothing has to be set around a call (docs/adr/0009).
"""

import math
import re
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from omni_jax.errors import shown
from omni_jax.parallel import param_paths
from omni_jax.parallel.topology import numbers

AXES = ("data", "expert", "model")
# Which axes of a mesh a logical axis may be spread over: those of them, in this order, that divide its size the most.
# Experts are spread over all: their weights are most of a model's, and tokens are cheaper to send than to hold them twice.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data",),
    "alone": ("data", "expert", "model"),  # rows that a device carries to their end by itself: the frame vocoder's
    "expert": ("expert", "model", "data"),
    "heads": ("model",),
    "kv_heads": ("model",),
    "group": ("data", "expert"),  # query heads of a key head, in long prompts
    "ffn": ("model",),
    "vocab": ("model",),
}
# Parts that every device holds whole: they are small, and what they would send is more than what they multiply.
WHOLE = ("code2wav", "dit", "bigvgan")
# Chips of a topology's name, such as v6e-8; v4 and v5p are named by cores, of which a chip has two.
TOPOLOGY = re.compile(r"(v[4-7][a-z]*|tpu7x)-(\d+)")

AnyMesh = Mesh | AbstractMesh


def make_mesh(spec: str | Mesh, devices: Sequence[Any] | None = None, *, kv_heads: int = 4) -> Mesh:
    """A mesh from what a user writes: a shape such as ``data=2,expert=4``, a topology such as ``v6e-8``, or a mesh.

    Args:
        devices: what it is made of, all that there are by default; a shape or topology of fewer takes the first ones.
        kv_heads: of the model: ``model`` of a topology divides it, for a cache whose heads divide needs no copies.

    Raises:
        ValueError: a mesh without these axes, or with explicit ones; an unknown name; too few devices.
    """
    if isinstance(spec, Mesh):
        return _checked(spec)
    sizes = axis_sizes(spec, kv_heads=kv_heads)
    found = list(jax.devices() if devices is None else devices)
    count = math.prod(sizes.values())
    if count > len(found):
        raise ValueError(f"mesh: {shown(spec)} needs {count} devices, got {len(found)}; name a smaller one")
    return Mesh(np.array(found[:count]).reshape([sizes[axis] for axis in AXES]), AXES)


def well_chosen(devices: Sequence[Any], *, kv_heads: int) -> Mesh | None:
    """The mesh of those who ask for none: all devices; None for one alone, or for a CPU, whose cores are one device's."""
    if len(devices) == 1 or devices[0].platform == "cpu":
        return None
    sizes = _divided(len(devices), kv_heads)
    return Mesh(np.array(devices).reshape([sizes[axis] for axis in AXES]), AXES)


def axis_sizes(spec: str, *, kv_heads: int = 4) -> dict[str, int]:
    """How many devices each axis has, of a mesh that is named; arguments and errors as of ``make_mesh``."""
    if not isinstance(spec, str):
        raise ValueError(
            f"mesh: expected a shape such as 'data=2,expert=4', a topology such as 'v6e-8', or a jax.sharding.Mesh, got "
            f"{shown(spec)}"
        )
    if topology := TOPOLOGY.fullmatch(spec):
        kind, count = topology[1], int(topology[2])
        chips = count // 2 if kind in ("v4", "v5p") else count
        if chips < 1:
            raise ValueError(
                f"mesh: {shown(spec)} has no chip; of {kind} the number counts {'cores' if chips < count else 'chips'}"
            )
        known = numbers(kind)
        # Large slices of v5p are made of cubes of 64 chips, in more shapes than can be compiled for here.
        if known and count not in known and not (kind == "v5p" and count % 128 == 0):
            raise ValueError(
                f"mesh: {shown(spec)}: no slice has this size, they are {', '.join(map(str, known))}; or name axes, such as "
                "data=2"
            )
        return _divided(chips, kv_heads)
    sizes: dict[str, int] = {}
    for part in spec.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in AXES or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"mesh: expected a topology such as v6e-8, or sizes of {', '.join(AXES)} such as data=2,expert=4, "
                f"got {shown(spec)}"
            )
        if axis in sizes:
            raise ValueError(f"mesh: {shown(spec)} names {axis} twice; give each axis once")
        sizes[axis] = int(size)
    return {axis: sizes.get(axis, 1) for axis in AXES}


def _divided(count: int, kv_heads: int) -> dict[str, int]:
    """Heads over as many devices as their keys divide by, rows over the rest; experts are over all in any case."""
    model = math.gcd(count, kv_heads)
    return {"data": count // model, "expert": 1, "model": model}


def _checked(mesh: Mesh) -> Mesh:
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            "mesh: expected axes of type Auto, got explicit ones; make it with jax.sharding.Mesh(devices, names) or "
            "jax.make_mesh(..., axis_types=(AxisType.Auto,) * n)"
        )
    if not set(mesh.axis_names) & set(AXES):
        raise ValueError(f"mesh: expected axes among data, expert and model, got {mesh.axis_names}")
    return mesh


def shardings(tree: Any, mesh: Mesh) -> dict[str, NamedSharding]:
    """The sharding of each parameter of an abstract tree, by path.

    An axis whose size the mesh does not divide (4 key heads on 8 devices, 20 heads of the audio encoder on 8) is replicated,
    and so are the vocoders.

    Raises:
        ValueError: a mesh without any of the axes ``data``, ``expert``, ``model``, or with explicit axes.
    """
    mesh, names, leaves = _checked(mesh), param_paths.axes(tree), param_paths.leaves(tree)

    def place(path, shape):
        return PartitionSpec() if path.split(".")[0] in WHOLE else spec(names[path], shape, mesh)

    return {path: NamedSharding(mesh, place(path, leaf.shape)) for path, leaf in leaves.items()}


def undivided(tree: Any, mesh: Mesh) -> list[str]:
    """What this mesh does not divide, and every device of an axis therefore holds, in words: a line for each part and size."""
    names, leaves = param_paths.axes(tree), param_paths.leaves(tree)
    found = {
        f"{path.split('.')[0]}: {size} {name} over {axis}={mesh.shape[axis]}": None
        for path, leaf in leaves.items()
        if path.split(".")[0] not in WHOLE
        for name, size in zip(names[path], leaf.shape[-len(names[path]) :], strict=True)
        for axis in _candidates(name, mesh)
        if axis not in over(name, size, mesh)
    }
    return list(found)


def spec(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
    """How an array lies on a mesh. Names count from the right, so a leading axis of stacked layers has none."""
    named = (None,) * (len(shape) - len(names)) + names
    taken: list[str] = []
    entries: list[tuple[str, ...] | str | None] = []
    for name, size in zip(named, shape, strict=True):
        own = over(name, size, mesh, without=taken)
        taken += own
        entries.append(own if len(own) > 1 else own[0] if own else None)
    return PartitionSpec(*entries)


def over(name: str | None, size: int, mesh: AnyMesh, *, without: Sequence[str] = ()) -> tuple[str, ...]:
    """The axes of a mesh that a logical axis of this size is spread over: those that give each device the least."""
    known = [axis for axis in _candidates(name, mesh) if axis not in without]
    subsets = (found for count in range(len(known) + 1) for found in combinations(known, count))
    fitting = [found for found in subsets if size % math.prod(mesh.shape[axis] for axis in found) == 0]
    return max(fitting, key=lambda found: math.prod(mesh.shape[axis] for axis in found))


def _candidates(name: str | None, mesh: AnyMesh) -> list[str]:
    return [axis for axis in RULES.get(name or "", ()) if axis in mesh.axis_names and mesh.shape[axis] > 1]


def mesh_of(weight: jax.Array) -> AbstractMesh | None:
    """The mesh that a weight lies on, also while a program is traced; None for a single device, and where devices
    are each alone (``shard_map``)."""
    mesh = getattr(jax.typeof(weight).sharding, "mesh", None)
    return mesh if mesh is not None and mesh.size > 1 and AxisType.Manual not in mesh.axis_types else None


def constrain(x: jax.Array, names: tuple[str | None, ...], mesh: AnyMesh | None) -> jax.Array:
    """The same array, lying on the mesh as the legend says; on a single device, as it is."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(names, x.shape, mesh)))


def zeros(shape: tuple[int, ...], dtype: Any, names: tuple[str | None, ...], beside: jax.Array | None) -> jax.Array:
    """Zeros that lie on the mesh of a weight, ``beside``, from the beginning: no device holds them whole."""
    if beside is None:
        return jnp.zeros(shape, dtype)
    if isinstance(beside, Tracer):
        return constrain(jnp.zeros(shape, dtype), names, mesh_of(beside))
    mesh = beside.sharding.mesh if isinstance(beside.sharding, NamedSharding) else None
    if not isinstance(mesh, Mesh) or mesh.size == 1:
        return jnp.zeros(shape, dtype)
    return jnp.zeros(shape, dtype, device=NamedSharding(mesh, spec(names, shape, mesh)))
