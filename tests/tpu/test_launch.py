"""Launch scripts of tpu/launch/: linted, with explained variables, and run against a stand-in for Google's cloud."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from omni_jax.cli import terminal
from omni_jax.cli.batch import batch
from omni_jax.errors import RetryableError, UserError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tpu" / "launch"
SCRIPTS = ("jobset.sh", "queued_resources.sh")
JOB = {"MODEL": "gs://b/model", "INPUT": "gs://b/a file.jsonl", "OUTPUT": 'gs://b/say "out".jsonl'}
CLOUD = {**JOB, "PROJECT": "mine", "ZONE": "us-east5-b", "POLL": "0"}
# Records its arguments as JSON; its output and exit code come from a file of answers, one a call.
STAND_IN = f"""#!{sys.executable} -IS
import json, pathlib, sys
here = pathlib.Path(__file__).parent
with open(here / "calls", "a") as calls:
    print(json.dumps([pathlib.Path(__file__).name, *sys.argv[1:]]), file=calls)
"""
GCLOUD = """
answers = (here / "answers").read_text().splitlines()
verb = next(word for word in sys.argv if word in ("list", "create", "describe", "delete", "scp", "ssh"))
if verb == "list" and answers[0] == "blip":
    (here / "answers").write_text("\\n".join(answers[1:]))
    sys.exit("gcloud: the network is unreachable")
elif verb == "list":
    print(answers.pop(0))
elif verb == "ssh" and "pod_inference.py" in " ".join(sys.argv):
    code = int(answers.pop(0))
    (here / "answers").write_text("\\n".join(answers))
    sys.exit(code)
(here / "answers").write_text("\\n".join(answers))
if verb == "delete" and answers == ["stuck"]:
    (here / "answers").write_text("")
    sys.exit(1)
"""
PIP = """
if "wheel" in sys.argv:
    (pathlib.Path(sys.argv[sys.argv.index("--wheel-dir") + 1]) / "omni_jax-1-py3-none-any.whl").touch()
"""


def text(name):
    return (FOLDER / name).read_text(encoding="utf-8")


def variables(script):
    """A script's variables and their defaults; None for one that must be given."""
    found = re.findall(r'"\$\{([A-Z_]+)(:=|:\?)([^}]*)\}"', text(script))
    return {name: default if kind == ":=" else None for name, kind, default in found}


def lint(written, *options):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for command in (["bash", "-n"], [shellcheck, "--severity=style", *options, "-"]):
        done = subprocess.run(command, input=written, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def stand_in(tmp_path):
    """Puts a program of that name first on the PATH; returns the environment and a reader of its calls."""
    folder = tmp_path / "stand-ins"
    folder.mkdir()
    environment = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}

    def make(name, then=""):
        (folder / name).write_text(STAND_IN + then)
        (folder / name).chmod(0o755)

    def calls(name):
        lines = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
        return [call[1:] for call in map(json.loads, lines) if call[0] == name]

    make.environment, make.calls, make.folder = environment, calls, folder
    return make


# --- lint


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_linted(script):
    lint(text(script))
    assert os.access(FOLDER / script, os.X_OK)


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_variable_is_explained_with_its_default(script):
    """Rows of README's tables: those of both scripts, and the script's own."""
    tables = re.findall(r"\| of (both scripts|`[\w.]+`) \|\n\|[-|]+\|\n((?:\|.*\|\n)+)", text("README.md"))
    rows = dict(tables)["both scripts"] + dict(tables)[f"`{script}`"]
    explained = dict(re.findall(r"^\| `([A-Z_]+)` \| (?:`([^`]+)`)? ?\| \S.{10,} \|$", rows, re.MULTILINE))
    assert len(explained) == len(rows.splitlines())
    assert explained == {name: default or "" for name, default in variables(script).items()}


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_required_variables_are_reported(script):
    needed = [name for name, default in variables(script).items() if default is None]
    assert set(JOB) < set(needed)
    for name in needed:
        given = {other: "x" for other in needed if other != name}
        done = subprocess.run(["bash", FOLDER / script], env={"PATH": os.environ["PATH"], **given}, capture_output=True)
        assert done.returncode != 0
        assert f"{name}: expected".encode() in done.stderr


# --- the JobSet


