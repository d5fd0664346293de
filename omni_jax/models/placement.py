"""Where the parameters of a model lie on a mesh: by the legend in ``parallel/sharding.py``, but for parts that every device
holds whole."""

from typing import Any

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omni_jax.parallel import param_paths
from omni_jax.parallel.mesh import checked
from omni_jax.parallel.sharding import candidates, over, spec

# Parts that every device holds whole: they are small, and what they would send is more than what they multiply.
WHOLE = ("code2wav", "dit", "bigvgan")


def shardings(tree: Any, mesh: Mesh) -> dict[str, NamedSharding]:
    """The sharding of each parameter of an abstract tree, by path.

    An axis whose size the mesh does not divide (4 key heads on 8 devices, 20 heads of the audio encoder on 8) is replicated,
    and so are the vocoders.

    Raises:
        ValueError: a mesh without any of the axes ``data``, ``expert``, ``model``, or with explicit axes.
    """
    mesh, names, leaves = checked(mesh), param_paths.axes(tree), param_paths.leaves(tree)

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
        for axis in candidates(name, mesh)
        if axis not in over(name, size, mesh)
    }
    return list(found)
