"""Conversations in all known spellings, with wrong types, arrays and nested values in unexpected places."""

import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from omni_jax.processing.options import OF_A_PART

from . import ground, media
from .cases import Case
from .mutations import TEXTS, mutate, shown, wild

KINDS = ("audio", "image", "video")
KEYS = [
    *KINDS,
    *(f"{kind}_url" for kind in KINDS),
    "input_audio",
    "text",
    "url",
    "path",
    "base64",
    "bytes",
    "array",
    "data",
]
NAMES = [
    *KEYS,
    *OF_A_PART,
    "role",
    "content",
    "type",
    "tool_calls",
    "reasoning_content",
    "name",
    "function",
    "arguments",
]


def prepare(folder: Path) -> Any:
    writers = [ground.model(folder, family, speech=False) for family in ground.FAMILIES]
    for writer in writers:
        writer.prepare([{"role": "user", "content": "Hello"}])
        writer.generate([{"role": "user", "content": "Hello"}], thinker_max_new_tokens=1)
    return writers


def case(draw: random.Random, writers: Any) -> Case:
    writer = draw.choice(writers)
    found: Any = conversation(draw)
    said = []
    for _ in range(draw.choice([0, 1, 1, 1, 2, 3])):
        found, done = mutate(found, draw, wild, NAMES)
        said.append(done)
    if draw.random() < 0.1:
        found = draw.choice([lambda: [found, conversation(draw)], lambda: tuple(found), lambda: {"messages": found}])()
    what = f"{'; '.join(said)} in {shown(found)}"
    if draw.random() < 0.05:
        return Case(f"generate {what}", lambda: writer.generate(found, thinker_max_new_tokens=1))
    if draw.random() < 0.05:
        return Case(f"generate_batch {what}", lambda: writer.generate_batch(found, thinker_max_new_tokens=1))
    tools = draw.choice([None, None, None, wild(draw), [{"type": "function", "function": {"name": "f"}}]])
    return Case(f"prepare {what}", lambda: writer.prepare(found, tools=tools))


def conversation(draw: random.Random) -> list[Any]:
    """A valid conversation."""
    messages: list[Any] = []
    if draw.random() < 0.3:
        messages.append({"role": "system", "content": "Be brief."})
    for _ in range(draw.choice([1, 1, 2])):
        messages.append({"role": "user", "content": content(draw)})
        if draw.random() < 0.3:
            messages.append(assistant(draw))
            messages.append({"role": "tool", "content": "ok"})
    return messages


def content(draw: random.Random) -> Any:
    if draw.random() < 0.2:
        return draw.choice(["Hello", *TEXTS])
    return [part(draw) for _ in range(draw.choice([1, 1, 2, 3]))]


def assistant(draw: random.Random) -> dict[str, Any]:
    call = {"function": {"name": "f", "arguments": draw.choice(['{"a": 1}', {"a": 1}])}}
    return draw.choice(
        [
            {"role": "assistant", "content": "Yes."},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {
                "role": "assistant",
                "content": "<think>\nWell.\n</think>\n\nYes.",
                "tool_calls": [{"type": "function", **call}],
            },
            {"role": "assistant", "reasoning_content": "Well.", "content": "Yes."},
        ]
    )


def part(draw: random.Random) -> Any:
    if draw.random() < 0.3:
        return draw.choice([{"type": "text", "text": draw.choice(TEXTS)}, {"text": "x"}, "x"])
    kind = draw.choice(KINDS)
    value = payload(draw, kind)
    spelt = draw.choice(
        [
            lambda: {"type": kind, kind: value},
            lambda: {"type": kind, kind: value},
            lambda: {kind: value},
            lambda: {"type": f"{kind}_url", f"{kind}_url": {"url": value}},
            lambda: {"type": kind, f"{kind}_url": value},
            lambda: {"type": kind, "url": value},
            lambda: {"type": kind, "path": value},
            lambda: {"type": kind, "base64": value},
            lambda: {
                "type": "input_audio",
                "input_audio": {"data": value, "format": draw.choice(["wav", "flac", "x"])},
            },
            lambda: {"type": kind, kind: {"array": value, "sampling_rate": 16_000}},
            lambda: {"type": kind, kind: {"bytes": value, "path": None}},
        ]
    )()
    for _ in range(draw.choice([0, 0, 1, 2])):
        spelt[draw.choice(OF_A_PART)] = draw.choice([None, 1, 2.0, 64, "1", True, wild(draw)])
    return spelt


def payload(draw: random.Random, kind: str) -> Any:
    """A small medium in one of the accepted forms."""
    numbers = np.random.default_rng(draw.getrandbits(32))
    sound = (numbers.random(4000) - 0.5).astype(np.float32)
    picture = numbers.integers(0, 255, (32, 40, 3), np.uint8)
    makers = {
        "audio": [lambda: sound, lambda: (sound, 8000), lambda: sound.tolist(), lambda: sound.astype(np.float64)],
        "image": [lambda: picture, lambda: Image.fromarray(picture), lambda: picture / 255, lambda: picture[..., 0]],
        "video": [lambda: np.stack([picture] * 4), lambda: [picture] * 4, lambda: [Image.fromarray(picture)] * 3],
    }[kind]
    name = draw.choice([name for name, of in media.OF.items() if of == kind])
    held = media.good()[name]
    files = [
        lambda: held,
        lambda: media.data_url(held, kind),
        lambda: media.as_path(held, name),
        lambda: media.raw(held),
    ]
    others = [
        lambda: wild(draw),
        lambda: "",
        lambda: f"{tempfile.gettempdir()}/none.{kind}",
        lambda: media.as_file(held),
    ]
    return draw.choice(draw.choice([makers, files, files, others]))()
