"""Conversions that are stopped, killed or run twice at once resume, and are never complete when half written."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import orbax.checkpoint as ocp
import pytest

from omni_jax import checkpoint, weights
from omni_jax.checkpoint.tensors import quiet
from omni_jax.config import from_hf
from omni_jax.locks import only_writer
from omni_jax.testing import tiny_config, write_tiny
from tests.support.refused_folders import refuses
from tests.support.trees import same

CONFIG = from_hf(tiny_config())
ROOT = Path(__file__).resolve().parents[2]


def stop_at(monkeypatch, count, error):
    """Makes writing the given group raise."""
    written, write = [], checkpoint.write_group

    def stopping(held, where, leaves):
        if len(written) == count:
            raise error
        written.append(where.name)
        write(held, where, leaves)

    monkeypatch.setattr(checkpoint, "write_group", stopping)
    return written


def test_a_stopped_conversion_resumes(tiny, loaded, tmp_path, monkeypatch):
    target = tmp_path / "target"
    first = stop_at(monkeypatch, 5, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        checkpoint.convert(tiny, target)
    assert checkpoint.is_converted(target)
    refuses(target, "was not finished; run it again")
    monkeypatch.undo()
    second = stop_at(monkeypatch, -1, None)
    checkpoint.convert(tiny, target)
    assert len(first) == 5
    assert not set(first) & set(second)
    same(checkpoint.load(target, CONFIG), loaded)


@pytest.mark.parametrize("change", ["source", "dtype"])
def test_pieces_of_another_source_or_dtype_are_not_kept(tiny, tmp_path, monkeypatch, change):
    target = tmp_path / "target"
    source = write_tiny(tmp_path / "other", seed=1) if change == "source" else tiny
    stop_at(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        checkpoint.convert(source, target, dtype="bfloat16" if change == "dtype" else None)
    assert len(list((target / "weights").iterdir())) == 3
    stop_at(monkeypatch, 0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        checkpoint.convert(tiny, target)
    assert list((target / "weights").iterdir()) == []
    assert not (target / "weights.stale").exists()


def test_a_full_disk_raises_one_line_and_loses_nothing(tiny, loaded, tmp_path, monkeypatch):
    write = ocp.Checkpointer.save

    def full(self, where, *args, **options):
        if where.name == "thinker.001":
            where.with_name(f"{where.name}.orbax-checkpoint-tmp").mkdir()  # what Orbax leaves behind
            raise OSError(28, "No space left on device")
        return write(self, where, *args, **options)

    monkeypatch.setattr(ocp.Checkpointer, "save", full)
    with pytest.raises(
        OSError, match=r"thinker\.001: cannot be written .the disk is full.*finished pieces are kept"
    ) as caught:
        checkpoint.convert(tiny, tmp_path / "target")
    assert caught.value.errno == 28
    refuses(tmp_path / "target", "was not finished")
    monkeypatch.undo()
    checkpoint.convert(tiny, tmp_path / "target")
    same(checkpoint.load(tmp_path / "target", CONFIG), loaded)
    assert not list((tmp_path / "target").rglob("*tmp*"))


def test_missing_disk_space_is_reported_before_writing(tiny, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match="are needed"):
        checkpoint.convert(tiny, tmp_path / "target")


KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
from omni_jax import checkpoint

source, target, moment = sys.argv[1:]
die = lambda: os.kill(os.getpid(), signal.SIGKILL)

def watch():
    while not list((Path(target) / "weights").glob("thinker.*orbax-checkpoint-tmp*")):
        time.sleep(0.0005)
    die()

if moment == "while a piece is written":
    threading.Thread(target=watch, daemon=True).start()
elif moment == "before the manifest":
    Path.rename = lambda self, to: die() if to.name == "omni_jax.json" else os.rename(self, to)
calls = []

def progress(*call):
    calls.append(call)
    if moment == "after the third piece" and len(calls) == 3:
        die()

checkpoint.convert(source, target, progress=progress)
"""


def test_a_conversion_killed_at_any_moment_is_incomplete_and_resumes(tiny, loaded, tmp_path):
    """A killed conversion never counts as complete, and the next run completes it."""
    moments = ("after the third piece", "while a piece is written", "before the manifest")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    runs = {
        moment: subprocess.Popen(
            [sys.executable, "-c", KILLED, tiny, tmp_path / moment, moment], env=environment, stderr=subprocess.PIPE
        )
        for moment in moments
    }
    for moment, run in runs.items():
        _, errors = run.communicate()
        assert run.returncode == -9, errors.decode()
        refuses(tmp_path / moment, "was not finished; run it again")
        checkpoint.convert(tiny, tmp_path / moment)
        same(checkpoint.load(tmp_path / moment, CONFIG), loaded)


