"""Loading holds the weights and one layer, never a second copy of a stack; the process' peak is measured (on Linux).

With several processes, each holds its share of the weights and of one layer.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from omni_jax import checkpoint
from omni_jax.testing import tiny_config, write_tiny
from tests.support.hosts import two_processes

ROOT = Path(__file__).resolve().parents[2]
LAYERS, EXPERTS, WIDTH, FFN = 8, 32, 256, 512
LAYER_MB = EXPERTS * 3 * WIDTH * FFN * 4 / 2**20  # 48; the gate_up stack alone is 256 MB, of 388 in all

# The kernel's own figures: getrusage would report the peak of the parent process if that was higher.
SCRIPT = """
import re, sys
from pathlib import Path
import jax
from omni_jax import checkpoint, weights
from omni_jax.config import from_hf

def megabytes(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

folder, warm = sys.argv[1:]
reader = checkpoint if checkpoint.is_converted(folder) else weights
jax.block_until_ready(reader.load(warm, from_hf(warm), dtype="float32"))  # imports and compiles
before = megabytes("VmRSS")
made = jax.block_until_ready(reader.load(folder, from_hf(folder), dtype="float32"))
print(sum(leaf.nbytes for leaf in jax.tree.leaves(made)) / 2**20, megabytes("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    config = tiny_config()
    thinker = config["thinker_config"]
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_experts": EXPERTS, "moe_intermediate_size": FFN}
    thinker["text_config"] |= sizes
    thinker["audio_config"]["output_dim"] = thinker["vision_config"]["out_hidden_size"] = WIDTH
    return write_tiny(tmp_path_factory.mktemp("large"), config=config, speech=False)


@pytest.mark.parametrize("kind", ["published", "converted"])
def test_peak_memory_is_the_weights_and_one_layer(large, tiny, tmp_path, kind):
    folder, warm = large, tiny
    if kind == "converted":
        folder, warm = (checkpoint.convert(path, tmp_path / path.name) for path in (large, tiny))
    # A fixed threshold, or the C library keeps freed layers for later and the peak is its own.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "1000000", "XLA_FLAGS": ""}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder, warm], env=environment, capture_output=True, text=True, check=True
    )
    weights_mb, grown_mb = map(float, run.stdout.split())
    assert weights_mb > 380
    # A layer as read from the file, one as placed, and 64 MB for the rest; a second copy of one stack would add 256.
    assert grown_mb < weights_mb + 2 * LAYER_MB + 64


HOSTS = """
import gc, json, re
from pathlib import Path
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from omni_jax import checkpoint, weights
from omni_jax.config import from_hf
from omni_jax.models import parts

def megabytes(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

def load(folder):
    config = from_hf(folder)
    mesh = jax.make_mesh((8,), ("expert",), axis_types=(AxisType.Auto,))
    where = {
        path: NamedSharding(mesh, PartitionSpec(*([None, "expert"] if ".experts." in path else [])))
        for path in parts.leaves(parts.abstract(config, "float32"))
    }
    reader = checkpoint if checkpoint.is_converted(folder) else weights
    return jax.block_until_ready(reader.load(folder, config, dtype="float32", shardings=where))

report = []
for folder in sys.argv[3:]:
    load(folder)  # imports and compiles
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = megabytes("VmRSS")
    made = load(folder)
    grown = megabytes("VmHWM") - before
    held = {shard.device: 0 for shard in jax.tree.leaves(made)[0].addressable_shards}
    for path, leaf in parts.leaves(made).items():
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes / 2**20
    report.append([grown, list(held.values())])
    del made
print(json.dumps(report))
"""


def test_peak_memory_of_two_hosts_is_a_share_each(large, tmp_path):
    folders = large, checkpoint.convert(large, tmp_path / "converted")
    for process in two_processes(HOSTS, tmp_path, *folders, MALLOC_MMAP_THRESHOLD_="1000000"):
        for grown, held in process:
            assert len(held) == 4
            assert max(held) < 380 / 8 + 16
            assert grown < sum(held) + LAYER_MB + 64
