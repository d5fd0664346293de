"""Meshes of devices: by what a user writes, or well chosen for the devices that are there."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from omni_jax.errors import shown
from omni_jax.parallel.sharding import AXES
from omni_jax.parallel.topology import numbers

# Chips of a topology's name, such as v6e-8; v4 and v5p are named by cores, of which a chip has two.
TOPOLOGY = re.compile(r"(v[4-7][a-z]*|tpu7x)-(\d+)")


def make_mesh(spec: str | Mesh, devices: Sequence[Any] | None = None, *, kv_heads: int = 4) -> Mesh:
    """A mesh from what a user writes: a shape such as ``data=2,expert=4``, a topology such as ``v6e-8``, or a mesh.

    Args:
        devices: what it is made of, all that there are by default; a shape or topology of fewer takes the first ones.
        kv_heads: of the model: ``model`` of a topology divides it, for a cache whose heads divide needs no copies.

    Raises:
        ValueError: a mesh without these axes, or with explicit ones; an unknown name; too few devices.
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


def checked(mesh: Mesh) -> Mesh:
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            "mesh: expected axes of type Auto, got explicit ones; make it with jax.sharding.Mesh(devices, names) or "
            "jax.make_mesh(..., axis_types=(AxisType.Auto,) * n)"
        )
    if not set(mesh.axis_names) & set(AXES):
        raise ValueError(f"mesh: expected axes among data, expert and model, got {mesh.axis_names}")
    return mesh
