"""omni-jax batch in a shell: its output, its files and its errors."""

import json
from functools import partial

import numpy as np
import pytest

from omni_jax import jobs
from omni_jax.jobs import Totals
from tests.jobs.test_jobs import read, user, write
from tests.support.shell_calls import call


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "in.jsonl", *(user(words) for words in ("Hi", "Hey", "Ho")))


def test_batch_prints_and_writes_its_answers(tiny, writer, source, tmp_path, monkeypatch, capsys):
    run = partial(call, monkeypatch, capsys, "batch", source, tmp_path / "out.jsonl", "--model", tiny)
    arguments = ("--no-speech", "--slots", 2, "--max-new-tokens", 24, "--greedy", "--logprobs")
    code, out, err = run(*arguments, "--profile", tmp_path / "trace", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["answered"] == 3
    expected = [
        writer.generate(user(words), thinker_max_new_tokens=24, thinker_do_sample=False)
        for words in ("Hi", "Hey", "Ho")
    ]
    found = read(tmp_path / "out.jsonl")
    assert [line["text"] for line in found] == [reply.text for reply in expected]
    np.testing.assert_allclose(found[0]["logprobs"], expected[0].logprobs, atol=1e-4)
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    code, out, err = run(*arguments)
    assert (code, out) == (0, "")
    assert "3 of 3 lines answered (3 by earlier runs), 0 errors" in err


def test_user_errors_print_one_line(tiny, source, tmp_path, monkeypatch, capsys):
    run = partial(call, monkeypatch, capsys, "batch")
    target = tmp_path / "out.jsonl"
    for words, arguments in {
        "no such file": (tmp_path / "none.jsonl", target, "--model", tiny),
        "Missing option '--model'": (source, target),
        "--speaker: nothing is spoken with --no-speech": (
            source,
            target,
            "--model",
            tiny,
            "--no-speech",
            "--speaker",
            "Ethan",
        ),
        "sound: expected one of wav, flac": (source, target, "--model", tiny, "--sound", "mp3"),
        "speaker: expected one of": (source, target, "--model", tiny, "--speaker", "Nobody"),
    }.items():
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert words in err
        assert err.count("\n") == 1
    assert not target.exists()


def test_a_stopped_command_says_that_it_can_be_resumed(tiny, source, tmp_path, monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    run = partial(call, monkeypatch, capsys, "batch", source, tmp_path / "out.jsonl", "--model", tiny)
    monkeypatch.setattr(jobs, "load", lambda *_, **__: None)
    monkeypatch.setattr(jobs, "run", stopped)
    assert run() == (130, "", "omni-jax: stopped; the same command goes on where it was\n")
    monkeypatch.setattr(jobs, "load", stopped)
    assert run() == (130, "", "omni-jax: stopped\n")


def test_no_local_refuses_local_media_of_lines(monkeypatch, capsys):
    """Options of a line cannot allow local files (end_to_end/test_untrusted_input.py)."""
    asked = []
    monkeypatch.setattr(jobs, "check", lambda *_, **__: None)
    monkeypatch.setattr(jobs, "load", lambda *_, **__: None)
    monkeypatch.setattr(jobs, "run", lambda *_, allow_local, **__: asked.append(allow_local) or Totals(*[0] * 9))
    for flags in ((), ("--no-local",)):
        call(monkeypatch, capsys, "batch", "in.jsonl", "out.jsonl", "--model", "m", *flags)
    assert asked == [True, False]
