"""Work per device on 1, 2, 4 and 8 devices: compiled multiplications and bytes, not seconds.

    python benchmarks/scaling.py [--json FILE]

A thinker of middle size, dense or with experts, on fake devices of this machine's CPU: a prefill and a decode step are
compiled for each mesh and counted from their HLO (omni_jax/plan/hlo.py). The table shows a device's share of the work
of a single device, and the share of multiplications that it should have: attention, dense networks and vocabulary
divide over ``data`` and ``model``, experts over all axes. Bytes fall less, because every device reads what the devices
share the work of. The CPU's loop over experts counts as often as a device's own experts are chosen, with tokens spread
evenly.
"""

import argparse
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}

import jax
import jax.numpy as jnp

from omni_jax.config import OmniConfig, from_hf
from omni_jax.models.thinker import Embedded
from omni_jax.parallel.mesh import make_mesh
from omni_jax.plan.hlo import HloProgram
from omni_jax.plan.lower_bound import size
from omni_jax.plan.lowering import Programs
from omni_jax.plan.workload import Workload
from omni_jax.testing import tiny_config

BATCH, TOKENS = 16, 256
WHAT = ("flops", "ideal", "bytes")
MESHES = ("data", "expert", "model", "data,expert", "data,model", "expert,model")


@dataclass(frozen=True)
class Work:
    """The work of one device, and how many operations it should do."""

    flops: int
    bytes: int
    ideal: float


def middle_config(*, experts: bool) -> OmniConfig:
    """Six layers of 512 with 8 key heads, which eight devices divide; 32 experts, or a network of the size of four."""
    config = from_hf(tiny_config())
    found = config.thinker.decoder
    assert found.experts is not None
    mixture = replace(found.experts, count=32, per_token=4, ffn_width=256) if experts else None
    decoder = replace(
        found, layers=6, width=512, heads=16, kv_heads=8, head_width=32, ffn_width=0 if experts else 1024, experts=mixture,
        mrope_section=(8, 4, 4),
    )  # fmt: skip
    return replace(config, thinker=replace(config.thinker, decoder=decoder, vocabulary=4096))


def sized(axes: str, devices: int) -> str:
    """A mesh of so many devices over one axis, or over two as evenly as they divide."""
    names = axes.split(",")
    first = devices if len(names) == 1 else 1 << math.ceil(math.log2(devices) / 2)
    sizes = (first, devices // first)
    return ",".join(f"{name}={size}" for name, size in zip(names, sizes, strict=False))


def measure(config: OmniConfig, mesh: str, *, batch: int = BATCH, tokens: int = TOKENS) -> dict[str, Work]:
    """The work of a device in a prefill and in a decode step of a batch."""
    placed = make_mesh(mesh, devices=jax.devices())
    entries = Programs(config, placed, Workload(batch=batch, context=tokens, dtype=jnp.float32))
    thinker, cache = entries.parts.thinker, entries.cache

    def array(*shape: int, dtype: Any = jnp.int32) -> Any:
        return entries.array(shape, dtype)

    prompt = Embedded(entries.array((batch, tokens, config.thinker.decoder.width), jnp.float32, ("batch", None, None)))
    place = array(3, batch, tokens, dtype=jnp.float32)
    prefill = jax.jit(lambda thinker, *given: thinker.prefill(*given, fresh=True), donate_argnums=4)
    step = jax.jit(lambda thinker, *given: thinker.step(*given), donate_argnums=4)
    lowered = {
        "prefill": (prefill.lower(thinker, prompt, place, array(batch), cache), batch * tokens),
        "decode": (step.lower(thinker, array(batch), array(3, batch, dtype=jnp.float32), array(batch), cache), batch),
    }
    found = {}
    for name, (program, rows) in lowered.items():
        read = HloProgram(program.compile().as_text(), runs=chosen(thinker, rows))
        pairs = rows * (tokens + 1) / 2 if name == "prefill" else rows * cache.slots
        found[name] = Work(read.flops(), read.bytes(), ideal(thinker, rows, batch, pairs, placed.shape))
    return found


def ideal(thinker: Any, tokens: int, rows: int, pairs: float, mesh: Any) -> float:
    """Operations of a device: for ``tokens``, for the logits of ``rows``, and for ``pairs`` of a query and a key that
    it attends to."""
    decoder, config = thinker.decoder, thinker.decoder.config
    dense = 2 * (size(decoder.layers) * tokens + size(thinker.head) * rows)
    dense += 4 * config.layers * config.heads * config.head_width * pairs
    mixed = (
        2 * size(decoder.experts) * tokens * config.experts.per_token / config.experts.count if config.experts else 0
    )
    return dense / (mesh["data"] * mesh["model"]) + mixed / math.prod(mesh.values())


def chosen(thinker: Any, tokens: int) -> int:
    """How many of a device's experts are chosen in a layer."""
    experts, config = thinker.decoder.experts, thinker.decoder.config.experts
    if experts is None:
        return 1
    own = experts.down.sharding.shard_shape(experts.down.shape)[1]
    return max(1, min(tokens * config.per_token, config.count) * own // config.count)


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    share = "{flops_of_one:6.3f} of one (should be {ideal_of_one:5.3f}), bytes {bytes_of_one:5.3f} of one"
    return (
        "{model:8}{mesh:20}{program:9}".format(**row)
        + f"{row['flops'] / 1e6:9,.0f} M operations,"
        + share.format(**row)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    rows = []
    for kind in ("experts", "dense"):
        config, one = middle_config(experts=kind == "experts"), None
        for axes in MESHES:
            if kind == "dense" and "expert" in axes:
                continue
            for devices in (1, 2, 4, 8):
                if devices == 1 and one:
                    continue
                work = measure(config, sized(axes, devices))
                one = one or work
                for name, own in work.items():
                    row = {"model": kind, "mesh": sized(axes, devices), "devices": devices, "program": name} | asdict(
                        own
                    )
                    rows.append(row | {f"{what}_of_one": row[what] / getattr(one[name], what) for what in WHAT})
                    print(line(rows[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
