"""Lines with errors are tried again on request, and errors of a network or a store stop no line for good."""

import json
import os
from functools import partial

import fsspec
import numpy as np
import pytest
import soundfile

from omni_jax import jobs
from omni_jax.errors import RetryableError
from omni_jax.processing.media import audio
from tests.jobs.test_jobs import GREEDY, read, user, write


def test_lines_with_errors_are_retried_on_request(writer, tmp_path):
    path = tmp_path / "late.wav"
    source = write(tmp_path / "in.jsonl", user("Hi"), user([{"type": "audio", "audio": str(path)}]))
    run = partial(jobs.run, writer, source, str(tmp_path / "out.jsonl"), slots=2, **GREEDY)
    assert run().faults == 1
    soundfile.write(path, np.zeros(1600, np.float32), 16_000)
    assert run().faults == 1
    totals = run(retry=True)
    assert (totals.faults, totals.resumed) == (0, 1)
    assert [line["line"] for line in read(tmp_path / "out.jsonl")] == [1, 2]


def test_a_line_whose_medium_cannot_be_fetched_is_kept_for_a_retry(writer, tmp_path, monkeypatch):
    """It stops neither the other lines nor the job, and nothing of it is lost."""

    def unfetched(*_, **__):
        raise RetryableError("https://example.org/a.wav: no connection to its host (Connection refused)")

    source = write(tmp_path / "in.jsonl", user([{"type": "audio", "audio": "https://example.org/a.wav"}]), user("Hi"))
    run = partial(jobs.run, writer, source, str(tmp_path / "out.jsonl"), slots=2, **GREEDY)
    with monkeypatch.context() as patch:
        patch.setattr(audio, "load", unfetched)
        totals = run()
    assert (totals.answered, totals.faults) == (1, 1)
    fault, answer = read(tmp_path / "out.jsonl")
    assert (
        fault["error"] == "message 0, part 0: https://example.org/a.wav: no connection to its host (Connection refused)"
    )
    assert answer["text"]
    monkeypatch.setattr(audio, "load", lambda *_, **__: np.zeros(1600, np.float32))
    totals = run(retry=True)
    assert (totals.answered, totals.faults, totals.resumed) == (2, 0, 1)


def test_an_input_that_breaks_off_stops_the_job_which_then_resumes(writer, monkeypatch):
    """A store that fails while lines are read is no user error, and no line that was answered is lost."""
    files, name = fsspec.filesystem("memory"), f"memory://{os.urandom(6).hex()}"
    lines = "".join(json.dumps(user(words)) + "\n" for words in ("Hi", "Hey", "Ho", "Ha"))
    files.pipe_file(f"{name}/in.jsonl", lines.encode())
    run = partial(jobs.run, writer, f"{name}/in.jsonl", f"{name}/out.jsonl", slots=1, window=1, **GREEDY)
    opened, really = [], jobs.lines_of

    def breaking(source):
        opened.append(source)
        yield from (pair for pair in really(source) if len(opened) != 3 or pair[0] < 3)
        if len(opened) == 3:  # after the checks of the arguments and of the lines that are there
            raise RetryableError(f"{source}: cannot be read (reset by peer)")

    monkeypatch.setattr(jobs, "lines_of", breaking)
    with pytest.raises(RetryableError, match=r"in.jsonl: cannot be read \(reset by peer\)$"):
        run()
    totals = run()
    assert (totals.answered, totals.faults) == (4, 0)
    assert totals.resumed >= 1
