"""The benchmark of scaling: a device's share of a single device's work, on a mesh over each axis."""

import importlib.util
import json
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "scaling.py"


@pytest.fixture(scope="module")
def scaling():
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XLA_FLAGS", "")  # it sets its own flags, and the tests have theirs
        patched.setenv("JAX_PLATFORMS", "cpu")
        spec = importlib.util.spec_from_file_location("scaling", PROGRAM)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def test_meshes_have_one_or_two_axes(scaling):
    assert scaling.sized("data", 8) == "data=8"
    assert [scaling.sized("data,model", devices) for devices in (1, 2, 4, 8)] == [
        "data=1,model=1", "data=2,model=1", "data=2,model=2", "data=4,model=2",
    ]  # fmt: skip


def test_work_per_device_falls_as_the_axes_divide_it(scaling):
    config = scaling.middle_config(experts=True)
    one = scaling.measure(config, "data=1", tokens=64)
    for mesh, devices in (("data=2,model=4", 8), ("data=4,expert=2", 8)):
        own = scaling.measure(config, mesh, tokens=64)
        for name in ("prefill", "decode"):
            share, should = own[name].flops / one[name].flops, own[name].ideal / one[name].ideal
            assert 1 / devices <= should < 0.2
            assert should * 0.8 < share < should * 2, (mesh, name)
        assert own["prefill"].bytes < one["prefill"].bytes / 2


def test_a_row_of_the_table_is_formatted(scaling):
    row = {
        "model": "dense", "mesh": "data=8", "devices": 8, "program": "decode", "flops": 2_000_000, "bytes": 5, "ideal": 1.0,
        "flops_of_one": 0.13, "ideal_of_one": 0.125, "bytes_of_one": 0.2,
    }  # fmt: skip
    assert "0.130 of one (should be 0.125)" in scaling.line(json.loads(json.dumps(row)))
