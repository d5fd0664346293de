"""Meshes of devices: from a user's specification, or chosen for the devices that exist."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from omni_jax.errors import shown
from omni_jax.parallel.sharding import AXES
from omni_jax.parallel.topology import BY_CORES, numbers

# A topology's name, such as v6e-8. A mesh may have kinds of which topology.py knows no figures.
TOPOLOGY = re.compile(r"(v[4-7][a-z]*|tpu7x)-(\d+)")


def make_mesh(spec: str | Mesh, devices: Sequence[Any] | None = None, *, kv_heads: int = 4) -> Mesh:
    """A mesh from a user's specification.

    Args:
        spec: a shape such as ``data=2,expert=4``, a topology such as ``v6e-8``, or a mesh.
        devices: the devices to use, by default all; a shape or topology of fewer uses the first ones.
        kv_heads: the model's key heads. For a topology, the size of ``model`` divides this number, because a cache
            whose heads can be divided need not be replicated.

    Raises:
        ValueError: a mesh without these axes or with explicit ones, an unknown name, or too few devices.
    """
    if isinstance(spec, Mesh):
        return checked(spec)
    sizes = axis_sizes(spec, kv_heads=kv_heads)
    found = list(jax.devices() if devices is None else devices)
    count = math.prod(sizes.values())
    if count > len(found):
        raise ValueError(f"mesh: {shown(spec)} needs {count} devices, got {len(found)}; name a smaller one")
    return Mesh(np.array(found[:count]).reshape([sizes[axis] for axis in AXES]), AXES)


def well_chosen(devices: Sequence[Any], *, kv_heads: int) -> Mesh | None:
    """The default mesh: all devices. None for a single device, or for a CPU, whose cores are one device."""
    if len(devices) == 1 or devices[0].platform == "cpu":
        return None
    sizes = _divided(len(devices), kv_heads)
    return Mesh(np.array(devices).reshape([sizes[axis] for axis in AXES]), AXES)


def axis_sizes(spec: str, *, kv_heads: int = 4) -> dict[str, int]:
    """The size of each axis of a mesh that is given as text; arguments and errors as in ``make_mesh``."""
    if not isinstance(spec, str):
        raise ValueError(
            f"mesh: expected a shape such as 'data=2,expert=4', a topology such as 'v6e-8', or a jax.sharding.Mesh, got "
            f"{shown(spec)}"
        )
    if topology := TOPOLOGY.fullmatch(spec):
        kind, count = topology[1], int(topology[2])
        chips = count // 2 if kind in BY_CORES else count
        if chips < 1:
            raise ValueError(
                f"mesh: {shown(spec)} has no chip; of {kind} the number counts {'cores' if chips < count else 'chips'}"
            )
        known = numbers(kind)
        # Large slices of v5p consist of cubes of 64 chips, in more shapes than topology.CUBES lists.
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
    """Axis sizes: ``model`` as large as divides the key heads, ``data`` the rest. Experts use all axes in any case."""
    model = math.gcd(count, kv_heads)
    return {"data": count // model, "expert": 1, "model": model}


def checked(mesh: Mesh) -> Mesh:
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            "mesh: expected axes of type Auto, got explicit ones; make it with jax.sharding.Mesh(devices, names) or "
            "jax.make_mesh(..., axis_types=(AxisType.Auto,) * n)"
        )
    if not set(mesh.axis_names) & set(AXES):
        raise ValueError(f"mesh: expected axes among data, expert and model, got {mesh.axis_names}")
    return mesh
