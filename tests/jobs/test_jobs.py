"""Batch jobs: each line is answered as it would be alone, and a stopped job resumes."""

import json
import os
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import soundfile
from jax.errors import JaxRuntimeError

from omni_jax import Omni, jobs
from omni_jax.decoding import slots
from omni_jax.decoding.sampling import Sampling
from omni_jax.engine import continuous, encode
from omni_jax.engine.continuous import Item, _Ahead, answers
from omni_jax.errors import RetryableError
from omni_jax.jobs.output import JobOutput
from omni_jax.parallel.multihost import HostGroup
from omni_jax.processing.options import MediaOptions
from omni_jax.speech.stream import SpeechStream
from omni_jax.testing import tiny_qwen2_5_config, write_tiny

HOW = {"thinker_max_new_tokens": 24, "thinker_eos_token_id": -1}
GREEDY = {**HOW, "thinker_do_sample": False}


def user(words):
    return [{"role": "user", "content": words}]


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def full(*_, **__):
    """A stand-in for a device call that runs out of memory."""
    raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "in.jsonl", *(user(words) for words in ("Hi", "Hey", "Ho")))


# --- answers and errors of lines


def test_lines_are_answered_as_they_would_be_alone(writer, tmp_path):
    """Conversations as lists and as objects, greedy and sampled, more of them than slots."""
    own = [{"seed": n, "thinker_temperature": 1.5, "thinker_top_k": 50} if n % 2 else {"seed": n} for n in range(5)]
    own[4]["seed"] = None  # as if it were not there
    lines = [{"id": f"n{n}", "messages": user("Hi" + "!" * n), **how} for n, how in enumerate(own)]
    source = write(tmp_path / "in.jsonl", user("Hello"), *lines)
    totals = jobs.run(writer, source, str(tmp_path / "out.jsonl"), slots=2, **GREEDY)
    found = read(tmp_path / "out.jsonl")
    assert [line["line"] for line in found] == [1, 2, 3, 4, 5, 6]
    assert "id" not in found[0]
    for line, answer, how in zip([{"messages": user("Hello")}, *lines], found, [{}, *own], strict=True):
        drawn = {} if "thinker_temperature" in how else {"thinker_do_sample": False}
        how = {name: value for name, value in how.items() if value is not None}
        expected = writer.generate(line["messages"], **HOW, **drawn, **how)
        assert (answer["text"], answer["tokens"]) == (expected.text, expected.tokens)
        assert (answer.get("id"), answer["finish_reason"]) == (line.get("id"), "length")
        assert "logprobs" not in answer
        assert "speech" not in answer
    assert (totals.lines, totals.answered, totals.faults, totals.resumed, totals.tokens) == (6, 6, 0, 0, 144)
    assert totals.tokens_per_second > 0


BROKEN = {
    "expected JSON": "{broken",
    "expected a list of messages, or an object": "7",
    "got only text": {"text": "Hi"},
    "got messages of type int": {"messages": 3},
    "unknown option thinker": {"messages": user("Hi"), "thinker": {"temperature": 1}},
    "unknown option allow_private": {"messages": user("Hi"), "allow_private": True},
    "unknown option given": {"messages": user("Hi"), "given": [1]},
    "got an empty object": {},
    "did you mean thinker_max_new_tokens? expected messages": {"messages": user("Hi"), "max_new_tokens": 3},
    "did you mean max_pixels? expected": {"messages": user("Hi"), "max_pixel": 3},
    "template: expected an object": {"messages": user("Hi"), "template": 3},
    "speaker: expected the name of one speaker": {"messages": user("Hi"), "speaker": ["Ethan"]},
    "seed: expected a whole number from 0": {"messages": user("Hi"), "seed": -1},
    "seed: expected a whole number from 0 to": {"messages": user("Hi"), "seed": 2**70},
    "thinker_temperature: expected": {"messages": user("Hi"), "thinker_temperature": -1},
    "no such file": user([{"type": "audio", "audio": "nowhere.wav"}]),
    "return_audio=True, but": {"messages": user("Hi"), "return_audio": True},
    "the prompt has": user("Hi " * 5000),
}


