"""Files of batch jobs and of the shell: input lines, answers and note of an earlier run, conversations, tools."""

import io
import json
import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from omni_jax import jobs
from omni_jax.cli import main
from omni_jax.engine.options import OF_JSON
from omni_jax.engine.reply import Reply
from omni_jax.jobs.input import lines_of

from . import conversations
from .cases import BrokenPromiseError, Case
from .mutations import TEXTS, damaged, mutate, wild_json, written

LINES = 6


class Played:
    """A stand-in for the model that answers every request at once."""

    synthesizer, parts = SimpleNamespace(system=None), {}

    def request_of(self, conversations: Any, options: Any) -> Any:
        return SimpleNamespace(words=conversations)


def play(omni: Any, items: Any, **_: Any) -> Any:
    for item in items:
        sound = {"codes": np.zeros((1, 3), np.int32), "audio": np.zeros(400, np.float32)}
        yield [(item.key, Reply(text="Yes.", tokens=[1], **sound) if item.request else item.fault)]


def prepare(folder: Path) -> Path:
    jobs.answers, jobs._how = play, lambda *_: {"model": "played"}
    source = folder / "in.jsonl"
    source.write_bytes(b"\n".join(map(_line, range(LINES))) + b"\n")
    jobs.run(Played(), str(source), str(folder / "out.jsonl"))  # pyright: ignore
    return folder


def case(draw: random.Random, folder: Path) -> Case:
    target = folder / "tried"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in ("in.jsonl", "out.jsonl", "out.how.json"):
        shutil.copy(folder / name, target)
    return draw.choice([_resumed, _resumed, _started, _shell])(draw, target)


def _line(number: int) -> bytes:
    return json.dumps({"id": number, "messages": [{"role": "user", "content": f"{number}?"}], "seed": number}).encode()


def _resumed(draw: random.Random, folder: Path) -> Case:
    """A job that resumes after its answers were damaged."""
    name = draw.choice(["out.jsonl", "out.jsonl", "out.jsonl", "out.how.json"])
    content = (folder / name).read_bytes()
    if draw.random() < 0.3:
        content, said = damaged(content, draw)
    elif name == "out.how.json":
        tree, said = mutate(json.loads(content), draw, names=("model", "x"))
        content = written(tree, draw)
    else:
        lines, spot = content.split(b"\n"), draw.randrange(LINES)
        tree, said = mutate(json.loads(lines[spot]), draw, names=("error", "speech", "tokens", "line", "of"))
        lines[spot] = written(tree, draw)
        content = b"\n".join(lines)
    (folder / name).write_bytes(content)
    retry = draw.choice([True, False])
    return Case(f"{name}: {said}", lambda: _run(folder, retry=retry))


def _started(draw: random.Random, folder: Path) -> Case:
    """A job with invalid input lines."""
    (folder / "out.jsonl").unlink()
    said = []
    lines = [_line(number) for number in range(LINES)]
    for _ in range(draw.choice([1, 2])):
        spot = draw.randrange(LINES)
        tree: Any = {"messages": conversations.conversation(draw)} if draw.random() < 0.3 else json.loads(_line(spot))
        tree, done = mutate(
            tree, draw, names=("id", "messages", *OF_JSON, "thinker_temperature", "x", "progress", "given")
        )
        lines[spot] = written(tree, draw)
        said.append(done)
    content = b"\n".join(lines)
    name = draw.choice(
        ["in.jsonl"] * 4 + ["in.jsonl.gz", "in.jsonl.xz", "in.jsonl.zip", "in.jsonl.bz2", "in.jsonl.zst"]
    )
    (folder / name).write_bytes(content if draw.random() < 0.8 else damaged(content, draw)[0])

    def run() -> None:
        _run(folder, source=name)
        count = sum(1 for _ in lines_of(str(folder / name)))
        answers = [json.loads(text) for text in (folder / "out.jsonl").read_bytes().splitlines()]
        if [answer["line"] for answer in answers] != [number for number, _ in lines_of(str(folder / name))]:
            raise BrokenPromiseError(f"{len(answers)} answers for {count} lines")
        if long := [answer["error"] for answer in answers if len(answer.get("error", "")) >= 500]:
            raise BrokenPromiseError(f"an error of {len(long[0]):,} characters: {long[0][:200]}")
        if odd := [answer["error"] for answer in answers if "Error: " in answer.get("error", "")[:40]]:
            raise BrokenPromiseError(f"a line's error is no sentence: {odd[0][:200]}")

    return Case(f"{name}: {'; '.join(said)}", run)


def _run(folder: Path, source: str = "in.jsonl", **options: Any) -> None:
    jobs.run(Played(), str(folder / source), str(folder / "out.jsonl"), **options)  # pyright: ignore


def _shell(draw: random.Random, folder: Path) -> Case:
    """Files and options of a command whose model does not exist."""
    said, tree = "", conversations.conversation(draw)
    try:
        tree = json.loads(json.dumps(tree, default=lambda value: "x", skipkeys=True))
    except (ValueError, RecursionError):  # circular, or deeper than JSON's writer goes
        tree = [{"role": "user", "content": "Hello"}]
    tree, said = mutate(tree, draw, names=conversations.NAMES)
    (folder / "asked.json").write_bytes(written(tree, draw))
    (folder / "tools.json").write_bytes(written(wild_json(draw), draw))
    flags = [
        "--fps",
        "--max-frames",
        "--min-pixels",
        "--temperature",
        "--top-k",
        "--top-p",
        "--seed",
        "--max-new-tokens",
        "--stop",
    ]
    flags += [
        "--speaker",
        "--max-speech",
        "--dtype",
        "--system",
        "--image",
        "--audio",
        "--video",
        "--talker-top-k",
        "--x",
    ]
    texts = [text.replace("\0", "") for text in TEXTS if len(text) < 1000] + [
        "1",
        "-1",
        "nan",
        "inf",
        "9" * 400,
        "1e400",
        "float32",
    ]
    arguments = ["generate", str(folder / "none"), draw.choice(texts), "--conversation", str(folder / "asked.json")]
    arguments += ["--tools", str(folder / "tools.json")] if draw.random() < 0.3 else []
    for _ in range(draw.choice([0, 0, 1, 2])):
        arguments += [draw.choice(flags), draw.choice(texts)]
    return Case(f"{said} | {arguments[5:]}", lambda: _call(arguments))


def _call(arguments: list[str]) -> None:
    sys.argv = ["omni-jax", *arguments]
    printed = io.StringIO()
    from omni_jax.cli import terminal

    before = terminal.note

    terminal.note = type(before)(file=printed, highlight=False, soft_wrap=True)
    try:
        main.main()
    except SystemExit as ended:
        said = printed.getvalue()
        if ended.code not in (1, 2) or len(said.strip().splitlines()) != 1 or len(said) >= 600:
            raise BrokenPromiseError(f"exit code {ended.code} and {len(said):,} characters: {said[:300]}") from None
    finally:
        terminal.note = before
