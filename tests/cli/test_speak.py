"""Speech in the shell: into files, and streamed to players."""

import io
import json
import os
import sys
from functools import partial

import numpy as np
import pytest
import soundfile

from omni_jax import Omni, Reply, Sampling
from omni_jax.engine.options import RequestOptions
from omni_jax.engine.reply import Event
from omni_jax.processing.conversation import SPOKEN_SYSTEM
from omni_jax.speech.qwen3_omni import Qwen3Synthesizer
from tests.support.shell_calls import call

SHORT = ("--max-new-tokens", "24", "--greedy")  # the shapes of other tests, so that programs are shared
BRIEF = ("--max-speech", "0.5", "--talker-greedy")  # seven frames
SPOKEN = {"talker_max_new_tokens": 8, "talker_do_sample": False}  # the same


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs omni-jax in this process: exit code, standard output, standard error."""
    return partial(call, monkeypatch, capsys)


@pytest.fixture
def play(monkeypatch, capsysbinary):
    """Runs omni-jax in this process: exit code, standard output and standard error, both in bytes."""
    return partial(call, monkeypatch, capsysbinary)


def user(words):
    return [{"role": "user", "content": [{"type": "text", "text": words}]}]


def pcm(sound):
    """16-bit samples of a file or of bytes, at 24 kHz."""
    samples, rate = soundfile.read(io.BytesIO(sound) if isinstance(sound, bytes) else sound, dtype="int16")
    assert rate == 24_000
    return samples


def same(sound, audio):
    """Whether 16-bit samples equal ``audio`` within one step, because streams round differently."""
    return len(sound) == len(audio) > 0 and np.abs(sound - audio * 32767.0).max() <= 1


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_generate_writes_the_spoken_answer(run, tiny, omni, tmp_path, kind):
    expected = omni.generate(user("Hi"), speaker="aiden", thinker_max_new_tokens=24, **SPOKEN)
    path = tmp_path / f"a.{kind}"
    code, out, err = run("generate", tiny, "Hi", "--speak", path, "--speaker", "Aiden", *SHORT, *BRIEF)
    assert (code, out, err) == (0, expected.text + "\n", f"wrote {path}: 0.5 s\n")
    assert same(pcm(path), expected.audio)
    assert not same(pcm(path), omni.generate(user("Hi"), speaker="ethan", thinker_max_new_tokens=24, **SPOKEN).audio)


def test_json_names_the_sound_file(run, tiny, tmp_path):
    path = tmp_path / "a.wav"
    code, out, _ = run("generate", tiny, "Hi", "--json", "--speak", path, *SHORT, *BRIEF)
    assert code == 0
    reply = json.loads(out)
    assert reply["speech"] == {"file": str(path), "seconds": 0.537, "frames": 7, "sample_rate": 24_000}
    assert not reply.keys() & {"codes", "audio", "sample_rate"}


def test_sound_goes_to_stdout_and_text_to_stderr(play, tiny, omni):
    expected = omni.generate(user("Hi"), thinker_max_new_tokens=24, **SPOKEN)
    for more in ([], ["--stream"]):
        code, out, err = play("generate", tiny, "Hi", "--speak", "-", *more, *SHORT, *BRIEF)
        assert (code, err.decode()) == (0, expected.text + "\n")
        assert same(pcm(out), expected.audio)
    code, out, err = play("generate", tiny, "Hi", "--speak", "-", "--json", *SHORT, *BRIEF)
    assert (code, json.loads(err)["text"], json.loads(err)["speech"]["file"]) == (0, expected.text, "-")
    assert same(pcm(out), expected.audio)


def test_speak_writes_a_given_text(run, tiny, omni, tmp_path, monkeypatch):
    expected = omni.speak("Good morning", speaker="chelsie", seed=3, talker_max_new_tokens=8)
    path, options = tmp_path / "a.flac", ("--speaker", "chelsie", "--seed", 3, "--max-speech", 0.5)
    assert run("speak", tiny, "Good morning", "-o", path, *options) == (0, "", f"wrote {path}: 0.5 s\n")
    assert same(pcm(path), expected.audio)
    path.unlink()
    monkeypatch.setattr(sys, "stdin", io.StringIO("Good morning\n"))
    assert run("speak", tiny, "-", "--output", path, *options)[0] == 0
    assert same(pcm(path), expected.audio)


def test_speak_writes_sound_to_stdout(play, tiny, omni):
    expected = omni.speak("Good morning", **SPOKEN)
    code, out, err = play("speak", tiny, "Good morning", "-o", "-", *BRIEF)
    assert (code, err) == (0, b"")
    assert same(pcm(out), expected.audio)


def interrupted(real, reason, after):
    """A stream of events that raises after a given number of chunks."""

    def events(self, *arguments, **options):
        heard = 0
        for event in real(self, *arguments, **options):
            yield event
            heard += event.audio is not None
            if heard == after:
                raise reason

    return events


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_ctrl_c_keeps_the_speech_so_far(run, tiny, omni, tmp_path, monkeypatch, name):
    pieces = [event.audio for event in omni.stream_speech("Good morning", **SPOKEN) if event.audio is not None]
    monkeypatch.setattr(Omni, "stream_speech", interrupted(Omni.stream_speech, KeyboardInterrupt, 2))
    path = tmp_path / name
    code, out, err = run("speak", tiny, "Good morning", "-o", path, *BRIEF)
    assert (code, out) == (130, "")
    assert f"wrote {path} as far as it was spoken: 0.2 s\n" in err
    assert same(pcm(path), np.concatenate(pieces[:2]))
    assert [found.name for found in tmp_path.iterdir()] == [name]


def test_a_failure_leaves_no_file(run, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Omni, "stream", interrupted(Omni.stream, ValueError("such"), 2))
    code, _, err = run("generate", tiny, "Hi", "--speak", tmp_path / "a.wav", *SHORT, *BRIEF)
    assert (code, err) == (2, "omni-jax: such\n")
    assert not list(tmp_path.iterdir())


def test_a_closed_player_ends_the_command_without_an_error(tiny, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        patch.setattr(sys, "stderr", sys.stderr)  # a broken pipe is replaced as standard output too
        ended = call(patch, capsys, "speak", tiny, "Good morning", "-o", "-", *BRIEF)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), writer)  # closing it flushes the rest
    assert ended == (1, "", "")


def test_options_of_speech_reach_the_talker(run, tiny, tmp_path, monkeypatch):
    asked = {}

    def answer(self, batch, **options):
        asked.update(options)
        yield Event(text="Well.")
        yield Event(audio=np.zeros(48_000, np.float32))
        yield Event(reply=Reply(text="Well."))

    monkeypatch.setattr(Omni, "stream", answer)
    flags = (
        "--talker-temperature",
        0.5,
        "--talker-top-k",
        3,
        "--talker-top-p",
        0.9,
        "--max-speech",
        2,
        "--speaker",
        "Ethan",
    )
    path = tmp_path / "a.wav"
    assert run("generate", tiny, "Hi", "--speak", path, *flags) == (0, "Well.\n", f"wrote {path}: 2.0 s\n")
    options = RequestOptions.from_mapping(asked)
    assert options.talker == Sampling(max_new_tokens=26, temperature=0.5, top_k=3, top_p=0.9)
    assert options.speaker == "Ethan"


@pytest.mark.filterwarnings("default:speech wants")
def test_a_missing_system_prompt_of_speech_is_reported_in_one_line(run, tiny, tmp_path, monkeypatch):
    """For a family that needs its own system prompt to speak."""
    events = [Event(audio=np.zeros(48_000, np.float32)), Event(reply=Reply(text="Well."))]
    monkeypatch.setattr("omni_jax.omni.answer", lambda *_, **options: iter([(0, event) for event in events]))
    monkeypatch.setattr(Qwen3Synthesizer, "system", SPOKEN_SYSTEM)
    path = tmp_path / "a.wav"
    _, _, err = run("generate", tiny, "Hi", "--speak", path)
    assert [line.split(":")[0] for line in err.splitlines()] == ["note", f"wrote {path}"]
    assert err.startswith("note: speech wants the system prompt")
    assert err.splitlines()[0].endswith(SPOKEN_SYSTEM)
    assert run("generate", tiny, "Hi", "--speak", path, "--system", SPOKEN_SYSTEM)[2] == f"wrote {path}: 2.0 s\n"


def test_the_talker_is_loaded_only_for_speech(run, tiny, tmp_path, monkeypatch):
    loaded = []

    def load(path, *, speech, **options):
        loaded.append(speech)
        raise ValueError("enough")

    monkeypatch.setattr(Omni, "load", load)
    for more in ([], ["--speak", tmp_path / "a.wav"]):
        assert run("generate", tiny, "Hi", *more)[0] == 2
    assert run("speak", tiny, "Hi", "-o", tmp_path / "a.wav")[0] == 2
    assert loaded == [False, True, True]
