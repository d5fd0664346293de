"""The hosted workflow runs the stages of .ci/run, which together run all tests."""

import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
RUN = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_workflow_runs_every_stage():
    [stages] = re.findall(r"^stages=\((.*)\)$", RUN, re.MULTILINE)
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]["stage"]
    assert job["steps"][-1]["run"] == ".ci/run ${{ matrix.stage }}"
    assert {*job["strategy"]["matrix"]["stage"], "whole"} == set(stages.split())  # whole is test, parity and compile


def test_tests_left_out_of_one_stage_run_in_another():
    [compiled] = re.findall(r"^compiled=\((.*)\)$", RUN, re.MULTILINE)
    assert all((ROOT / path).is_file() for path in compiled.split())
    assert "--ignore=tests/parity " in RUN
    assert "pytest tests/parity;" in RUN


def test_an_unknown_stage_prints_one_line():
    done = subprocess.run([ROOT / ".ci" / "run", "lint", "tests"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "unknown stage tests; expected some of lint docs whole test parity compile newest\n"
