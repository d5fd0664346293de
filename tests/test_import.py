"""An import of the library changes nothing of the process and prints nothing; neither does a plan, once it is made."""

import json
import os
import subprocess
import sys
import warnings

import pytest

from omni_jax import environment
from tests.support.hosts import ROOT

# The libraries that ours imports are imported first: what they change is theirs.
PROGRAM = """
import importlib, json, logging, os, pkgutil, signal, sys, warnings
from omni_jax.processing import transformers_classes
import aiohttp, av, fsspec, huggingface_hub, jax, orbax.checkpoint, PIL.Image, rich, soundfile, tensorstore, typer
from flax import nnx
from jax.experimental import multihost_utils, topologies


def state():
    return {
        "environment": dict(os.environ),
        "filters": [repr(each) for each in warnings.filters],
        "showwarning": repr(warnings.showwarning),
        "jax": {name: repr(value) for name, value in jax.config.values.items()},
        "hooks": repr([sys.excepthook, sys.unraisablehook, sys.displayhook, signal.getsignal(signal.SIGTERM)]),
        "logging": [logging.root.level, repr(logging.root.handlers), logging.root.manager.disable],
        "pictures": PIL.Image.MAX_IMAGE_PIXELS,
        "recursion": sys.getrecursionlimit(),
    }


before = state()
import omni_jax
names = [found.name for found in pkgutil.walk_packages(omni_jax.__path__, "omni_jax.")]
for name in names:
    importlib.import_module(name)
after = state()
changed = {key: [before[key], after[key]] for key in before if before[key] != after[key]}
print(json.dumps([changed, len(names), jax._src.xla_bridge.backends_are_initialized()]))
"""


def python(program, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    environment.pop("TRANSFORMERS_NO_ADVISORY_WARNINGS", None)
    run = [sys.executable, "-W", "default::UserWarning", "-c", program]
    return subprocess.run(run, env=environment, capture_output=True, text=True, check=False)


def test_importing_every_module_changes_nothing_of_the_process():
    ran = python(PROGRAM)
    assert ran.returncode == 0, ran.stderr[-2000:]
    changed, modules, devices = json.loads(ran.stdout)
    assert changed == {}
    assert modules > 100
    assert not devices  # they are asked for by the first call that needs them


def test_an_import_prints_nothing_and_sets_no_variable():
    """Also where torch is not installed: Transformers prints advice to install it."""
    program = "import os; before = dict(os.environ); import omni_jax.cli.main; assert os.environ == before"
    ran = python(program)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_variables_are_restored(monkeypatch):
    monkeypatch.setenv("OMNI_JAX_A", "a")
    monkeypatch.delenv("OMNI_JAX_B", raising=False)
    before = dict(os.environ)

    def fail():
        with environment.variables({"OMNI_JAX_A": "1", "OMNI_JAX_B": "2"}):
            assert (os.environ["OMNI_JAX_A"], os.environ["OMNI_JAX_B"]) == ("1", "2")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert dict(os.environ) == before
    with environment.variables({"OMNI_JAX_A": "1", "OMNI_JAX_B": "2"}, replace=False):
        assert (os.environ["OMNI_JAX_A"], os.environ["OMNI_JAX_B"]) == ("a", "2")
    assert dict(os.environ) == before


def test_a_warning_has_the_place_of_the_users_call(tmp_path, monkeypatch):
    """However deep in the package it is raised, and through a context manager too."""
    from omni_jax import locks

    monkeypatch.setattr(locks, "hold", lambda *_: False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with locks.only_writer(tmp_path):
            pass
        environment.warn("here")
    assert [warning.filename for warning in caught] == [__file__, __file__]
