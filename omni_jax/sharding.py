"""The legend of sharding: logical axes of parameters to axes of a device mesh."""

from typing import Any

from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from omni_jax.models import parts

RULES = {
    "expert": "expert",
    "heads": "model",
    "kv_heads": "model",
    "ffn": "model",
    "vocab": "model",
    "embed": None,
    "head": None,
    "expert_ffn": None,
}


def shardings(tree: Any, mesh: Mesh) -> dict[str, NamedSharding]:
    """The sharding of each parameter of an abstract tree, by path.

    An axis whose size the mesh does not divide (4 key heads on 8 devices, 20 heads of the audio encoder on 8) is replicated.

    Raises:
        ValueError: a mesh without any of the axes ``data``, ``expert``, ``model``, or with explicit axes.
    """
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            "mesh: expected axes of type Auto, got explicit ones; make it with jax.sharding.Mesh(devices, names) or "
            "jax.make_mesh(..., axis_types=(AxisType.Auto,) * n)"
        )
    if not set(mesh.axis_names) & {"data", "expert", "model"}:
        raise ValueError(f"mesh: expected axes among data, expert and model, got {mesh.axis_names}")
    names, leaves = parts.axes(tree), parts.leaves(tree)
    return {path: NamedSharding(mesh, _spec(names[path], leaf.shape, mesh)) for path, leaf in leaves.items()}


def _spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Names count from the right, so a leading axis of stacked layers has none."""
    spec: list[str | None] = []
    for axis, size in zip((None,) * (len(shape) - len(axes)) + axes, shape, strict=True):
        target = RULES[axis] if axis else None
        fits = target in mesh.axis_names and target not in spec and size % mesh.shape[target] == 0
        spec.append(target if fits else None)
    return PartitionSpec(*spec)
