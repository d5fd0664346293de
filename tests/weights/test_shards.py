"""Shards: each device gets its rectangle of each leaf, and no more is read from the files than the rectangles hold."""

import itertools

import jax
import numpy as np
import pytest
import tensorstore as ts
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omni_jax import checkpoint, weights
from omni_jax.checkpoint import tensors
from omni_jax.config import from_hf
from omni_jax.models import parts
from omni_jax.testing import tiny_config
from omni_jax.weights import layerwise, shards
from omni_jax.weights.safetensors_reader import Safetensors
from omni_jax.weights.table import bind, parse
from tests.support.trees import same

CONFIG = from_hf(tiny_config())
FOUND = layerwise.leaves(parts.abstract(CONFIG, "float32"))


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return checkpoint.convert(tiny, tmp_path_factory.mktemp("converted") / "folder")


@pytest.fixture
def counted(monkeypatch):
    """Bytes of tensors that are read."""
    sizes, read = [], Safetensors.read

    def counting(self, name, spans=None):
        tensor = read(self, name, spans)
        sizes.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(Safetensors, "read", counting)
    return sizes


def along(axis, devices):
    """Shards every possible leaf along one axis of its pieces, counted from the left, over some devices."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("all",))
    cut = {}
    for path, leaf in FOUND.items():
        fits = axis < len(leaf.piece) and leaf.piece[axis] % devices == 0
        spec = [None] * (leaf.stacked + axis) + ["all"] if fits else []
        cut[path] = NamedSharding(mesh, PartitionSpec(*spec))
    return cut


def check(made, loaded, shardings):
    same(made, loaded)
    for path, leaf in parts.leaves(made).items():
        assert leaf.sharding.is_equivalent_to(shardings[path], leaf.ndim), path
        share = shardings[path].shard_shape(leaf.shape)
        assert {shard.data.shape for shard in leaf.addressable_shards} == {share}, path
        assert {shard.device for shard in leaf.addressable_shards} == set(shardings[path].device_set), path


# The largest pieces, those of a 2-D convolution, have four axes.
@pytest.mark.parametrize("axis", range(4))
def test_every_leaf_is_sharded_along_every_axis(tiny, loaded, folder, counted, axis):
    """Each dimension of each pattern; each tensor is read once, whatever is replicated."""
    shardings = along(axis, 4 if axis % 2 else 2)
    check(weights.load(tiny, CONFIG, dtype="float32", shardings=shardings), loaded, shardings)
    assert sum(counted) == sum(leaf.size for leaf in FOUND.values())
    check(checkpoint.load(folder, CONFIG, shardings=shardings), loaded, shardings)


def test_a_large_stack_is_filled_in_place(tiny, loaded, folder, monkeypatch):
    monkeypatch.setattr(layerwise, "SMALL_BYTES", 1 << 16)
    assert sum(leaf.stacked and leaf.size > 1 << 16 for leaf in FOUND.values()) > 3
    mesh = jax.make_mesh((2, 4), ("data", "expert"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    where = NamedSharding(mesh, PartitionSpec(None, "expert"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    shardings = {path: where if ".experts." in path else everywhere for path in FOUND}
    check(weights.load(tiny, CONFIG, dtype="float32", shardings=shardings), loaded, shardings)
    check(checkpoint.load(folder, CONFIG, shardings=shardings), loaded, shardings)


def test_layers_may_be_sharded_too(tiny, loaded):
    mesh = jax.make_mesh((2, 4), ("data", "expert"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    where = NamedSharding(mesh, PartitionSpec("data", "expert"))
    path = "thinker.decoder.experts.down"
    made = weights.load(tiny, CONFIG, dtype="float32", speech=False, shardings={path: where})
    found = parts.leaves(made)[path]
    np.testing.assert_array_equal(found, parts.leaves(loaded)[path])
    assert found.sharding.is_equivalent_to(where, 4)


@pytest.mark.parametrize(
    ("pattern", "shape", "tensors"),
    [
        ("p f d -> (p f) d", (12, 2), {"x.a": (4, 2), "x.b": (4, 2), "x.c": (4, 2)}),
        ("p d f -> d (p f)", (2, 12), {"x.a": (2, 4), "x.b": (2, 4), "x.c": (2, 4)}),
        ("p (f g) d -> f (p g) d", (2, 12, 2), {"x.a": (8, 2), "x.b": (8, 2), "x.c": (8, 2)}),
    ],
)
def test_any_rectangle_of_any_pattern_is_read(pattern, shape, tensors):
    """Also rectangles of joined axes that are no rectangles of the single axes."""
    rows = parse(f"leaf | x.{{p:a,b,c}} | {pattern}")
    bound, faults = bind(rows, {"leaf": shape})
    assert not faults
    drawn = {
        name: np.random.default_rng(size).standard_normal(shape) for size, (name, shape) in enumerate(tensors.items())
    }

    class Tensors:
        def read(self, name, spans=None):
            if spans is None:
                return drawn[name]
            return drawn[name][np.ix_(*[np.concatenate([np.arange(*span) for span in axis]) for axis in spans])]

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    leaf = layerwise.Leaf(shape=shape, stacked=False, dtype=np.dtype(np.float64))
    source = layerwise.Published(
        tensors=Tensors(), bindings=bound, names={name: name for name in drawn}, leaves={"leaf": leaf}, dtype=leaf.dtype
    )
    group = layerwise.Group(part="x", layer=None, paths=("leaf",))
    ((_, everything),) = source.read(group)
    ends = [list(itertools.combinations(range(size + 1), 2)) for size in shape]
    wanted = list(itertools.product(*ends))
    ((_, found),) = source.blocks(group, {"leaf": wanted})
    for block, values in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(values, everything[shards.slices(block)])


def test_pieces_are_written_in_chunks_that_devices_read(folder):
    """A device's experts and heads are separate chunks, so that it does not decode those of other devices."""
    chunks = {}
    for path in ("thinker.decoder.experts.down", "thinker.decoder.layers.attention.k.kernel"):
        spec = tensors._spec((folder / "weights" / "thinker.002").as_uri() + "/", path)
        chunks[path] = ts.open(spec).result().chunk_layout.read_chunk.shape
    assert list(chunks.values()) == [(1, 32, 64), (64, 1, 16)]
