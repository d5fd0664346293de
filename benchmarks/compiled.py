"""Full-size programs compiled for a TPU that is not there: time to compile, temporaries, the largest arrays, bytes moved.

    python benchmarks/compiled.py [--topology v6e] [--config CONFIG.json] [--json FILE]

The compiler of libtpu runs on any x86 Linux machine (it comes with the test extra); weights are abstract. What a program holds
beside its arguments and results is read off the executable; how fast it runs is not known from it. Of programs of speech the
bytes that they move (hlo_bytes.py) stand beside the least: every weight that a frame needs, and the cache, read once a use.
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
from hlo_bytes import Program
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from omni_jax.buckets import CALL_PATCHES, patch_slots
from omni_jax.config import OmniConfig, qwen3_omni
from omni_jax.decoding.sampling import Sampling, SamplingRows
from omni_jax.decoding.speech import CALL_FRAMES, SpeechRows, SpeechState, speak
from omni_jax.layouts import formats
from omni_jax.models import parts

PUBLISHED = Path(__file__).parents[1] / "tests" / "configs" / "qwen3_omni_instruct.json"
FRAMES, SIDE = 32, 448
BATCHES, SLOTS, CANDIDATES = (1, 8), 1024, 64
# What a program says where it talks to its host.
HOST = re.compile(
    r"\b(infeed|outfeed|send|recv)(-done)?\(|xla_(ffi_)?(python|partitioned_python)\w*callback|host_transfer=true"
)
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


def frame(config: OmniConfig, batch: int) -> tuple[Callable, tuple[Any, ...]]:
    """A call of the loop over frames of speech: talker, predictor and the sampling of both."""
    found = parts.abstract(config, jnp.bfloat16)
    talker, predictor = found["talker"], found["code_predictor"]

    def rest():
        rows = SamplingRows.of([Sampling()] * batch, [0] * batch, [SLOTS] * batch)
        state = SpeechState(
            cache=talker.empty_cache(batch, SLOTS),
            frame=jnp.zeros((batch, config.talker.decoder.width), jnp.bfloat16),
            position=jnp.zeros(batch, jnp.float32),
            seen=jnp.zeros((batch, config.talker.vocabulary), bool),
            count=jnp.zeros(batch, jnp.int32),
            finished=jnp.zeros(batch, bool),
        )
        words = jnp.zeros((batch, CALL_FRAMES, config.talker.decoder.width), jnp.bfloat16)
        return state, words, SpeechRows(rows, rows), jnp.int32(CALL_FRAMES)

    def run(state, talker, predictor, *arguments):
        return speak.__wrapped__(talker, predictor, state, *arguments, candidates=(CANDIDATES, CANDIDATES))

    state, *others = jax.eval_shape(rest)
    return run, (state, talker, predictor, *others)


def least_of_frame(config: OmniConfig, batch: int) -> int:
    """Bytes of the weights that a frame needs, once for each pass, and of the cache when it is full.

    A pass of the predictor for each code but the first of a frame: two embeddings in the first one, one in the others. Of the
    talker's experts as many as a batch can choose. Memory beside the processor could hold a part of the predictor between its
    passes; so small a memory is not counted on.
    """
    found = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in _parts_of_frame(config).items()}
    experts = config.talker.decoder.experts
    chosen = min(batch * experts.per_token, experts.count)
    decoder = config.talker.decoder
    cache = 2 * decoder.layers * batch * SLOTS * decoder.kv_heads * decoder.head_width
    weights = found["talker"] + found["experts"] // experts.count * chosen + found["head"]
    return 2 * (weights + (config.talker.codebooks - 1) * found["predictor"] + found["heads"] + cache)


def _parts_of_frame(config: OmniConfig) -> dict[str, Any]:
    found = parts.abstract(config, jnp.bfloat16)
    talker, predictor = found["talker"], found["code_predictor"]
    return {
        "talker": talker.decoder.layers,
        "experts": talker.decoder.experts,
        "head": talker.head,
        "predictor": predictor.decoder.layers,
        "heads": predictor.heads,
    }


def moved(text: str, config: OmniConfig, batch: int) -> int:
    """Bytes that one frame moves: the body of the program's own loop, which runs as often as it is asked to."""
    decoder = config.talker.decoder
    stacks = [leaf.shape for leaf in jax.tree.leaves(_parts_of_frame(config)["experts"])]
    chosen = min(batch * decoder.experts.per_token, decoder.experts.count)
    program = Program(text, {(shape[0] * shape[1], *shape[2:]): chosen for shape in stacks})
    (loop,) = program.loops()
    return program.bytes(loop.attribute("body"))


def programs(config: OmniConfig) -> dict[str, tuple[Callable, tuple[Any, ...]]]:
    """What is compiled. 32 frames of 448 x 448 are 16 pairs of 784 patches, of which five fill a call."""
    frame = (SIDE // config.thinker.vision_encoder.patch) ** 2
    full = CALL_PATCHES // frame
    return {
        f"vision encoder, {full} of {FRAMES // 2} pairs of {SIDE} x {SIDE}": vision(config, patch_slots(frame * full))
    }


def compiled(function: Callable, arguments: tuple[Any, ...], device: Any, *, donate: bool = False) -> dict[str, Any]:
    """Compiles for one device, weights as they lie there, and reads the executable.

    ``arrays`` are all that the program names, weights apart; not all of them are held, for a fusion makes what it needs.
    """
    placed = SingleDeviceSharding(device)
    start = time.perf_counter()
    program = jax.jit(function, donate_argnums=(0,) if donate else ()).lower(*formats(arguments, placed)).compile()
    seconds, memory, text = time.perf_counter() - start, program.memory_analysis(), program.as_text()
    weights = {tuple(leaf.shape) for leaf in jax.tree.leaves(arguments)}
    held = {}
    for kind, size in set(re.findall(r"\b(\w+)\[([\d,]+)\]", text)):
        shape = tuple(int(side) for side in size.split(","))
        if kind in BYTES and shape not in weights:
            held[f"{kind}[{size}]"] = BYTES[kind] * math.prod(shape)
    return {
        "compile_s": seconds,
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "text": text,
        "host_transfers": len(HOST.findall(text)),
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
    for batch in BATCHES:
        program = compiled(*frame(config, batch), topology.devices[0], donate=True)
        least, bytes_moved = least_of_frame(config, batch), moved(program["text"], config, batch)
        found[f"a frame of speech, batch {batch}"] = program | {"least": least, "moved": bytes_moved}
    for name, program in found.items():
        del program["text"]
        print(f"{name}: compiled in {program['compile_s']:.0f} s, temporaries {program['temporaries'] / 1e6:.0f} MB")
        if "moved" in program:
            moves, ratio = program["moved"] / 1e6, program["moved"] / program["least"]
            print(
                f"    moves {moves:,.0f} MB, {ratio:.2f} times the least; host transfers: {program['host_transfers']}"
            )
        for array, size in list(program["arrays"].items())[:5]:
            print(f"    {array:32}{size / 1e6:8.1f} MB")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
