"""Whether a model fits a TPU slice: compiles all its programs for chips that need not exist.

The memory of a chip is counted for each program: its own arguments, results and temporaries, and the weights and caches
that stay beside them while it runs. The largest sum decides. Bytes and operations are shown with their lower bounds
(``lower_bound``), collectives with their bytes. The time of a step is an estimate from these, never a measurement.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from omni_jax import weights
from omni_jax.buckets import INITIAL_NEW_SLOTS, bucket
from omni_jax.checkpoint.hub import locate
from omni_jax.config import OmniConfig, from_hf, read_json
from omni_jax.errors import check_path
from omni_jax.models.placement import undivided
from omni_jax.parallel.mesh import axis_sizes, make_mesh
from omni_jax.parallel.topology import Topology, topology
from omni_jax.plan.lowering import CompiledProgram, Programs, compile_programs
from omni_jax.plan.workload import Workload

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Plan:
    """What a model needs on a slice.

    Attributes:
        topology: the slice.
        mesh: how its chips are used.
        workload: what the programs are for.
        weights_bytes: bytes of the weights, each counted once over all chips.
        weights: bytes of weights on the fullest chip.
        cache: bytes of caches on the fullest chip.
        temporaries: bytes that the most demanding program adds to weights and caches, on the fullest chip.
        undivided: what the mesh does not divide, so that every chip of an axis holds it.
        compiled: the programs; empty if the weights and caches alone are too large.
    """

    topology: Topology
    mesh: Mesh
    workload: Workload
    weights_bytes: int
    weights: int
    cache: int
    temporaries: int
    undivided: tuple[str, ...]
    compiled: tuple[CompiledProgram, ...]

    @property
    def held(self) -> int:
        """Bytes of the fullest chip."""
        return self.weights + self.cache + self.temporaries

    @property
    def fits(self) -> bool:
        return self.held <= self.topology.chip.limit

    def seconds(self, program: CompiledProgram) -> float | None:
        """An estimate of the least time of a step: its bytes at the chip's bandwidth or its operations at its rate in
        bfloat16, whichever takes longer, plus its collectives at the bandwidth of the links."""
        if program.bytes is None or program.flops is None or program.program is None:
            return None
        chip = self.topology.chip
        talk = sum(each.bytes * each.count for each in program.program.collectives()) / program.entry.steps
        return max(program.bytes / chip.bandwidth, program.flops / chip.rate) + talk / chip.link

    @property
    def buckets(self) -> dict[str, list[int]]:
        """The sizes of this workload's programs: tokens of a prompt, and slots of a cache with its first new ones."""
        sizes = sorted({bucket(tokens) for tokens in range(1, self.workload.context + 1)})
        return {
            "prefill": sizes,
            "decode": [size for size in sizes if size >= min(bucket(1 + INITIAL_NEW_SLOTS), sizes[-1])],
        }

    def json(self) -> dict[str, Any]:
        """The plan for JSON; bytes and operations are of one step, and None if a program is too large to compile."""
        return {
            "fits": self.fits,
            "chips": self.topology.chips,
            "weights_bytes": self.weights_bytes,
            "per_chip": {
                "weights": self.weights,
                "cache": self.cache,
                "temporaries": self.temporaries,
                "limit": self.topology.chip.limit,
            },
            "programs": [
                {
                    "name": each.entry.name,
                    "compile_s": round(each.seconds, 3),
                    "bytes": each.bytes,
                    "least_bytes": each.entry.cost.bytes,
                    "flops": each.flops,
                    "least_flops": each.entry.cost.flops,
                    "temporaries": each.temporaries,
                    "collectives": collectives(each),
                }
                for each in self.compiled
            ],
        }


def collectives(compiled: CompiledProgram) -> list[dict[str, Any]]:
    """The collectives of a step: kind, result on one chip, its bytes, and how often."""
    if compiled.program is None:
        return []
    steps = compiled.entry.steps
    return [
        {"kind": each.kind, "result": each.result, "bytes": each.bytes, "count": round(each.count / steps, 3)}
        for each in compiled.program.collectives()
    ]


def plan(
    model: OmniConfig | str | Path,
    slice_name: str,
    *,
    batch: int = 1,
    context: int | None = None,
    speech: bool = False,
    mesh: str | None = None,
    only: Callable[[str], bool] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Compiles a model's programs for a slice.

    Args:
        model: a configuration, a model's folder or hub id, or a config.json.
        slice_name: such as v5e-1, v6e-8 or v5p-8.
        batch: replies at once; prompts are prefilled one by one, as in a batch job.
        context: tokens of the longest conversation, including the most its reply may have (max_new_tokens); None for
            8,192, or the model's context if that is less.
        speech: whether replies are spoken, with up to ``context`` frames and 41 s more.
        mesh: as in ``Omni.load``, such as ``data=2,model=4``; None for its choice.
        only: selects programs by name; None for all.
        progress: called with programs done, programs in all and the next one's name.

    Raises:
        ValueError: an impossible name, configuration or mesh, or no program of that name; one line says which.
    """
    # Errors are raised before the compiler is asked for its chips.
    where = topology(slice_name)
    config = model if isinstance(model, OmniConfig) else read(model)
    context = min(8192, config.thinker.context) if context is None else context
    workload = Workload(batch=batch, context=context, speech=speech)
    workload.check(config)
    shape = mesh or (slice_name if where.chips > 1 else "data=1")
    kv_heads = config.thinker.decoder.kv_heads
    count = math.prod(axis_sizes(shape, kv_heads=kv_heads).values())
    if count != where.chips:
        raise ValueError(f"mesh: {mesh!r} has {count} devices, and {slice_name} has {where.chips} chips; use them all")
    made = make_mesh(shape, devices=where.devices, kv_heads=kv_heads)
    entries = Programs(config, made, workload)
    found: list[CompiledProgram] = []
    if entries.weights + entries.caches <= where.chip.limit:
        found += compile_programs(entries, only=only, progress=progress)
    temporaries = max((added(each, entries) for each in found), default=0)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(entries.parts))
    return Plan(
        where, made, entries.workload, size, entries.weights, entries.caches, max(0, temporaries),
        tuple(undivided(entries.parts, made)), tuple(found),
    )  # fmt: skip


def added(compiled: CompiledProgram, entries: Programs) -> int:
    """Bytes that a program holds on a chip beside all weights and caches."""
    return compiled.held - compiled.entry.weights - compiled.entry.caches


def read(model: str | Path) -> OmniConfig:
    """The configuration of a folder, a hub id or a config.json."""
    check_path("model", model)
    path = Path(model).expanduser()
    if path.is_file():
        found = read_json(path)
        inner = found.get("config")
        return from_hf(inner if isinstance(inner, Mapping) else found)
    return weights.config_of(locate(model, weights=False))


def write(plan: Plan, path: str | Path) -> None:
    """Writes a plan as JSON."""
    Path(path).write_text(json.dumps(plan.json(), indent=1) + "\n", encoding="utf-8")


def summed(compiled: CompiledProgram) -> dict[str, int]:
    """Bytes of a step's collectives, by kind."""
    total: Counter[str] = Counter()
    for each in collectives(compiled):
        total[each["kind"]] += round(each["bytes"] * each["count"])
    return dict(total)
