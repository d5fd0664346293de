"""The shell: answers on standard output, and one line and exit code 2 for a user error."""

import io
import json
import os
import re
import subprocess
import sys
from functools import partial
from importlib import resources

import jax
import numpy as np
import pytest
import soundfile
from PIL import Image

import omni_jax
from omni_jax import Omni, Reply, Sampling, jobs
from omni_jax.cli import demo, main, terminal
from omni_jax.config import from_hf
from omni_jax.engine.options import RequestOptions
from omni_jax.engine.reply import Event
from omni_jax.processing.options import MediaOptions
from omni_jax.testing import tiny_config, write_tiny
from tests.support.shell_calls import call

RECORDING = resources.files("omni_jax") / "assets" / demo.RECORDING
SHORT = ("--max-new-tokens", "24", "--greedy")  # the shapes of other tests, so that programs are shared


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs omni-jax in this process: exit code, standard output, standard error."""
    return partial(call, monkeypatch, capsys)


@pytest.fixture
def picture(tmp_path):
    """Two pictures of 96 x 64 pixels; the path of the first."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    Image.fromarray(pixels[:, ::-1]).save(tmp_path / "turned.png")
    return tmp_path / "picture.png"


def user(words):
    return [{"role": "user", "content": [{"type": "text", "text": words}]}]


# --- generate


def test_generate_prints_the_answer_and_nothing_else(run, tiny, writer):
    expected = writer.generate(user("Hi"), thinker_max_new_tokens=24)
    assert run("generate", tiny, "Hi", *SHORT) == (0, expected.text + "\n", "")


def test_json_has_the_whole_reply(run, tiny, writer):
    expected = writer.generate(user("Hi"), seed=7, thinker_max_new_tokens=24, thinker_temperature=1.5, thinker_top_k=50)
    code, out, err = run(
        "generate", tiny, "Hi", "--json", "--max-new-tokens", 24, "--temperature", 1.5, "--top-k", 50, "--seed", 7
    )
    assert (code, err) == (0, "")
    reply = json.loads(out)
    assert reply["text"] == expected.text
    assert reply["tokens"] == expected.tokens
    assert reply["logprobs"] == pytest.approx(expected.logprobs, rel=1e-5)
    assert reply.keys() == {"text", "thinking", "tool_calls", "tokens", "logprobs", "finish_reason"}


def test_a_stream_prints_the_same(run, tiny, writer):
    expected = writer.generate(user("Hi"), thinker_max_new_tokens=24)
    assert run("generate", tiny, "Hi", "--stream", *SHORT) == (0, expected.text + "\n", "")


def test_recordings_come_before_the_text_in_their_order(run, tiny, writer):
    audio = [{"type": "audio", "audio": str(RECORDING)}]
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [*audio, *audio, {"type": "text", "text": "a"}]},
    ]
    expected = writer.generate(conversation, thinker_max_new_tokens=24)
    options = ("--audio", RECORDING, "--audio", RECORDING, "--system", "Be brief.", *SHORT)
    assert run("generate", tiny, "a", *options) == (0, expected.text + "\n", "")


def test_media_keep_the_order_of_the_command_line(run, tiny, writer, picture):
    sound, sight = {"type": "audio", "audio": str(RECORDING)}, {"type": "image", "image": str(picture)}
    turned = {"type": "image", "image": str(picture.with_name("turned.png"))}
    for parts, flags in (
        ([sight, sound, turned], ["--image", picture, f"--audio={RECORDING}", "--image", turned["image"]]),
        ([turned, sight, sound], ["--image", turned["image"], f"--image={picture}", "--audio", RECORDING]),
    ):
        expected = writer.generate(
            [{"role": "user", "content": [*parts, *user("a")[0]["content"]]}], thinker_max_new_tokens=24
        )
        assert run("generate", tiny, "a", *flags, *SHORT) == (0, expected.text + "\n", "")


