"""Two processes over localhost: each reads and writes only what its own four devices hold."""

import re

import jax
import pytest

from omni_jax import checkpoint
from omni_jax.config import from_hf
from tests.support.hosts import two_processes
from tests.support.trees import same

SCRIPT = """
import json, sys
from pathlib import Path

import jax
import numpy as np
import tensorstore as ts
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from omni_jax import checkpoint, weights
from omni_jax.config import from_hf
from omni_jax.models import parts
from omni_jax.weights import shards, layerwise
from omni_jax.weights.safetensors_reader import Safetensors

published, converted, saved = (Path(folder) for folder in sys.argv[3:])
config = from_hf(published)
leaves = layerwise.leaves(parts.abstract(config, "float32"))
whole = jax.tree.map(np.asarray, parts.leaves(weights.load(published, config, dtype="float32")))
layerwise.SMALL_BYTES = 1 << 17  # some stacks are larger and filled in place


def placed(mesh, across):
    # Experts over `across`; the rest over all devices, along the last axis that they divide.
    found = {}
    for path, leaf in leaves.items():
        spec = [None] * len(leaf.shape)
        if ".experts." in path:
            spec[1] = across
        elif fits := [axis for axis in range(leaf.stacked, len(spec)) if leaf.shape[axis] % 8 == 0]:
            spec[fits[-1]] = mesh.axis_names
        found[path] = NamedSharding(mesh, PartitionSpec(*spec))
    return found


def share(shardings):
    size = 0
    for path, leaf in leaves.items():
        where = shards.of_layer(shardings[path]) if leaf.stacked else shardings[path]
        layers = leaf.shape[0] if leaf.stacked else 1
        size += layers * sum(np.prod([stop - start for start, stop in block]) * 4 for block in shards.held(where, leaf.piece))
    return int(size)


def check(made, shardings):
    for path, leaf in parts.leaves(made).items():
        assert leaf.sharding.is_equivalent_to(shardings[path], leaf.ndim), path
        assert not leaf.is_fully_addressable, path
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[path][shard.index], err_msg=path)


counted, read = [], Safetensors.read


def counting(self, name, spans=None):
    tensor = read(self, name, spans)
    counted.append(tensor.nbytes)
    return tensor


Safetensors.read = counting
mesh = jax.make_mesh((2, 4), ("expert", "model"), axis_types=(AxisType.Auto,) * 2)
shardings = placed(mesh, "expert")
made = weights.load(published, config, dtype="float32", shardings=shardings)
check(made, shardings)
checkpoint.save(made, saved, files_from=published)

refused = ""
try:
    checkpoint.save(made, saved, files_from=published)
except (ValueError, OSError) as error:
    refused = f"{type(error).__name__}: {error}"

other = placed(jax.make_mesh((8,), ("expert",), axis_types=(AxisType.Auto,)), "expert")
from_disk = "/tensorstore/kvstore/file/bytes_read"
count = lambda: ts.experimental_collect_matching_metrics(from_disk)[0]["values"][0]["value"]
before = count()
for folder in (converted, saved):
    check(checkpoint.load(folder, config, shardings=other), other)
facts = {"read": sum(counted), "share": share(shardings), "refused": refused}
facts["disk"] = count() - before
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def job(tiny, tmp_path_factory):
    """What each of the two processes reports, and the folder that they saved."""
    folder = tmp_path_factory.mktemp("hosts")
    converted, saved = checkpoint.convert(tiny, folder / "converted"), folder / "saved"
    reports = two_processes(SCRIPT, folder, tiny, converted, saved)
    return reports, converted, saved


def test_each_host_reads_only_what_its_devices_hold(job, loaded):
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))
    for report in job[0]:
        assert report["read"] == report["share"]
        assert report["share"] < 0.55 * total


def test_each_host_reads_only_the_chunks_of_converted_pieces_that_it_needs(job):
    """Two loads, with the indices; the tiny model's small leaves are one chunk each, at full size none is over 4 MB."""
    reports, converted, saved = job
    held = sum(file.stat().st_size for folder in (converted, saved) for file in (folder / "weights").rglob("d/*"))
    for report in reports:
        assert report["disk"] < 0.8 * held


def test_a_checkpoint_saved_by_two_hosts_is_read_by_one(job, loaded):
    *_, saved = job
    same(checkpoint.load(saved, from_hf(saved)), loaded)


def test_an_error_on_the_first_host_stops_both(job):
    first, second = (report["refused"] for report in job[0])
    assert re.match("ValueError: .*already holds a converted checkpoint", first)
    assert second.startswith("UserError: the first process could not write")
