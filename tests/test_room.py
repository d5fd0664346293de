"""The needs of a model and the available memory: impossible models are refused, doubtful ones give a warning."""

import sys
import traceback
import warnings
import weakref
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax import Omni, room
from omni_jax.config import from_hf
from omni_jax.models import parts
from omni_jax.models.placement import shardings
from omni_jax.parallel.mesh import make_mesh
from omni_jax.plan import read


def chip(total, used=0, kind="TPU v5 lite"):
    stats = {"bytes_limit": total, "bytes_in_use": used}
    return SimpleNamespace(platform="tpu", device_kind=kind, memory_stats=lambda: stats)


@pytest.fixture
def tree(tiny):
    return parts.abstract(from_hf(tiny), jnp.float32)


@pytest.fixture
def needed(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_a_model_that_fits_raises_and_warns_nothing(tree, needed):
    room.ensure_memory("tiny", tree, [chip(needed)])
    room.ensure_memory("tiny", tree, [SimpleNamespace(platform="tpu", memory_stats=lambda: None)])  # no report


def test_a_model_that_no_chip_holds_is_refused(tree, needed):
    with pytest.raises(
        ValueError, match=r"tiny: .* MB of weights, and TPU v5 lite has .* of memory; take a smaller"
    ) as said:
        room.ensure_memory("tiny", tree, [chip(needed - 1)])
    assert len(str(said.value)) < 500


def test_memory_in_use_gives_a_warning(tree, needed):
    with pytest.warns(UserWarning, match=r"tiny: .* of it free; another model, or another process, holds it"):
        room.ensure_memory("tiny", tree, [chip(2 * needed, used=needed + 1)])


def test_a_mesh_holds_a_share_on_each_device(tree, needed):
    """The fullest device decides; experts and heads are sharded, replicated weights are not."""
    placed = shardings(tree, make_mesh("expert=2,model=2"))
    held = sum(
        np.prod(placed[path].shard_shape(leaf.shape), dtype=int) * leaf.dtype.itemsize
        for path, leaf in room.param_paths.leaves(tree).items()
    )
    assert needed / 4 < held < needed
    room.ensure_memory("tiny", tree, 4 * [chip(held)], placed)
    with pytest.raises(ValueError, match="of weights, and TPU v5 lite has"):
        room.ensure_memory("tiny", tree, [*3 * [chip(needed)], chip(held - 1)], placed)


@pytest.mark.parametrize("limit", ["max", "2048000"])
def test_a_cpu_has_the_memory_of_its_host_or_container(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(room, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("48000\n")
    room.MEMINFO.write_text("MemTotal: 3000 kB\nMemAvailable: 2500 kB\nSwapTotal: 100 kB\nSwapFree: 50 kB\n")
    whole = room.Memory(place="this host", total=3100 * 1024, free=2550 * 1024)
    small = room.Memory(place="this host", total=2_048_000, free=2_000_000)
    assert room.host() == (whole if limit == "max" else small)
    room.MEMINFO.write_text("something else")
    assert room.host() is None


def test_look_reports_a_published_model_before_its_download(monkeypatch):
    """Weights of Qwen2.5-Omni-3B in bfloat16, its vocoder in float32, on the chip of Colab's notebook."""
    monkeypatch.setattr(room.weights, "config_of", lambda folder: read("tests/configs/qwen2_5_omni_3b.json"))
    monkeypatch.setattr(room, "locate", lambda model, weights: model)
    monkeypatch.setattr(jax, "local_devices", lambda: [chip(16_900_000_000, used=900_000_000)])
    said = room.look("Qwen/Qwen2.5-Omni-3B", dtype="bfloat16")
    assert said.startswith(
        "Qwen/Qwen2.5-Omni-3B: 11.97 GB of weights in bfloat16, TPU v5 lite has 16.00 GB of 16.90 GB free, this host has "
    )


def test_forget_releases_all_arrays_of_a_model(tiny, monkeypatch):
    """Its arrays are freed although its programs were compiled and the session keeps the traceback of a failed call."""
    omni = Omni.load(tiny, speech=False)
    omni.logits(np.zeros((1, 4), int))
    with pytest.raises(ValueError, match="expected a list of messages") as failed:
        omni.generate(5)
    failed = failed.value.__traceback__
    assert any(frame.f_locals.get("conversation") == 5 for frame, _ in traceback.walk_tb(failed))  # as a debugger does
    monkeypatch.setattr(sys, "last_traceback", failed, raising=False)
    arrays = [weakref.ref(leaf) for leaf in jax.tree.leaves(omni.parts)]
    assert len(arrays) > 50
    del omni
    room.forget()
    assert not [array for array in arrays if array() is not None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        room.forget()  # nothing to forget
