"""TPU topologies by name, without a TPU: libtpu's compiler knows the chips and gives abstract devices for a mesh.

Libtpu comes with ``jax[tpu]`` and runs on any x86 Linux machine.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from omni_jax.environment import variables
from omni_jax.errors import shown

# Kinds whose slices are named by cores, two a chip; others are named by chips.
BY_CORES = ("v4", "v5p")
# The shape of a slice by its number of chips. Slices of v5p have three dimensions.
PLANES = {1: "1x1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"}


@dataclass(frozen=True)
class Chip:
    """A chip's published figures, and the memory that the compiler lets a program use.

    Attributes:
        limit: upper bound on the bytes of a program.
        bandwidth: bytes a second to and from main memory.
        rate: operations a second in bfloat16.
        link: bytes a second to other chips, all links together.
    """

    limit: int
    bandwidth: float
    rate: float
    link: float


CHIPS = {
    "v5e": Chip(int(15.75 * 2**30), 819e9, 197e12, 200e9),
    "v6e": Chip(int(31.25 * 2**30), 1640e9, 918e12, 448e9),
    "v5p": Chip(int(95.74 * 2**30), 2765e9, 459e12, 600e9),
}
NAME = re.compile(rf"({'|'.join(CHIPS)})-(\d+)")


@dataclass(frozen=True)
class Topology:
    """A slice.

    Attributes:
        name: its name, such as v6e-8.
        chips: number of its chips.
        chip: figures of each chip.
        shape: arrangement of the chips, such as 2x4.
    """

    name: str
    chips: int
    chip: Chip
    shape: str

    @property
    def devices(self) -> list[Any]:
        """Devices for which programs can be compiled, but on which none can run."""
        return _devices(f"{self.name.partition('-')[0]}:{self.shape}", self.chips)


def topology(name: str) -> Topology:
    """A slice such as v5e-1, v6e-8 or v5p-8 (cores: four chips).

    Raises:
        ValueError: the name is unknown, or no slice has this number of chips.
    """
    if not (found := NAME.fullmatch(name)):
        raise ValueError(
            f"topology: expected a name such as v5e-1, v6e-8 or v5p-8, got {shown(name)}; the kinds known are {', '.join(CHIPS)}"
        )
    kind, number = found[1], int(found[2])
    shapes, cores = _shapes(kind), 2 if kind in BY_CORES else 1
    if number not in (sizes := numbers(kind)):
        known = ", ".join(f"{kind}-{size}" for size in sizes)
        raise ValueError(f"topology: {name}: no slice has this size; expected one of {known}")
    return Topology(name, number // cores, CHIPS[kind], shapes[number // cores])


def numbers(kind: str) -> list[int]:
    """The numbers in the names of a kind's slices (for v5p twice the chips); empty for an unknown kind."""
    if kind not in CHIPS:
        return []
    return [2 * size if kind in BY_CORES else size for size in _shapes(kind)]


def _shapes(kind: str) -> dict[int, str]:
    return CUBES if kind == "v5p" else PLANES


@cache
def _devices(name: str, chips: int) -> list[Any]:
    # Do not look for a TPU, and allow other processes to load libtpu for compiling.
    compiler = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    # Without a host's name and type, libtpu logs that it finds none. The values make no difference to the programs.
    host = {"TPU_ACCELERATOR_TYPE": "v6e-4", "TPU_WORKER_HOSTNAMES": "localhost"}
    quiet = {"TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3"}
    from jax.experimental import topologies

    bounds = {"chips_per_host_bounds": [1, 1, 1]} if chips == 1 else {}
    try:
        with variables(compiler), variables(host | quiet, replace=False):
            return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **bounds).devices)
    except Exception as error:  # the plugin's loader may raise anything; then there is no compiler
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the TPU's compiler is not here ({reason}); on Linux for x86: pip install 'jax[tpu]'"
        ) from None