def test_a_conversation_is_read_from_a_file(run, tiny, writer, picture, tmp_path):
    """Several turns in Qwen's own format; text and media of the command line are a further turn."""
    turns = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image", "image": str(picture), "max_pixels": 4096}, *user("a")[0]["content"]],
        },
        {"role": "assistant", "content": "Grey."},
    ]
    chat = tmp_path / "chat.json"
    chat.write_text(json.dumps([*turns, *user("b")]))
    expected = writer.generate([*turns, *user("b")], thinker_max_new_tokens=24).text
    assert run("generate", tiny, "--conversation", chat, *SHORT) == (0, expected + "\n", "")
    chat.write_text(json.dumps(turns))
    assert run("generate", tiny, "b", "--conversation", chat, *SHORT) == (0, expected + "\n", "")


def test_options_of_media_and_template_reach_the_prompt(run, tiny, picture, tmp_path, monkeypatch):
    asked = {}

    def stream(self, messages, *, steps, **options):
        asked.update(options)
        return iter([Event(reply=Reply(text="."))])

    monkeypatch.setattr(Omni, "stream", stream)
    (tmp_path / "tools.json").write_text('[{"type": "function"}]')
    flags = (
        "--use-audio-in-video",
        "--allow-private",
        "--fps",
        1,
        "--max-frames",
        8,
        "--min-pixels",
        1024,
        "--max-pixels",
        4096,
    )
    assert run("generate", tiny, "Hi", *flags, "--tools", tmp_path / "tools.json", "--no-thinking")[0] == 0
    media = MediaOptions(
        load_audio_from_video=True, allow_private=True, fps=1, max_frames=8, min_pixels=1024, max_pixels=4096
    )
    assert RequestOptions.from_mapping(asked) == RequestOptions(
        media=(media,), tools=[{"type": "function"}], template={"enable_thinking": False}, progress=asked["progress"]
    )
    # A job accepts the same options, for all of its lines.
    (tmp_path / "in.jsonl").write_text("[]\n")
    job, totals = {}, jobs.Totals(3, 2, 1, 0, 0, 0.0, 0.0, 0.0, 0.0)
    monkeypatch.setattr(jobs, "load", lambda path, **options: None)
    monkeypatch.setattr(jobs, "run", lambda omni, source, target, **options: job.update(options) or totals)
    flags += ("--no-thinking", "--stop", "END", "--stop", ".", "--min-new-tokens", 2, "--repetition-penalty", 1.5)
    code, out, err = run("batch", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--model", tiny, *flags)
    assert (code, out) == (0, "")
    assert "2 of 3 lines answered, 1 errors (--retry tries them again); " in err
    del job["slots"], job["window"], job["sound"], job["logprobs"], job["retry"], job["profile"], job["progress"]
    assert RequestOptions.from_mapping(job) == RequestOptions(
        media=(media,), template={"enable_thinking": False},
        thinker=Sampling(min_new_tokens=2, repetition_penalty=1.5, stop_strings=("END", ".")),
    )  # fmt: skip


def test_thinking_goes_to_stderr_and_calls_are_json_lines(run, tiny, monkeypatch):
    """Thinking goes to standard error, calls are lines of JSON."""
    asked = {}

    def stream(self, messages, *, steps, **options):
        asked.update(options)
        calls = [{"name": "clock", "arguments": {"zone": "Köln"}}]
        return iter([Event(reply=Reply(text="Well:", thinking="Hm.", tool_calls=calls))])

    monkeypatch.setattr(Omni, "stream", stream)
    code, out, err = run("generate", tiny, "Hi", "--stop", "END")
    assert (code, err) == (0, "Hm.\n")
    assert out == 'Well:\n{"name": "clock", "arguments": {"zone": "Köln"}}\n'
    assert asked["thinker_stop_strings"] == ("END",)


# --- convert, inspect, demo


def test_a_converted_folder_answers_and_exports(run, tiny, tmp_path, writer):
    code, out, err = run("convert", tiny, tmp_path / "ours")
    assert (code, out, err) == (0, "", f"wrote {tmp_path / 'ours'}\n")
    assert run("convert", tiny, tmp_path / "ours")[0] == 0  # again: nothing is left to do
    code, out, _ = run("generate", tmp_path / "ours", "Hi", *SHORT)
    assert (code, out) == (0, writer.generate(user("Hi"), thinker_max_new_tokens=24).text + "\n")
    assert run("convert", "--to-hf", tmp_path / "ours", tmp_path / "theirs")[0] == 0
    assert from_hf(tmp_path / "theirs") == from_hf(tiny)
    assert list((tmp_path / "theirs").glob("*.safetensors"))


def test_inspect_prints_a_checkpoint(run, tiny, omni):
    code, out, err = run("inspect", tiny, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in omni.parts.items()}
    assert {part["name"]: part["parameters"] for part in found["parts"]} == sizes
    assert found["parameters"] == sum(sizes.values())
    assert {part["stored"] for part in found["parts"]} <= {"float32", "F32"}  # our spelling and safetensors'
    assert (found["context"], found["speakers"]) == (4096, ["chelsie", "ethan", "aiden"])
    code, out, err = run("inspect", tiny)
    assert (code, err) == (0, "")
    assert all(f"{name} " in out and f"{size:,}" in out for name, size in sizes.items())


def test_demo_answers_and_speaks(run, tmp_path):
    code, out, err = run("demo", "--keep", tmp_path / "kept")
    assert code == 0
    assert out.strip()
    lines = err.splitlines()
    assert [line[:3] for line in lines[:3]] == ["1/3", "2/3", "3/3"]
    seconds = soundfile.info(tmp_path / "kept" / "answer.wav").duration
    assert 0 < seconds < 40 * 0.08
    assert f"It spoke for {seconds:.1f} s (in {tmp_path / 'kept' / 'answer.wav'})." in err
    assert "The weights are random" in err
    assert (tmp_path / "kept" / "published" / "config.json").exists()


def test_help_names_every_command(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert all(command in out for command in ("generate", "speak", "convert", "inspect", "demo"))
    assert run("--version") == (0, f"omni-jax {omni_jax.__version__}\n", "")


def test_compiled_programs_are_cached_by_default(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    try:
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        main.keep_programs()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / ".cache" / "omni_jax" / "programs")
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


def test_progress_without_a_terminal_prints_occasional_lines(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with terminal.bar("answering", bytewise=False) as progress, terminal.bar("loading") as loading:
        for seconds in (10, 59, 61, 70, 119, 130):
            clock[0] = seconds
            progress(seconds * 100, 20_000, "12 tokens/s")
        loading(3_000_000_000, 61_000_000_000, "thinker")
    assert capsys.readouterr().err.splitlines() == [
        "answering: 6,100 of 20,000, 12 tokens/s",
        "answering: 13,000 of 20,000, 12 tokens/s",
        "loading: 3.0 of 61.0 GB, thinker",
    ]


# --- user errors


@pytest.fixture
def here(tmp_path):
    """A folder of faulty files."""
    (tmp_path / "noise.wav").write_bytes(b"RIFF but no sound at all")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "tools.json").write_text("{")
    (tmp_path / "chat.json").write_text('[{"role": "robot", "content": "Hi"}]')
    (tmp_path / "turns.json").write_text('\ufeff[{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "one.json").write_text('{"type": "function"}')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "bare").mkdir()
    # Releases without their weights: user errors in a request for speech are reported before weights are read.
    for name in ("speaking", "silent", "mute"):
        config = tiny_config() | ({} if name == "speaking" else {"enable_audio_output": False})
        if name == "mute":
            del config["talker_config"]
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return tmp_path


USER_ERRORS = {
    "generate TINY --audio HERE/a.wav": "a.wav: no such audio file",
    f"generate TINY --audio {'x' * 5000}": "x{50,150}...x{50,150}: no such audio file",
    "generate TINY --image HERE/a.png": "a.png: no such image file",
    "generate TINY --video HERE/a.mp4": "a.mp4: no such video file",
    "generate TINY --image HERE/noise.wav": "message 0, part 0: .*noise.wav: not an image",
    "generate TINY --video HERE/noise.wav": "message 0, part 0: .*noise.wav: not a video",
    "generate TINY --image http://127.0.0.1:9/a.png": "message 0, part 0: http://127.0.0.1:9/a.png: .*private",
    "generate TINY --image HERE/noise.wav --max-pixels 0": "max_pixels is 0 .expected more than 0.",
    "generate TINY --conversation HERE/tools.json": "tools.json: expected a JSON list of messages",
    "generate TINY --conversation HERE/deep.json": "deep.json: expected a JSON list of messages .maximum recursion depth",
    "generate TINY --conversation HERE/one.json": "one.json: expected a JSON list of messages, got dict",
    "generate TINY --conversation HERE/turns.json --system Hi": "--system: .*turns.json has a system message already",
    "generate TINY --conversation HERE/chat.json": "message 0: unknown role 'robot'",
    "generate TINY --audio HERE/noise.wav": "noise.wav: not audio, or damaged",
    "generate TINY --audio HERE/empty.wav": "empty.wav: is empty",
    "generate HERE/absent Hi": "absent: no such folder; expected a Hugging Face folder",
    "generate owner/absent Hi": "owner/absent: no such folder here, and the hub did not give it",
    "generate HERE/bare Hi": "no config.json",
    "generate HERE/other Hi": "expected model_type .* got 'llama'; this is another model's folder",
    "generate TINY Hi --stream --json": "--stream and --json: expected one of them, got both",
    "generate TINY Hi --dtype int8": "--dtype: expected float32 or bfloat16, got int8",
    "generate TINY": "nothing to answer: give a text, --audio, --image or --video FILE, or --conversation FILE",
    "generate TINY Hi --top-p 2": "top_p: expected a number above 0 and at most 1, got 2.0",
    "generate TINY Hi --tools HERE/tools.json": "tools.json: expected a JSON list of function schemas",
    "generate TINY Hi --tools HERE/one.json": "one.json: expected a JSON list of function schemas, got dict",
    "generate TINY Hi --speaker aiden": "--speaker: nothing is spoken without --speak FILE; add it",
    "generate TINY Hi --talker-greedy --max-speech 2": "--max-speech, --talker-greedy: nothing is spoken without --speak",
    "generate TINY Hi --speak HERE/a.mp3": "a.mp3: expected a name that ends in .wav or .flac, or - for standard output",
    "generate TINY Hi --speak HERE/absent/a.wav": "absent/a.wav: there is no folder .*absent; make it first",
    "generate TINY Hi --speak HERE/bare": "bare: expected a name that ends in .wav or .flac",
    "generate HERE/speaking Hi --speak HERE/a.wav --speaker Bob": "expected one of chelsie, ethan, aiden, got 'Bob'",
    "generate HERE/silent Hi --speak HERE/a.wav": "silent: it answers in text only: it was saved without its talker",
    "generate HERE/speaking Hi --speak HERE/a.wav --max-speech 0": "--max-speech: expected seconds above 0, got 0.0",
    "generate HERE/speaking Hi --speak HERE/a.wav --talker-top-p 2": "talker_top_p: expected a number above 0 and at most 1",
    "speak HERE/speaking Hi -o HERE/a.wav --speaker Bob": "expected one of chelsie, ethan, aiden, got 'Bob'",
    "speak HERE/silent Hi -o HERE/a.wav": "silent: it answers in text only: it was saved without its talker",
    "speak HERE/mute Hi -o HERE/a.wav": "mute: it answers in text only: it has no talker; use the Instruct release",
    "speak HERE/speaking Hi -o HERE/a.wav --talker-greedy --talker-top-k 2": "--talker-greedy and --talker-top-k: expected one",
    "generate TINY Hi --greedy --temperature 1": "--greedy and --temperature: expected one of them; leave the other out",
    "plan HERE/speaking --topology v4-8": "topology: expected .* got 'v4-8'; the kinds known are v5e, v6e, v5p",
    "plan HERE/speaking --topology v6e-4 --json HERE/nodir/p.json": "--json .*nodir/p.json: expected the name of a file",
    "speak HERE/speaking Hi -o HERE/a.wav --max-speech nan": "--max-speech: expected seconds above 0, got nan",
    "speak HERE/speaking Hi -o HERE/a.ogg": "a.ogg: expected a name that ends in .wav or .flac, or - for standard output",
    "speak HERE/speaking - -o HERE/a.wav": "nothing to say: expected a text, or - and a text on standard input",
    "speak HERE/speaking Hi": "Missing option '--output' / '-o'",
    "speak HERE/absent Hi -o HERE/a.wav": "absent: no such folder; expected a Hugging Face folder",
    "inspect HERE/absent": "absent: no such folder; expected a Hugging Face folder",
    "inspect HERE/other": "expected model_type .* got 'llama'",
    "convert HERE/absent HERE/out": "absent",
    "convert HERE/other HERE/out": "expected model_type .* got 'llama'",
    "convert TINY HERE/out --dtype float16": "--dtype: expected float32 or bfloat16, got float16",
    "convert --to-hf TINY HERE/out": "expected a converted checkpoint",
    "convert TINY HERE/empty.wav": "empty.wav: expected a folder to write, got a file; choose another name",
    "convert TINY gs://b/model": "gs://b/model: expected a local folder .*: gcloud storage cp -r FOLDER gs://b/model",
    "convert --to-hf TINY gs://b/model": "gs://b/model: expected a local folder to write, got an address",
    "convert HERE/speaking HERE/speaking/sub": "speaking/sub: lies in .*speaking, which it is made from",
    "convert owner/absent HERE/out": "owner/absent: no such folder here, and the hub did not give it",
}


@pytest.mark.parametrize("command", USER_ERRORS)
def test_a_user_error_prints_one_line_and_exits_with_2(run, tiny, here, monkeypatch, command):
    monkeypatch.setenv("HF_HOME", str(here / "hub"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    code, out, err = run(*(word.replace("TINY", str(tiny)).replace("HERE", str(here)) for word in command.split()))
    assert (code, out) == (2, "")
    assert re.fullmatch(f"omni-jax: .*{USER_ERRORS[command]}.*\n", err)
    assert not (here / "out" / "omni_jax.json").exists()
    assert not list(here.glob("a.*"))


def test_a_prompt_longer_than_the_context_is_refused(run, tmp_path):
    config = tiny_config()
    config["thinker_config"]["text_config"]["max_position_embeddings"] = 16
    folder = write_tiny(tmp_path / "small", config=config, speech=False)
    code, out, err = run("generate", folder, "What is said in all of this?")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "the context holds 16: shorten the text" in err


def test_the_traceback_is_shown_on_request(run, tiny, monkeypatch):
    monkeypatch.setenv("OMNI_JAX_DEBUG", "1")
    with pytest.raises(ValueError, match="nothing to answer"):
        run("generate", tiny)


def test_a_user_error_in_a_separate_process_prints_one_line(tmp_path):
    """Standard error has one line and no traceback."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": ""}
    found = subprocess.run(
        [sys.executable, "-m", "omni_jax.cli", "generate", str(tmp_path / "absent"), "Hi"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.splitlines() == [
        f"omni-jax: {tmp_path / 'absent'}: no such folder; expected a Hugging Face folder, a converted folder or a hub id "
        "(owner/name)"
    ]


def test_a_long_option_value_is_shortened_in_the_error(monkeypatch, capsys):
    code, out, err = call(monkeypatch, capsys, "generate", "x", "--max-new-tokens", "x\n" * 1000, "Hi")
    assert (code, out) == (2, "")
    assert err.startswith("omni-jax: Invalid value for '--max-new-tokens'")
    assert len(err) < 500