def test_a_bad_line_gives_an_error_line_and_does_not_stop_the_job(writer, tmp_path):
    source = write(tmp_path / "in.jsonl", user("Hi"), *BROKEN.values(), user("Hey"))
    said = []
    totals = jobs.run(
        writer, source, str(tmp_path / "out.jsonl"), slots=2, progress=lambda *now: said.append(now), **GREEDY
    )
    found = read(tmp_path / "out.jsonl")
    assert [line["line"] for line in found] == list(range(1, len(BROKEN) + 3))
    for words, line in zip(BROKEN, found[1:-1], strict=True):
        assert line.keys() == {"line", "error", "of"}
        assert words in line["error"]
        assert "\n" not in line["error"]
    assert found[0]["text"]
    assert found[-1]["text"]
    assert (totals.answered, totals.faults) == (2, len(BROKEN))
    assert said[-1][:2] == (len(BROKEN) + 2,) * 2
    assert re.fullmatch(r"\d+\.\d tokens/s", said[-1][2])


def test_an_error_line_has_the_id_of_its_input(writer, tmp_path):
    """Also an id that is half a surrogate pair, which UTF-8 cannot encode."""
    names = [{"n": 1}, "\ud800"]
    source = write(tmp_path / "in.jsonl", *({"id": name, "messages": []} for name in names))
    jobs.run(writer, source, str(tmp_path / "out.jsonl"))
    lines = read(tmp_path / "out.jsonl")
    assert [line["id"] for line in lines] == names
    assert all(line["error"] for line in lines)


def test_out_of_memory_is_reported_as_the_error_of_its_line(writer, tmp_path, monkeypatch):
    """Memory runs out in the prefill of a prompt, or where the cache of all slots grows for it."""
    embed, resized = encode.embed, slots._resized

    def unless(too_much, call):
        def tried(*given, **how):
            if too_much(*given, **how):
                full()
            return call(*given, **how)

        return tried

    monkeypatch.setattr(encode, "embed", unless(lambda parts, placed, config: placed.batch.tokens[0, 0] == 7, embed))
    monkeypatch.setattr(slots, "_resized", unless(lambda cache, slots: slots > 64, resized))
    monkeypatch.setattr(jobs, "answers", lambda omni, items, **how: answers(omni, map(marked, items), **how))

    def marked(item):
        if item.key[0] == 2:
            item.batch.tokens[0, 0] = 7
        return item

    long = {"messages": user("Ho"), "thinker_max_new_tokens": 100}
    source = write(tmp_path / "in.jsonl", user("Hi"), user("Hey"), long, user("Hi!"))
    totals = jobs.run(writer, source, str(tmp_path / "out.jsonl"), slots=2, **GREEDY)
    found = read(tmp_path / "out.jsonl")
    assert (totals.answered, totals.faults) == (2, 2)
    for line in found[1:3]:
        assert re.match(
            r"too much for the device's memory: a prompt of \d+ tokens, beside a cache for 2 slots", line["error"]
        )
    for line, words in ((found[0], "Hi"), (found[3], "Hi!")):
        assert line["tokens"] == writer.generate(user(words), **GREEDY).tokens


def test_speech_out_of_memory_is_retried_in_halves(monkeypatch):
    rows = [SimpleNamespace(item=Item(key, None), draft=SimpleNamespace(tokens=[7] * key)) for key in (1, 2, 3, 4)]
    tried = []

    def spoken(omni, rows):
        tried.append([row.item.key for row in rows])
        return full() if len(rows) > 2 or tried[-1] == [4] else [(key, "a reply") for key in tried[-1]]

    monkeypatch.setattr(continuous, "_spoken", spoken)
    said = dict(continuous._told(None, rows, True))
    assert tried == [[1, 2, 3, 4], [1, 2], [3, 4]]
    assert set(said.values()) == {"a reply"}
    ((_, fault),) = continuous._told(None, rows[3:], True)
    assert fault.startswith("too much for the device's memory: the speech of 4 tokens")
    with pytest.raises(JaxRuntimeError):  # other hosts share the model and do not know of the failure
        continuous._told(None, rows, False)


def test_errors_are_written_window_by_window(writer):
    """Also where no line gives an answer."""
    items = (Item(number, None, "a fault") for number in range(30))
    said = [len(done) for done in answers(writer, items, slots=2, window=4)]
    assert sum(said) == 30
    assert max(said) <= 4


# --- resuming


