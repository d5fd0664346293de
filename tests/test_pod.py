"""A job on two hosts: two real processes of four devices each, killed in the middle, answer what one process answers."""

import json
import os
import runpy
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from omni_jax import jobs

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tpu" / "pod_inference.py"
LINES = 8


def user(words):
    return [{"role": "user", "content": words}]


@pytest.fixture
def start(tiny, tmp_path):
    """Starts both processes of a life; they are gone when the test ends."""
    started = []

    def begin(source, target, *options):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        environment = os.environ | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
        }
        life = [
            subprocess.Popen(
                [
                    sys.executable, SCRIPT, source, target, "--model", tiny, "--no-speech", "--slots", "2", *options,
                    "--coordinator", address, "--processes", "2", "--process", str(number),
                ],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for number in range(2)
        ]  # fmt: skip
        started.extend(life)
        return life

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_two_hosts_answer_what_one_does(start, writer, tmp_path):
    """With the model over the four devices of each. Both are killed as soon as something is answered, and go on."""
    source, how = tmp_path / "in.jsonl", ("--max-new-tokens", "20", "--greedy")
    lines = [json.dumps({"id": n, "messages": user("Hi" + "!" * n)}) for n in range(LINES)]
    source.write_text("\n".join([*lines[:3], "broken", *lines[3:]]) + "\n")
    parts = [tmp_path / "two.jsonl.parts" / f"0000{number}-of-00002.jsonl" for number in range(2)]
    life, until = start(source, tmp_path / "two.jsonl", *how, "--mesh", "data=2,expert=2"), time.monotonic() + 300
    while not any(part.exists() and part.stat().st_size for part in parts):
        assert all(process.poll() is None for process in life), [process.communicate() for process in life]
        assert time.monotonic() < until
        time.sleep(0.02)
    for process in life:
        process.kill()
    known = [part.read_bytes() for part in parts]
    for process in life:
        process.wait()
    assert not (tmp_path / "two.jsonl").exists()

    first, second = (
        process.communicate(timeout=300)
        for process in start(source, tmp_path / "two.jsonl", *how, "--mesh", "data=2,expert=2", "--json")
    )
    totals = json.loads(first[0].splitlines()[-1])
    assert not [line for line in second[0].splitlines() if line.startswith("{")]  # the first one reports
    assert (totals["lines"], totals["answered"], totals["faults"]) == (LINES + 1, LINES, 1)
    assert totals["resumed"] >= sum(part.count(b"\n") for part in known) > 0
    assert not parts[0].parent.exists()

    greedy = {"thinker_max_new_tokens": 20, "thinker_do_sample": False}
    jobs.run(writer, str(source), str(tmp_path / "one.jsonl"), slots=2, **greedy)
    found = (tmp_path / "two.jsonl").read_bytes()
    assert found == (tmp_path / "one.jsonl").read_bytes()
    assert all(line in found.splitlines() for part in known for line in part.split(b"\n")[:-1])


def test_without_other_hosts_it_is_alone(tmp_path):
    """The same script on one machine, and what it says of a mistake."""
    run = [sys.executable, SCRIPT, tmp_path / "none.jsonl", tmp_path / "out.jsonl", "--model", "m"]
    ended = subprocess.run(run, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": ""}, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("pod_inference: ")
    assert "no such file" in ended.stderr


def test_hosts_are_told_wholly_or_not_at_all():
    pod = runpy.run_path(str(SCRIPT))
    with pytest.raises(ValueError, match="expected --coordinator, --processes and --process together"):
        pod["meet"](None, 2, None)
