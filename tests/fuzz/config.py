"""The JSON files and templates of a checkpoint's folder: numbers and types replaced, keys missing, doubled or deep."""

import contextlib
import io
import json
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from omni_jax import Omni
from omni_jax.checkpoint.describe import describe

from . import ground, media
from .cases import Bounds, Case, fault_of
from .mutations import mutate, shown, written

QUESTION = [{"role": "user", "content": "Hello"}]
# Files that are read with the weights, and files that are read when they are needed.
WITH_WEIGHTS = ("config.json",)
ON_DEMAND = (
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json", "vocab.json",
    "chat_template.json", "chat_template.jinja", "tokenizer.json", "merges.txt",
)  # fmt: skip
TEMPLATES = [
    "", "{{ messages }}", "{{ 1 / 0 }}", "{{ messages[99].x.y }}", "{% for", "{{ raise_exception('no') }}",
    "{{ x.__class__ }}", "{{ messages | tojson }}", "{{ 'x' * 10 ** 6 }}", "{{ ''.join }}", "{{ none + 1 }}",
    "{{ messages[0].content[0].type }}", "\ud800", "{% set a = messages.append(1) %}{{ messages }}",
    "{{ messages | sum }}", "{% include 'x' %}", "{{ strftime_now('%') }}", "\0",
    "<|audio_pad|>{{ messages[0].content }}", "{{ tools[0] }}", "{{ range(10 ** 9) | list }}",
    "{{ self }}{{ cycler }}", "{{ loop }}",
]  # fmt: skip


def prepare(folder: Path) -> Any:
    models = {family: ground.model(folder, family, speech=False) for family in ground.FAMILIES}
    return models, folder


def case(draw: random.Random, held: Any) -> Case:
    models, folder = held
    family = draw.choice(list(models))
    source, model = models[family].folder, models[family]
    name = draw.choice([*WITH_WEIGHTS * 8, *ON_DEMAND])
    content, said = _content(draw, source, name)
    target = folder / "tried"
    shutil.rmtree(target, ignore_errors=True)
    ground.linked(source, target)
    ground.replace(target / name, content)
    if name == "chat_template.jinja" or draw.random() < 0.02:
        gone = draw.choice(["chat_template.json", "preprocessor_config.json", "vocab.json", "generation_config.json"])
        (target / gone).unlink(missing_ok=True)
        said = f"{said}, no {gone}"
    speech, picture = draw.choice([False, False, None, True]), media_question(draw)

    def of_weights() -> None:
        found = Omni.load(target, speech=speech)
        _use(found, picture)

    def on_demand() -> None:
        _use(Omni(model.parts, model.config, target), picture)

    actions = [lambda: describe(target)] if draw.random() < 0.2 else []
    actions.append(of_weights if name in WITH_WEIGHTS or draw.random() < 0.05 else on_demand)
    return Case(f"{family} {name}: {said}", lambda: [action() for action in actions])


def media_question(draw: random.Random) -> Any:
    kind, name = draw.choice([("image", "png"), ("audio", "flac"), ("video", "mp4"), ("text", "")])
    return [{"role": "user", "content": [{"type": kind, kind: media.good()[name] if name else "Hello"}]}]


def _use(found: Omni, question: Any) -> None:
    """Every use of a folder's small files; each use may be refused separately."""
    refused: list[Exception] = []
    for action in (
        lambda: found.defaults,
        lambda: found.prepare(QUESTION),
        lambda: found.prepare(question),
        lambda: found.speakers,
    ):
        try:
            action()
        except (ValueError, OSError) as error:
            refused.append(error)
    for error in sorted(refused, key=lambda error: not fault_of(error, Bounds.letters)):
        raise error


def _content(draw: random.Random, source: Path, name: str) -> tuple[bytes, str]:
    if name in ("chat_template.jinja", "merges.txt"):
        content = draw.choice(TEMPLATES).encode(errors="surrogatepass") if draw.random() < 0.7 else draw.randbytes(100)
        return content, shown(content)
    tree = json.loads(_published(source, name))
    said = []
    if draw.random() < 0.85:
        for _ in range(draw.choice([1, 1, 1, 2, 4])):
            tree, done = mutate(tree, draw, names=("model_type", "chat_template", "size", "thinker_config"))
            said.append(done)
    content = written(tree, draw)
    return content, f"{'; '.join(said)} ({len(content):,} bytes)"


@cache
def _published(source: Path, name: str) -> str:
    """The text of a file, or of the file that other releases have instead."""
    if (source / name).exists():
        return (source / name).read_text()
    if name == "tokenizer.json":
        from omni_jax.processing.prompt import load_tokenizer

        with contextlib.redirect_stdout(io.StringIO()):
            return load_tokenizer(source).backend_tokenizer.to_str()
    flat = json.loads((source / "preprocessor_config.json").read_text())
    picture = {key: flat[key] for key in ("image_mean", "image_std", "patch_size", "merge_size", "temporal_patch_size")}
    picture["size"] = {"shortest_edge": flat["min_pixels"], "longest_edge": flat["max_pixels"]}
    return json.dumps({"feature_extractor": flat, "image_processor": picture, "video_processor": picture})
