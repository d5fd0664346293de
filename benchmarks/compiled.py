"""Full-size programs compiled for a TPU that is not there: time to compile, temporaries, and the largest arrays they name.

    python benchmarks/compiled.py [--topology v6e] [--config CONFIG.json] [--json FILE]

The compiler of libtpu runs on any x86 Linux machine (it comes with the test extra); weights are abstract. What a program holds
beside its arguments and results is read off the executable; how fast it runs is not known from it.
"""

import argparse
import json
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# No TPU is looked for, and another process may be compiling.
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from omni_jax.buckets import CALL_PATCHES, patch_slots
from omni_jax.config import OmniConfig, qwen3_omni
from omni_jax.models import parts

PUBLISHED = Path(__file__).parents[1] / "tests" / "configs" / "qwen3_omni_instruct.json"
FRAMES, SIDE = 32, 448
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}


def vision(config: OmniConfig, patches: int) -> tuple[Callable, tuple[Any, ...]]:
    """A call of the vision encoder."""
    encoder = parts.abstract(config, jnp.bfloat16, speech=False)["vision_encoder"]
    width = config.thinker.vision_encoder.patch_width
    shapes = (
        ((patches, width), encoder.dtype),
        ((patches, 2), jnp.int32),
        ((patches, 2), jnp.int32),
        ((patches,), jnp.int32),
    )
    return lambda encoder, *arrays: encoder.encode(*arrays), (
        encoder,
        *(jax.ShapeDtypeStruct(*shape) for shape in shapes),
    )


def programs(config: OmniConfig) -> dict[str, tuple[Callable, tuple[Any, ...]]]:
    """What is compiled. 32 frames of 448 x 448 are 16 pairs of 784 patches, of which five fill a call."""
    frame = (SIDE // config.thinker.vision_encoder.patch) ** 2
    full = CALL_PATCHES // frame
    return {
        f"vision encoder, {full} of {FRAMES // 2} pairs of {SIDE} x {SIDE}": vision(config, patch_slots(frame * full))
    }


def compiled(function: Callable, arguments: tuple[Any, ...], device: Any) -> dict[str, Any]:
    """Compiles for one device, and reads the executable.

    ``arrays`` are all that the program names, weights apart; not all of them are held, for a fusion makes what it needs.
    """
    placed = SingleDeviceSharding(device)
    put = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), arguments)
    start = time.perf_counter()
    program = jax.jit(function).lower(*put).compile()
    seconds, memory = time.perf_counter() - start, program.memory_analysis()
    weights = {tuple(leaf.shape) for leaf in jax.tree.leaves(arguments)}
    held = {}
    for kind, size in set(re.findall(r"\b(\w+)\[([\d,]+)\]", program.as_text())):
        shape = tuple(int(side) for side in size.split(","))
        if kind in BYTES and shape not in weights:
            held[f"{kind}[{size}]"] = BYTES[kind] * math.prod(shape)
    return {
        "compile_s": seconds,
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "arrays": dict(sorted(held.items(), key=lambda item: -item[1])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v6e", help="v5e, v5p or v6e; one chip (default: %(default)s)")
    parser.add_argument("--config", type=Path, default=PUBLISHED, help="a config.json (default: Qwen3-Omni Instruct)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    published = json.loads(arguments.config.read_text())
    config = qwen3_omni.read(published.get("config", published))
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{arguments.topology}:1x1x1", chips_per_host_bounds=[1, 1, 1]
    )
    found = {name: compiled(*program, topology.devices[0]) for name, program in programs(config).items()}
    for name, program in found.items():
        print(f"{name}: compiled in {program['compile_s']:.0f} s, temporaries {program['temporaries'] / 1e6:.0f} MB")
        for array, size in list(program["arrays"].items())[:5]:
            print(f"    {array:32}{size / 1e6:8.1f} MB")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
