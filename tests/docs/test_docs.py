"""Code in README.md, docs/ and the other pages: Python and commands run on tiny models, and links have targets."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import jax
import numpy as np
import pytest
import soundfile
import typer
from PIL import Image

from omni_jax import Omni, Sampling
from omni_jax.cli.main import app
from omni_jax.jobs.input import parsed
from omni_jax.testing import tiny_config, tiny_qwen2_5_config, write_tiny
from tests.docs.pages import FENCE, PAGES, ROOT, Command, blocks, commands, name, text, unlabelled
from tests.support.shell_calls import call

KINDS = {"python", "sh", "json", "text"}
SAID = [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}, {"type": "image", "image": "board.jpg"}]}]
# Short replies; all are drawn alike, greedy ones would compile other programs.
SHORT = {"max_new_tokens": 2, "do_sample": True, "talker_max_new_tokens": 2}
COMMANDS = [(page, block, command) for page in PAGES for block in blocks(page, "sh") for command in commands(block)]
OURS = list(dict.fromkeys(command for *_, command in COMMANDS if command.words[0] == "omni-jax"))
DEMO = ("omni-jax", "demo")  # tests/cli/test_cli.py runs it
ELSEWHERE = list(dict.fromkeys((page, command) for page, _, command in COMMANDS if command.words[0] != "omni-jax"))


def shallow():
    """The tiny Qwen3-Omni with fewer layers: each is compiled apart on a CPU."""
    config = tiny_config()
    thinker, talker = config["thinker_config"], config["talker_config"]
    talker["accept_hidden_layer"] = 1
    thinker["text_config"]["num_hidden_layers"] = 2
    thinker["vision_config"] |= {"depth": 2, "deepstack_visual_indexes": [0, 1]}
    talker["text_config"]["num_hidden_layers"] = 1
    for config_of_codes in (talker["code_predictor_config"], config["code2wav_config"]):
        config_of_codes["num_hidden_layers"] = 1
    return config


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny checkpoint of each family, with short replies."""
    folder = tmp_path_factory.mktemp("models")
    made = {
        "Qwen3": write_tiny(folder / "3", config=shallow()),
        "Qwen2.5": write_tiny(folder / "2.5", config=tiny_qwen2_5_config()),
    }
    for path in made.values():
        options = path / "generation_config.json"
        options.write_text(json.dumps(json.loads(options.read_text()) | SHORT))
    return made


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A folder with the files that the pages name."""
    folder = tmp_path_factory.mktemp("media")
    tone = np.sin(np.arange(8000) / 10).astype(np.float32) / 4
    for sound in ("a.wav", "b.mp3", "question.wav"):
        soundfile.write(folder / sound, tone, 16_000)
    for picture in ("board.jpg", "a.jpg", "c.png"):
        Image.new("RGB", (96, 64), "teal").save(folder / picture)
    with av.open(str(folder / "meeting.m4a"), "w", format="mp4") as container:
        write_sound(container, container.add_stream("aac", rate=16_000), tone)
    with av.open(str(folder / "talk.mp4"), "w") as container:
        film, sound = container.add_stream("libx264", rate=8), container.add_stream("aac", rate=16_000)
        film.width, film.height, film.pix_fmt = 96, 64, "yuv420p"
        for number in range(16):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 10 * number, np.uint8), format="rgb24")
            container.mux(film.encode(frame))
        container.mux(film.encode(None))
        write_sound(container, sound, np.tile(tone, 4))
    shutil.copy(folder / "talk.mp4", folder / "b.mp4")
    (folder / "chat.json").write_text(json.dumps([{"role": "system", "content": "Be brief."}]))
    line = input_line() | {"thinker_max_new_tokens": 2}
    for part in line["messages"][1]["content"]:
        for kind in {"audio", "video"} & part.keys():
            part[kind] = Path(part[kind]).name
    absent = [{"role": "user", "content": [{"type": "audio", "audio": "c.wav"}]}]
    (folder / "in.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(absent)}\n")
    return folder


def write_sound(container, track, samples):
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = 16_000
    container.mux(track.encode(frame))
    container.mux(track.encode(None))


@pytest.fixture
def desk(media, tmp_path, monkeypatch):
    """A working directory with those files."""
    for file in media.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_each_block_says_what_it_is(page):
    kinds = [kind for _, kind, _ in FENCE.findall(text(page))]
    assert set(kinds) <= KINDS
    assert text(page).count("```") == 2 * len(kinds)
    assert unlabelled(page) == []


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python_blocks_run(page, desk, models, monkeypatch):
    """Runs the blocks of a page in order; a hub id loads the tiny model of its family."""
    load = Omni.load

    def load_tiny(model, **options):
        family = str(model).removeprefix("Qwen/").partition("-")[0]
        return load(models.get(family, model), **options)

    monkeypatch.setattr(Omni, "load", load_tiny)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # of room.forget: later blocks would compile anew
    path = models["Qwen3"]
    scope = {"Omni": Omni, "Sampling": Sampling, "np": np, "path": path, "omni": load(path), "conversation": SAID}
    for block in blocks(page, "python"):
        exec(compile(block, name(page), "exec"), scope)


def replaced(command: Command, models: dict[str, Path]) -> list[str]:
    """The words of a command of ours, with a tiny model, and for one chip, which the published model does not fit."""
    words = [re.sub(r"^(MODEL|Qwen/Qwen3\S+)$", str(models["Qwen3"]), word) for word in command.words[1:]]
    return [str(ROOT / word) if word.startswith("tests/") else word.replace("v5e-8", "v5e-1") for word in words]


@pytest.mark.parametrize(
    "command", [each for each in OURS if each.words != DEMO], ids=lambda command: " ".join(command.words)
)
def test_commands_run(command, models, desk, monkeypatch, capsysbinary):
    """Runs a command as the pages have it, and looks at what it wrote."""
    words = replaced(command, models)
    if "--to-hf" in words:
        assert call(monkeypatch, capsysbinary, "convert", models["Qwen3"], "CONVERTED")[0] == 0
    before = set(desk.iterdir())
    code, out, said = call(monkeypatch, capsysbinary, *words)
    assert code == (3 if words[0] == "plan" else 0), said.decode()
    made = {path.name: path for path in set(desk.iterdir()) - before}
    if command.piped:
        assert out.startswith(b"RIFF")
    for path in made.values():
        if path.suffix in (".wav", ".flac"):
            assert soundfile.info(path).samplerate == 24_000
    if words[0] == "batch":
        answers = [json.loads(line) for line in made["answers.jsonl"].read_text().splitlines()]
        shown = [json.loads(line) for line in json_lines(ROOT / "docs" / "batch.md") if '"line"' in line]
        assert [set(line) for line in shown] == [set(line) for line in answers]
        assert set(shown[0]["speech"]) == set(answers[0]["speech"])
        assert answers[1]["error"].startswith(shown[1]["error"])
    elif "--json" in words:
        assert json.loads(out)["text"] is not None
    elif words[0] == "convert":
        assert (made[words[-1] if "--to-hf" in words else words[2]] / "config.json").exists()
    elif "-o" in words or "--speak" in words:
        assert out.startswith(b"RIFF") or words[words.index("-o" if "-o" in words else "--speak") + 1] in made
    else:
        assert out.strip()


def test_many_commands_run_and_the_demo_elsewhere():
    assert len(OURS) > 14
    assert DEMO in [command.words for command in OURS]
    assert 'run("demo", ' in text(ROOT / "tests" / "cli" / "test_cli.py")


@pytest.mark.parametrize(
    ("page", "command"), ELSEWHERE, ids=lambda item: " ".join(getattr(item, "words", "")) or name(item)
)
def test_commands_that_need_more_than_this_machine_name_what_exists(page, command):
    """Files, modules, extras, options of our scripts and their variables exist; of other programs shellcheck reads the line."""
    first, *words = command.words
    options = [word.partition("=")[0] for word in words if word.startswith("-")]
    if first == "pip":
        extras = re.search(
            r"^\[project\.optional-dependencies\](.*?)^\[", (ROOT / "pyproject.toml").read_text(), re.M | re.S
        )
        assert extras
        for word in re.findall(r"\[(.*)\]", " ".join(words)):
            assert all(re.search(rf"^{extra} = ", extras[1], re.MULTILINE) for extra in word.split(",")), command.line
    elif first == "python":
        module = words[0] == "-m"
        script = ROOT / (f"{words[1].replace('.', '/')}/__main__.py" if module else words[0])
        source = text(script) + "".join(text(path) for path in script.parent.glob("clock.py"))
        if script.name == "pod_inference.py":
            typer.main.get_command(app).commands["batch"].make_context("batch", words[1:])
        else:
            assert all(f'"{option}"' in source for option in options if option != "-m"), command.line
    elif first.endswith(".sh"):
        known = re.findall(r'"\$\{([A-Z_]+):', text(ROOT / first))
        assert set(command.variables) <= set(known)
        assert not options
    elif first == ".ci/run":
        assert (ROOT / first).is_file()
    else:
        assert first in {"docker", "ffplay", "gcloud", "kubectl", "mkdocs", "pyright", "pytest", "ruff"}
        assert all((ROOT / word).exists() for word in words if word.startswith(("tests/", "tpu/", "docs/")))


def test_shellcheck_reads_all_shell_blocks(tmp_path):
    found = [block for page in PAGES for block in blocks(page, "sh")]
    for number, block in enumerate(found):
        (tmp_path / f"{number}.sh").write_text(block)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    checker = shutil.which("shellcheck", path=path)
    done = subprocess.run([checker, "--shell=bash", *tmp_path.iterdir()], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def json_lines(page):
    return [line for block in blocks(page, "json") for line in block.splitlines()]


def input_line():
    return json.loads(next(line for line in json_lines(ROOT / "docs" / "batch.md") if '"messages"' in line))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "json")], ids=name)
def test_json_is_read(page):
    """A line of JSON is a line of a job's input, which our reader takes, or of its output, which the test of batch compares."""
    for line in json_lines(page):
        if "line" not in json.loads(line):
            assert parsed(line.encode())[1]


def anchors(page):
    heads = re.findall(r"^#+ (.*)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name(page)}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{name(page)}: {target}"


NAMED = re.compile(r"(?<![\w/.-])(?:[\w.-]+/)*[\w.-]+\.(?:py|sh|ipynb|yaml|yml|toml)\b")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_a_page_names_exist(page):
    """Paths are from the top, from omni_jax/, from tests/, or the end of one."""
    parts = [path for path in ROOT.iterdir() if path.name in (".ci", ".github") or path.name[0].isalpha()]
    known = [path.relative_to(ROOT).as_posix() for part in parts for path in (part, *part.rglob("*.*"))]
    for file in set(NAMED.findall(FENCE.sub("", text(page)))):
        assert any(f"/{path}".endswith(f"/{file}") for path in known), f"{name(page)}: {file}"