def manifest(**values):
    done = subprocess.run(
        ["bash", FOLDER / "jobset.sh", "--print"], env={"PATH": os.environ["PATH"], "IMAGE": "r/omni", **JOB, **values},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "${" not in done.stdout
    return yaml.safe_load(done.stdout)


def pod(found):
    (job,) = found["spec"]["replicatedJobs"]
    return job["template"]["spec"], job["template"]["spec"]["template"]["spec"]


def test_the_manifest_is_yaml_before_it_is_filled_in():
    raw = yaml.safe_load(text("jobset.yaml"))
    assert (raw["apiVersion"], raw["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    used = set(re.findall(r"\$\{([A-Z_]+)\}", text("jobset.yaml")))
    assert used == set(variables("jobset.sh"))


def test_the_manifest_asks_for_one_whole_slice():
    found = manifest()
    job, inner = pod(found)
    (container,) = inner["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    topology = inner["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert job["parallelism"] == job["completions"] == math.prod(map(int, topology.split("x"))) / chips
    # One node pool is one slice; the annotation counts at the JobSet only.
    annotation = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    assert found["metadata"] == {"name": "omni-jax", "annotations": annotation}
    assert inner["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu-v6e-slice"
    smaller = pod(manifest(TOPOLOGY="2x2", HOSTS="1", NAME="small"))[0]
    assert smaller["parallelism"] == smaller["completions"] == 1


def test_a_lost_host_restarts_the_job_and_a_user_error_does_not():
    found = manifest()
    job, inner = pod(found)
    assert (job["backoffLimit"], inner["restartPolicy"]) == (0, "Never")
    policy = found["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 10
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [
        ("FailJobSet", ["PodFailurePolicy"])
    ]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert policy["rules"][0]["name"] == "user_error"
    assert rule["onExitCodes"]["containerName"] == inner["containers"][0]["name"]

    def code(error):
        def broken():
            raise error

        with pytest.raises(SystemExit) as stop:
            terminal.run(broken, "pod_inference")
        return stop.value.code

    for error in (ValueError("wrong"), UserError("wrong"), PermissionError("not yours"), FileNotFoundError("gone")):
        assert rule["onExitCodes"] | {"values": [code(error)], "operator": "In"} == rule["onExitCodes"]
    for error in (
        ConnectionResetError("reset"),
        TimeoutError("late"),
        OSError(28, "full"),
        RetryableError("no network"),
    ):
        assert code(error) == 1


def parsed(arguments):
    """The arguments as parsed by the job's own command."""
    app = typer.Typer()
    app.command()(batch)
    return typer.main.get_command(app).make_context("batch", arguments).params


def test_the_container_starts_the_job_with_its_options(stand_in):
    container = pod(manifest(OPTIONS="--mesh expert=4 --max-new-tokens 9"))[1]["containers"][0]
    stand_in("python")
    given = {item["name"]: item["value"] for item in container["env"]}
    subprocess.run([*container["command"], *container["args"]], env={**stand_in.environment, **given}, check=True)
    ((script, *arguments),) = stand_in.calls("python")
    assert (ROOT / script).is_file()
    found = parsed(arguments)
    assert {name: found[name] for name in ("source", "target", "model", "slots", "mesh", "max_new_tokens")} == {
        "source": JOB["INPUT"], "target": JOB["OUTPUT"], "model": JOB["MODEL"], "slots": 64, "mesh": "expert=4",
        "max_new_tokens": 9,
    }  # fmt: skip


def test_kubectl_gets_the_manifest(stand_in):
    stand_in("kubectl", '(here / "applied").write_text(sys.stdin.read())')
    environment = {**stand_in.environment, "IMAGE": "r/omni", **JOB}
    subprocess.run(["bash", FOLDER / "jobset.sh"], env=environment, check=True)
    assert stand_in.calls("kubectl") == [["apply", "-f", "-"]]
    assert yaml.safe_load((stand_in.folder / "applied").read_text()) == manifest()
    for given, words, arguments in (
        ({}, "expected nothing, --print or --help, got --show", ["--show"]),
        ({"NAME": "My_job"}, "NAME: expected at most 50 small letters", []),
        ({"HOSTS": "four"}, "HOSTS: expected a whole number of at least 1, got four", []),
        ({"RESTARTS": "-1"}, "RESTARTS: expected a whole number of at least 0, got -1", []),
    ):
        run = ["bash", FOLDER / "jobset.sh", *arguments]
        done = subprocess.run(run, env=environment | given, capture_output=True, text=True)
        assert (done.returncode, len(stand_in.calls("kubectl"))) == (2, 1)
        assert words in done.stderr
    run = ["bash", FOLDER / "jobset.sh"]
    subprocess.run(run, env=environment | {"HF_TOKEN": "hf_x"}, check=True)
    assert sorted(call[0] for call in stand_in.calls("kubectl")[1:]) == ["apply", "apply", "create"]
    assert "hf_x" not in str(stand_in.calls("kubectl"))
    help = subprocess.run(
        [*run, "--help"], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True
    )
    assert help.stdout.startswith("Puts values into jobset.yaml")


def test_the_image_contains_the_containers_command():
    lines = text("Dockerfile").splitlines()
    copied = [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]
    assert {"omni_jax", "pyproject.toml", "tpu/pod_inference.py"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source


# --- queued resources


@pytest.fixture
def queue(stand_in, tmp_path):
    """Runs the script against a cloud that gives these answers: states of the queue, and exit codes of the job."""

    def run(*answers, **values):
        stand_in("gcloud", GCLOUD)
        stand_in("python3", PIP)
        (stand_in.folder / "answers").write_text("\n".join(answers))
        done = subprocess.run(
            ["bash", FOLDER / "queued_resources.sh"], env={**stand_in.environment, **CLOUD, **values},
            capture_output=True, text=True, cwd=tmp_path, timeout=60,
        )  # fmt: skip
        assert (stand_in.folder / "answers").read_text() == ""
        calls = stand_in.calls("gcloud")
        assert all(call[:2] == ["compute", "tpus"] for call in calls)
        assert all({"--project=mine", "--zone=us-east5-b"} <= set(call) for call in calls)
        return done, [call[2:] for call in calls]

    return run


def verbs(calls):
    """The calls without queries of the queue; the job itself is "run"."""
    named = ["run" if call[1] == "ssh" and "pod_inference.py" in str(call) else call[1] for call in calls]
    return [verb for verb in named if verb != "list"]


def test_vms_are_requested_used_and_deleted(queue):
    done, calls = queue("", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "0", "ACTIVE", SPOT="1")
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["create", "scp", "ssh", "run", "delete"]
    create = next(call for call in calls if call[1] == "create")
    assert create[2] == "omni-jax"
    assert {"--node-id=omni-jax", "--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e", "--spot"} <= {
        *create
    }
    copied = next(call for call in calls if call[1] == "scp")
    assert [Path(item).name for item in copied[2:5]] == ["omni_jax-1-py3-none-any.whl", "pod_inference.py", "omni-jax:"]
    assert all("--worker=all" in call for call in calls if call[1] in ("scp", "ssh"))
    assert {"--force", "--quiet"} <= set(calls[-1])
    assert f"wrote {JOB['OUTPUT']}" in done.stderr


def test_the_hosts_start_the_job_with_its_options(queue, tmp_path):
    _, calls = queue("ACTIVE", "0", "ACTIVE", OPTIONS="--no-speech --sound flac", SLOTS="8", HF_TOKEN="hf_x")
    assert not [part for call in calls for part in call if "hf_x" in part]
    assert any(part.endswith("/hf_token") for call in calls for part in call if call[1] == "scp")
    (tmp_path / "hf_token").write_text("hf_x")
    (command,) = [part for call in calls for part in call if part.startswith("--command=") and "pod_inference" in part]
    python = tmp_path / "job" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$$" "$HF_TOKEN" "$@"\n')
    python.chmod(0o755)
    ran = ["bash", "-c", command.removeprefix("--command=")]
    process, token, script, *arguments = subprocess.check_output(ran, cwd=tmp_path, text=True).splitlines()
    assert (tmp_path / "job.pid").read_text().strip() == process
    assert (token, script) == ("hf_x", "pod_inference.py")
    found = parsed(arguments)
    assert {name: found[name] for name in ("source", "target", "model", "slots", "speech", "sound")} == {
        "source": JOB["INPUT"], "target": JOB["OUTPUT"], "model": JOB["MODEL"], "slots": 8, "speech": False,
        "sound": "flac",
    }  # fmt: skip


def test_the_wheel_is_installed_with_its_extra(queue):
    _, calls = queue("ACTIVE", "0", "ACTIVE")
    (install,) = [part for call in calls for part in call if part.startswith("--command=") and "uv venv" in part]
    lint(install.removeprefix("--command="), "--shell=bash")
    assert "'./omni_jax-1-py3-none-any.whl[tpu]' gcsfs" in install


def test_a_failed_status_query_deletes_nothing(queue):
    done, calls = queue("", "WAITING_FOR_RESOURCES", "blip", "blip", "ACTIVE", "0", "blip", "ACTIVE")
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["create", "scp", "ssh", "run", "delete"]
    assert "could not look at the queue (2 of 10 times)" in done.stderr


def test_preempted_vms_are_requested_again(queue):
    done, calls = queue("ACTIVE", "255", "SUSPENDED", "", "ACTIVE", "0", "ACTIVE")
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["scp", "ssh", "run", "delete", "create", "scp", "ssh", "run", "delete"]
    assert "attempt 1 of 10" in done.stderr


def test_the_number_of_attempts_is_bounded(queue):
    done, calls = queue("ACTIVE", "1", "ACTIVE", "1", "ACTIVE", ATTEMPTS="2")
    assert done.returncode == 1
    assert verbs(calls).count("run") == 2
    assert verbs(calls)[-1] == "delete"


def test_a_user_error_is_not_retried(queue):
    done, calls = queue("ACTIVE", "2", "ACTIVE")
    assert done.returncode == 2
    assert verbs(calls) == ["scp", "ssh", "run", "delete"]


def test_a_failed_request_is_printed_and_deleted(queue):
    done, calls = queue("", "FAILED", "FAILED")
    assert done.returncode == 1
    assert verbs(calls) == ["create", "describe", "delete"]


def test_vms_are_kept_on_request(queue):
    done, calls = queue("ACTIVE", "0", KEEP="1")
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["scp", "ssh", "run"]


def test_vms_that_cannot_be_deleted_are_reported(queue):
    done, calls = queue("ACTIVE", "0", "ACTIVE", "stuck")
    assert done.returncode == 0
    assert verbs(calls)[-1] == "delete"
    assert "could not give omni-jax back, and it costs money" in done.stderr
    assert "delete omni-jax --force --project=mine --zone=us-east5-b" in done.stderr
