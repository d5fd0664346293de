"""A job on two hosts: two processes of four devices each, stopped in the middle, give the answers of one."""

import json
import os
import runpy
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from jax._src import distributed

from omni_jax import jobs
from omni_jax.parallel import multihost
from tests.support.compiling import flags

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tpu" / "pod_inference.py"
LINES = 8


def user(content):
    return [{"role": "user", "content": content}]


@pytest.fixture
def start(tiny, tmp_path):
    """Starts both processes, each in its own folder; they are ended with the test."""
    started, folders = [], [tmp_path / "host0", tmp_path / "host1"]
    for folder in (*folders, tmp_path / "two"):
        folder.mkdir()

    def begin(source, target, *options):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        environment = os.environ | {
            "XLA_FLAGS": flags(devices=4),
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
        }
        life = [
            subprocess.Popen(
                [
                    sys.executable, SCRIPT, source, target, "--model", tiny, *options,
                    "--coordinator", address, "--processes", "2", "--process", str(number),
                ],
                cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for number, folder in enumerate(folders)
        ]  # fmt: skip
        started.extend(life)
        return life

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def stop(life, there):
    """Stops the second process once a given output is there, as when a machine is preempted; both must end."""
    until = time.monotonic() + 300
    while not there():
        assert all(process.poll() is None for process in life), [process.communicate() for process in life]
        assert time.monotonic() < until
        time.sleep(0.02)
    life[1].terminate()
    said = [process.communicate(timeout=100) for process in life]
    assert [process.returncode for process in life] == [143, 143], said


def test_two_hosts_give_the_answers_of_one(start, omni, tmp_path):
    """They first share one model over the eight devices of both and are stopped in the middle; they resume with one
    model each over its own four. One host lacks one sound file and has another version of a second: both are
    reported."""
    source, target = tmp_path / "in.jsonl", tmp_path / "two" / "answers.jsonl"
    sound = np.random.default_rng(0).normal(size=3200) / 8
    for number, name, samples in ((0, "one.wav", sound), (0, "unlike.wav", sound), (1, "unlike.wav", sound / 2)):
        soundfile.write(tmp_path / f"host{number}" / name, samples, 16_000)
    spoken = [user("Hi"), user("Hey")]
    faults = [*(user([{"type": "audio", "audio": name}]) for name in ("one.wav", "unlike.wav")), "broken"]
    silent = {"return_audio": False, "thinker_max_new_tokens": 20}
    lines = [*spoken, *faults, *({"id": n, "messages": user("Hi" + "!" * n), **silent} for n in range(LINES))]
    source.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    how = ("--slots", "2", "--max-new-tokens", "12", "--greedy", "--max-speech", "0.5", "--json", "--mesh")

    together = start(source, target, *how, "data=2,expert=2,model=2")
    stop(together, lambda: target.exists() and target.read_bytes().count(b"\n") >= 5)
    known = target.read_bytes().split(b"\n")[:-1]
    assert {json.loads(line)["line"] for line in known} >= {1, 2, 3, 4, 5}

    life = start(source, target, *how, "data=2,expert=2")
    first, second = (process.communicate(timeout=300) for process in life)
    assert [process.returncode for process in life] == [0, 0], (first, second)
    totals = json.loads(first[0].splitlines()[-1])
    assert not [line for line in second[0].splitlines() if line.startswith("{")]  # the first process prints the report
    assert (totals["lines"], totals["answered"], totals["faults"]) == (LINES + 5, LINES + 2, 3)
    assert totals["resumed"] >= len(known)
    assert not (tmp_path / "two" / "answers.jsonl.parts").exists()

    greedy = {"thinker_max_new_tokens": 12, "thinker_do_sample": False}
    greedy["talker_max_new_tokens"] = omni.synthesizer.tokens(0.5)
    (tmp_path / "one").mkdir()
    jobs.run(omni, str(source), str(tmp_path / "one" / "answers.jsonl"), slots=2, **greedy)
    found = target.read_bytes().splitlines()
    assert set(known) <= set(found)
    expected = (tmp_path / "one" / "answers.jsonl").read_bytes().splitlines()
    assert found[:2] + found[4:] == expected[:2] + expected[4:]
    for number in (1, 2):
        sounds = [
            soundfile.read(tmp_path / folder / "answers.sound" / f"0000000{number}.wav")[0] for folder in ("two", "one")
        ]
        np.testing.assert_allclose(sounds[0], sounds[1], atol=1e-4)
        assert np.abs(sounds[0]).max() > 1e-2
    lacking, unlike = (json.loads(line)["error"] for line in found[2:4])
    assert "one.wav: no such file" in lacking
    assert lacking.endswith("(on 1 of the 2 hosts that have the model together)")
    assert unlike.startswith("read otherwise on one host than on another")


def test_a_copy_of_the_model_uses_whole_hosts(monkeypatch):
    """Four faked hosts with four devices each."""

    class Device:
        def __init__(self, number):
            self.id, self.process_index = number, number // 4

    devices = [Device(number) for number in range(16)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "local_devices", lambda: devices[8:12])
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    assert [multihost.devices_of_copy(count) for count in (2, 4, 8, 16)] == [
        devices[8:12],
        devices[8:12],
        devices[8:16],
        devices,
    ]
    for count in (6, 12):
        with pytest.raises(
            ValueError, match=f"mesh: {count} devices for each copy of the model, of 4 hosts with 4 each"
        ):
            multihost.devices_of_copy(count)


def test_without_other_hosts_the_script_runs_alone(tmp_path):
    """The same script on one machine, with a user error."""
    run = [sys.executable, SCRIPT, tmp_path / "none.jsonl", tmp_path / "out.jsonl", "--model", "m"]
    ended = subprocess.run(run, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": ""}, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("pod_inference: ")
    assert "no such file" in ended.stderr


def test_options_of_hosts_are_given_together_or_not_at_all():
    pod = runpy.run_path(str(SCRIPT))
    with pytest.raises(ValueError, match="expected --coordinator, --processes and --process together"):
        pod["meet"](None, 2, None)


def test_all_processes_exit_with_the_code_of_the_first(monkeypatch):
    class Store(dict):
        """A stand-in for the coordinator's key-value store."""

        key_value_try_get = dict.__getitem__

        def key_value_set(self, key, value):
            if key in self:
                raise RuntimeError("ALREADY_EXISTS")
            self[key] = value

    def gone(code):
        raise EOFError(code)

    pod, store = runpy.run_path(str(SCRIPT)), Store()
    monkeypatch.setattr(os, "_exit", gone)
    monkeypatch.setattr(distributed.global_state, "client", store)
    monkeypatch.setattr(distributed.global_state, "process_id", 1)
    with pytest.raises(EOFError, match=r"^1$"):
        pod["leave"](1)
    assert not store  # which cannot be used before all processes have connected
    pod["joined"].set()
    for code in (2, 143):
        with pytest.raises(EOFError, match=r"^2$"):
            pod["leave"](code)
    assert (store[pod["ENDED"]], pod["first_code"]()) == ("2", 2)
