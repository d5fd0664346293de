"""Converting a scaled-down folder of the published structure needs a share of its size in memory and survives a kill.

The folder has 315 MB in 15 files, 48 layers of 128 experts and 20 more in the talker, as the 70 GB of Qwen3-Omni.
16 GB of memory for 70 GB correspond to 72 MB here. Memory that does not grow with the folder counts in them too.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from omni_jax import checkpoint, weights
from omni_jax.config import from_hf
from omni_jax.testing import tiny_config, write_tiny
from omni_jax.weights import layerwise

ROOT = Path(__file__).resolve().parents[2]
WIDTH, FFN = 128, 64
ALLOWED = 16 / 70

SCRIPT = """
import json, os, re, signal, sys
from pathlib import Path
from omni_jax import checkpoint

def memory(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

warm, source, target, until = sys.argv[1:]
checkpoint.convert(warm, target + ".warm" + until)  # imports, and starts what stays
before, calls = memory("VmRSS"), []

def progress(done, total, name):
    calls.append(name)
    if done > float(until) * total:
        print(json.dumps([memory("VmHWM") - before, len(calls)]), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.convert(source, target, progress=progress)
print(json.dumps([memory("VmHWM") - before, len(calls)]))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    config = tiny_config()
    thinker, talker = config["thinker_config"], config["talker_config"]
    layers = {"hidden_size": WIDTH, "num_hidden_layers": 48, "num_experts": 128, "moe_intermediate_size": FFN}
    thinker["text_config"] |= layers
    thinker["audio_config"] |= {"output_dim": WIDTH, "encoder_layers": 32}
    thinker["vision_config"] |= {"out_hidden_size": WIDTH, "depth": 27, "deepstack_visual_indexes": [8, 16, 24]}
    talker["text_config"] |= {"num_hidden_layers": 20, "num_experts": 128}
    talker["thinker_hidden_size"] = WIDTH
    return write_tiny(tmp_path_factory.mktemp("published"), config=config, dtype="bfloat16", shards=15)


def test_converting_needs_a_fraction_of_the_folders_size_and_a_kill_loses_little(published, tiny, tmp_path):
    files = list(published.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    assert len(files) == 15
    assert size > 3e8
    target = tmp_path / "converted"
    # A fixed threshold, or the C library keeps freed layers for later; those of full size it never keeps.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "1000000", "XLA_FLAGS": ""}

    def run(until):
        command = [sys.executable, "-c", SCRIPT, tiny, published, target, str(until)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout, done.stderr
        return done.returncode, *json.loads(done.stdout)

    code, peak, _ = run(0.5)
    assert code == -signal.SIGKILL
    assert peak < ALLOWED * size
    kept = {path: path.stat().st_mtime_ns for path in (target / "weights").iterdir() if "tmp" not in path.name}
    assert len(kept) > 30
    code, peak, groups = run(2)
    assert code == 0
    assert peak < ALLOWED * size
    held = list((target / "weights").iterdir())
    assert groups == len(held) > 48 + 20 + 32 + 27
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    config = from_hf(published)
    ours, _ = checkpoint.converted(target, config)
    theirs, _ = weights.published(published, config)
    for group in (
        group for group in layerwise.groups(theirs.leaves) if group.layer in (0, 47) and group.part == "thinker"
    ):
        for (path, left), (_, right) in zip(ours.read(group), theirs.read(group), strict=True):
            np.testing.assert_array_equal(left.view(np.uint16), right.view(np.uint16), err_msg=path)
