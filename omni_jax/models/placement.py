"""How the parameters of a model are sharded on a mesh: by the rules in ``parallel/sharding.py``, except for parts that
every device holds whole."""

from typing import Any

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omni_jax.parallel import param_paths
from omni_jax.parallel.mesh import checked
from omni_jax.parallel.sharding import candidates, mesh_axes, spec

# Parts that every device holds whole: they are small, and sharded they would send more than they compute.
WHOLE = ("code2wav", "dit", "bigvgan")


def shardings(tree: Any, mesh: Mesh) -> dict[str, NamedSharding]:
    """The sharding of each parameter of an abstract tree, by path.

    An axis whose size the mesh does not divide (4 key heads on 8 devices, 20 heads of the audio encoder on 8) is
    replicated, and so are the vocoders.

    Raises:
        ValueError: the mesh has none of the axes ``data``, ``expert``, ``model``, or has explicit axes.
    """
    mesh, names, leaves = checked(mesh), param_paths.axes(tree), param_paths.leaves(tree)

    def place(path, shape):
        return PartitionSpec() if path.split(".")[0] in WHOLE else spec(names[path], shape, mesh)

    return {path: NamedSharding(mesh, place(path, leaf.shape)) for path, leaf in leaves.items()}


def undivided(tree: Any, mesh: Mesh) -> list[str]:
    """Axes that this mesh does not divide, so that they are replicated: in words, a line for each part and size."""
    names, leaves = param_paths.axes(tree), param_paths.leaves(tree)
    found = {
        f"{path.split('.')[0]}: {size} {name} over {axis}={mesh.shape[axis]}": None
        for path, leaf in leaves.items()
        if path.split(".")[0] not in WHOLE
        for name, size in zip(names[path], leaf.shape[-len(names[path]) :], strict=True)
        for axis in candidates(name, mesh)
        if axis not in mesh_axes(name, size, mesh)
    }
    return list(found)