def test_two_conversions_at_once_leave_a_whole_folder(tiny, loaded, tmp_path):
    """Processes that begin together: one writes, another says so or finds it finished, and nothing broken counts as whole."""
    command = [sys.executable, "-c", "import sys; from omni_jax import checkpoint; checkpoint.convert(*sys.argv[1:])"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    target = tmp_path / "target"
    runs = [
        subprocess.Popen([*command, tiny, target], env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = [run.communicate()[1] for run in runs]
    assert 0 in [run.returncode for run in runs]
    for run, errors in zip(runs, said, strict=True):
        assert run.returncode == 0 or "another process is writing there" in errors
    same(checkpoint.load(target, CONFIG), loaded)
    assert not list(target.glob(".*"))


@pytest.mark.parametrize("write", [checkpoint.convert, weights.save])
def test_a_folder_that_is_being_written_is_left_alone(tiny, loaded, converted, tmp_path, write):
    target = tmp_path / "target"
    with (
        only_writer(target),
        pytest.raises(ValueError, match=rf"^{re.escape(str(target))}: another process is writing there; [^\n]+$"),
    ):
        write(tiny, target) if write is checkpoint.convert else write(loaded, target, tiny_config())
    assert list(target.iterdir()) == []
    with only_writer(target):
        pass


def test_a_file_system_without_locks_warns(tmp_path, monkeypatch):
    def none(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserWarning, match="no locks"), only_writer(tmp_path / "folder"):
        pass


def test_a_group_changed_by_another_process_makes_the_checkpoint_incomplete(tiny, loaded, tmp_path, monkeypatch):
    """Where a file system has no locks: the manifest has the sizes that were written, not those that were found."""
    target, write = tmp_path / "target", checkpoint.write_group

    def meddled(held, where, leaves):
        write(held, where, leaves)
        if where.name == "thinker.002":
            shutil.rmtree(where.with_name("thinker.001"))

    monkeypatch.setattr(checkpoint, "write_group", meddled)
    with pytest.raises(OSError, match=r"thinker\.001 changed while the others were written"):
        checkpoint.convert(tiny, target)
    refuses(target, "was not finished")
    monkeypatch.undo()
    checkpoint.convert(tiny, target)
    same(checkpoint.load(target, CONFIG), loaded)


def test_the_same_command_repairs_a_finished_folder(tiny, copy, loaded, monkeypatch):
    shutil.rmtree(copy / "weights" / "thinker.001")
    (copy / "weights" / "thinker.002" / "_METADATA").write_bytes(b"")
    (copy / "vocab.json").unlink()
    (copy / "generation_config.json").write_text("{}")  # a user's own file, which is kept
    refuses(copy, "pieces are gone, truncated or changed")
    written = stop_at(monkeypatch, -1, None)
    checkpoint.convert(tiny, copy)
    assert sorted(written) == ["thinker.001", "thinker.002"]
    same(checkpoint.load(copy, CONFIG), loaded)
    checkpoint.convert(tiny, copy)
    assert len(written) == 2
    assert (copy / "vocab.json").exists()


def test_writes_that_end_after_an_error_print_nothing(monkeypatch):
    """With a full disk, TensorStore's threads find Orbax's event loop closed, also after the error was reported."""
    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: said.append(str(unraisable.exc_value)))
    before = sys.unraisablehook
    with quiet():
        pass
    assert sys.unraisablehook is before
    with pytest.raises(OSError, match="full"), quiet():
        raise OSError("full")
    for error in (RuntimeError("Event loop is closed"), RuntimeError("another"), ValueError("Event loop is closed")):
        sys.unraisablehook(SimpleNamespace(exc_value=error))
    assert said == ["another", "Event loop is closed"]


def test_a_json_file_without_disk_space_names_its_path(tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=r"omni_jax.json: cannot be written \(No space left on device\); make room"
    ) as caught:
        weights.write_json(tmp_path / "omni_jax.json", {})
    assert caught.value.errno == 28
    assert list(tmp_path.iterdir()) == []
