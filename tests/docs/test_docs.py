"""Code in README.md and docs/: Python runs on the tiny model, command lines are parsed, and links have targets."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import typer
from PIL import Image

from omni_jax import Omni, Sampling
from omni_jax.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
PAGES += [ROOT / "tpu" / "launch" / "README.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^ {4}(?:pip .* && )?(omni-jax \w.*)$", re.MULTILINE)
SAID = [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}, {"type": "image", "image": "board.jpg"}]}]


def name(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, language):
    return [code for found, code in BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


@pytest.fixture
def media(tmp_path, monkeypatch):
    """The files that the pages name, in the working directory."""
    tone = np.sin(np.arange(8000) / 10).astype(np.float32) / 4
    soundfile.write(tmp_path / "a.wav", tone, 16_000)
    Image.new("RGB", (96, 64), "teal").save(tmp_path / "board.jpg")
    with av.open(str(tmp_path / "meeting.m4a"), "w", format="mp4") as container:
        write_sound(container, container.add_stream("aac", rate=16_000), tone)
    with av.open(str(tmp_path / "talk.mp4"), "w") as container:
        film, sound = container.add_stream("libx264", rate=8), container.add_stream("aac", rate=16_000)
        film.width, film.height, film.pix_fmt = 96, 64, "yuv420p"
        for number in range(16):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 10 * number, np.uint8), format="rgb24")
            container.mux(film.encode(frame))
        container.mux(film.encode(None))
        write_sound(container, sound, np.tile(tone, 4))
    monkeypatch.chdir(tmp_path)


def write_sound(container, track, samples):
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = 16_000
    container.mux(track.encode(frame))
    container.mux(track.encode(None))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python_blocks_run(page, media, tiny, omni, monkeypatch):
    """Runs the blocks of a page in order; a hub id loads the tiny model, with short replies."""
    load = Omni.load

    def load_tiny(model, **options):
        found = load(model if Path(model).exists() else tiny, **options)
        few = Sampling(max_new_tokens=2)
        found.defaults = replace(
            found.defaults, thinker=found.defaults.thinker.override(few), talker=found.defaults.talker.override(few)
        )
        return found

    monkeypatch.setattr(Omni, "load", load_tiny)
    scope = {"Omni": Omni, "Sampling": Sampling, "np": np, "path": tiny, "omni": load_tiny(tiny), "conversation": SAID}
    for block in blocks(page, "python"):
        exec(compile(block, name(page), "exec"), scope)


def commands(page):
    """The lines of ours, without comments and what a shell does next."""
    return [re.split("  #| \\| | && ", line)[0] for line in COMMAND.findall(page.read_text(encoding="utf-8"))]


def test_the_pages_have_commands():
    assert sum(len(commands(page)) for page in PAGES) > 12


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_command_lines_are_parsed(page):
    """The shell's own commands parse the lines without running them: all commands, options and arguments exist."""
    group = typer.main.get_command(app)
    for line in commands(page):
        command, *words = shlex.split(line)[1:]
        assert command in group.commands, line
        group.commands[command].make_context(command, words)  # raises if the line is wrong


def anchors(page):
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name(page)}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{name(page)}: {target}"