def test_a_stopped_job_resumes(writer, source, tmp_path):
    path = tmp_path / "out.jsonl"
    jobs.run(writer, source, str(path), slots=2, **GREEDY)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(lines[2] + lines[0] + lines[1][:20])
    totals = jobs.run(writer, source, str(path), slots=2, **GREEDY)
    assert path.read_bytes() == whole
    assert (totals.lines, totals.resumed) == (3, 2)
    totals = jobs.run(writer, source, str(path), slots=2, **GREEDY)  # nothing to do
    assert path.read_bytes() == whole
    assert (totals.lines, totals.resumed, totals.tokens, totals.tokens_per_second) == (3, 3, 72, 0)


def test_finished_lines_are_kept_when_the_job_fails(writer, source, tmp_path, monkeypatch):
    """The thread that reads ahead ends too, though a reference to it remains."""
    kept = []

    class Kept(_Ahead):
        def __init__(self, *given):
            super().__init__(*given)
            kept.append(self)

    monkeypatch.setattr(continuous, "_Ahead", Kept)

    def stop(done, total, name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run(writer, source, str(tmp_path / "out.jsonl"), slots=1, progress=stop, **GREEDY)
    assert len(read(tmp_path / "out.jsonl")) == 1
    assert jobs.run(writer, source, str(tmp_path / "out.jsonl"), slots=1, **GREEDY).resumed == 1
    for ahead in kept:
        (thread,) = ahead.thread._threads
        thread.join(10)
        assert not thread.is_alive()
    assert len(kept) == 2


def test_a_changed_input_is_refused(writer, source, tmp_path):
    target = str(tmp_path / "out.jsonl")
    jobs.run(writer, source, target, slots=2, **GREEDY)
    write(tmp_path / "in.jsonl", user("Hi"), user("Other"), user("Ho"))
    with pytest.raises(ValueError, match="its line 2 answers another one"):
        jobs.run(writer, source, target)
    write(tmp_path / "in.jsonl", user("Hi"))
    with pytest.raises(ValueError, match=r"answers line 2, which .* does not have"):
        jobs.run(writer, source, target)


def test_resuming_with_other_options_is_refused(writer, source, tmp_path, monkeypatch):
    target = str(tmp_path / "out.jsonl")
    run = partial(jobs.run, writer, source, target)
    run(slots=2, seed=3, thinker=Sampling(max_new_tokens=2, do_sample=False))
    how = {"thinker_max_new_tokens": 2, "thinker_do_sample": False, "seed": 3}
    run(slots=1, window=3, logprobs=True, media=MediaOptions(allow_private=True), **how)  # the same options
    with pytest.raises(
        ValueError, match=r'with seed 3 \(now not given\), sound "wav" \(now "flac"\), thinker_.* 2 \(now 9\)'
    ):
        run(sound="flac", thinker_max_new_tokens=9, thinker_do_sample=False)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "config", replace(writer.config, im_end=7))
        with pytest.raises(ValueError, match="was answered with another model; give another name for the output"):
            run(**how)
    (tmp_path / "out.how.json").unlink()
    assert run(thinker_max_new_tokens=9).resumed == 3  # an older job has no note


def test_user_errors_are_reported_before_the_first_line(writer, source, tmp_path):
    run = partial(jobs.run, writer, source, str(tmp_path / "out.jsonl"))
    for words, how in {
        "sound: expected one of wav, flac": {"sound": "mp3"},
        "slots, window": {"slots": 0},
        "slots, window: expected at least 1": {"window": 0},
        "unknown option max_new_tokens; did you mean thinker_max_new_tokens": {"max_new_tokens": 1},
        "speaker: nothing is spoken": {"speaker": "Ethan"},
        "unknown option given": {"given": [1]},
    }.items():
        with pytest.raises(ValueError, match=words):
            run(**how)
    with pytest.raises(ValueError, match="plain text"):
        jobs.run(writer, source, str(tmp_path / "out.jsonl.gz"))
    assert not (tmp_path / "out.jsonl").exists()


def test_a_job_runs_on_an_object_store(writer, source, monkeypatch):
    """Once it has begun, lost rights are no user error; and lines are flushed as time passes."""
    write, written = JobOutput.write, []
    name = f"memory://{os.urandom(6).hex()}"
    files = fsspec.filesystem("memory")
    files.put_file(source, f"{name}/in.jsonl")
    run = partial(jobs.run, writer, f"{name}/in.jsonl", f"{name}/out.jsonl", slots=2, **GREEDY)

    def expired(output, lines):
        raise PermissionError("the token has expired")

    monkeypatch.setattr(JobOutput, "write", expired)
    with pytest.raises(RetryableError, match="the token has expired"):
        run()
    monkeypatch.setattr(JobOutput, "write", lambda output, lines: write(output, written.append(lines) or lines))
    run()
    assert [] in written
    found = [json.loads(line) for line in files.cat_file(f"{name}/out.jsonl").splitlines()]
    assert [line["line"] for line in found] == [1, 2, 3]
    assert found[0]["tokens"] == writer.generate(user("Hi"), **GREEDY).tokens
    assert files.ls(name, detail=False) == [
        f"/{name.removeprefix('memory://')}/{file}" for file in ("in.jsonl", "out.how.json", "out.jsonl")
    ]


def test_lines_are_read_ahead_and_sorted_alternately_up_and_down():
    class Long(Item):
        length = property(lambda self: self.key)

    ahead = _Ahead((Long(key, None) for key in (5, 1, 3, 9, 2, 4, 8, 7, 6)), 3, 4, HostGroup())
    assert [ahead.next_item(wait=True).key for _ in range(9)] == [1, 3, 5, 9, 8, 4, 2, 6, 7]
    assert not ahead.exhausted
    assert ahead.next_item(wait=True) is None
    assert ahead.exhausted
    ahead.close()


# --- speech


@pytest.fixture(scope="module")
def qwen2_5(tmp_path_factory):
    return Omni.load(write_tiny(tmp_path_factory.mktemp("qwen2_5"), config=tiny_qwen2_5_config()))


@pytest.mark.parametrize("name", ["omni", "qwen2_5"])
def test_spoken_answers_equal_those_of_generate(name, request, tmp_path, monkeypatch):
    """A line with sound and one without, with other voices and seeds; rows of a batch equal their single runs
    (end_to_end/test_speaks.py, end_to_end/test_qwen2_5_omni.py). One failure of the device does not change them."""
    model, told, advance = request.getfixturevalue(name), continuous._spoken, SpeechStream.advance

    def fail_once(omni, rows):
        monkeypatch.setattr(SpeechStream, "advance", full)
        with pytest.raises(JaxRuntimeError):
            told(omni, rows)
        monkeypatch.setattr(SpeechStream, "advance", advance)
        return told(omni, rows)

    monkeypatch.setattr(continuous, "_spoken", fail_once)
    recording = tmp_path / "noise.wav"
    soundfile.write(recording, np.random.default_rng(0).normal(size=3200) / 8, 16_000)
    system = [{"role": "system", "content": model.synthesizer.system}] if model.synthesizer.system else []
    content = [[{"type": "audio", "audio": str(recording)}], "Hi"]
    conversations = [[*system, {"role": "user", "content": part}] for part in content]
    own, how = (
        {"seed": [3, 0], "speaker": [model.speakers[1], model.speakers[0]]},
        {**GREEDY, "talker_max_new_tokens": 25},
    )
    lines = [
        {"messages": conversation, "seed": seed, "speaker": speaker}
        for conversation, seed, speaker in zip(conversations, own["seed"], own["speaker"], strict=True)
    ]
    jobs.run(model, write(tmp_path / "in.jsonl", *lines), str(tmp_path / "out.jsonl"), slots=2, sound="flac", **how)
    for expected, answer in zip(
        model.generate_batch(conversations, **own, **how), read(tmp_path / "out.jsonl"), strict=True
    ):
        assert answer["tokens"] == expected.tokens
        speech = answer["speech"]
        assert speech["file"] == f"out.sound/{answer['line']:08d}.flac"
        assert (speech["frames"], speech["finish_reason"]) == (expected.codes.shape[1], expected.speech_finish_reason)
        samples, rate = soundfile.read(tmp_path / speech["file"], dtype="float32")
        assert rate == speech["sample_rate"] == 24_000
        assert speech["seconds"] == round(len(expected.audio) / 24_000, 3)
        np.testing.assert_allclose(samples, expected.audio, atol=1e-4)
        assert np.abs(expected.audio).max() > 1e-2
