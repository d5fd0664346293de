"""Every option of every call, with wrong types and boundary values."""

import random
from pathlib import Path
from typing import Any

import numpy as np

from omni_jax import Omni, Sampling
from omni_jax.processing.options import MediaOptions

from . import ground, media
from .cases import Case
from .mutations import shown, wild

HELLO = [{"role": "user", "content": "Hello"}]
PICTURE = [{"type": "image", "image": np.zeros((64, 64, 3), np.uint8)}]
FILM = [{"type": "video", "video": media.good()["mp4"]}]
SAMPLING = list(Sampling.__dataclass_fields__)
MEDIA = [*MediaOptions.__dataclass_fields__, "use_audio_in_video", "sample_fps"]
# Misspelt names; internal names of ours; names of the libraries below.
STRANGE = [
    "temperature", "spk", "max_new_tokens", "thinker_return_dict_in_generate", "thinker_num_beams",
    "thinker_use_cache", "given", "x", "do_sampel", "tokenize", "chat_template", "return_dict", "documents",
    "padding", "self", "messages", "options", "reader", "tokenizer", "conversations", "enable_thinking",
    "add_generation_prompt", "continue_final_message", "return_tensors", "words", "thinker_", "talker_x", "audio",
    "images", "videos", "text", "attention_mask", "input_ids", "mesh", "generation_config",
]  # fmt: skip
ASKED = [
    "seed", "thinker", "talker", "predictor", "speaker", "return_audio", "compat", "media", "tools", "template",
    "progress", *(f"thinker_{name}" for name in SAMPLING), *(f"talker_{name}" for name in SAMPLING),
    *(f"predictor_{name}" for name in SAMPLING),
]  # fmt: skip
# Values of the right type, by the end of a name: many faults are found only after valid values.
RIGHT = {
    "temperature": (0.5, 0, 1e-9, 1e9), "top_k": (1, 0, 50, 10**6), "top_p": (0.5, 1, 1e-9), "penalty": (1.0, 1.5, 1e-9, 1e9),
    "new_tokens": (1, 2, 5, 0), "do_sample": (True, False, None, 1), "token_id": (1, [1, 2], [], list(range(9)), -1),
    "strings": ("x", ["a", "b"], [], ""), "seed": (0, [1], 2**40, -1), "thinker": (Sampling(top_k=3), Sampling()),
    "talker": (Sampling(temperature=1), None), "speaker": ("ethan", ["Chelsie"], "nobody", ["Ethan", "Chelsie"]),
    "return_audio": (True, False, None), "compat": ("transformers-5.23", "x", ""), "media": (MediaOptions(fps=1), None),
    "tools": ([], [{"type": "function"}], [{}]), "template": ({}, {"enable_thinking": False}, {"x": 1}),
}  # fmt: skip


def prepare(folder: Path) -> Any:
    models = [ground.model(folder, family, context=256) for family in ground.FAMILIES]
    models += [ground.model(folder, "qwen3", context=256, speech=False)]
    for model in models:
        speech = (
            {"return_audio": True, "talker_max_new_tokens": 1} if model.speakers and model.synthesizer.loaded else {}
        )
        for content in ("Hello", PICTURE, FILM):
            model.generate([{"role": "user", "content": content}], thinker_max_new_tokens=1, **speech)
        model.generate(HELLO, thinker_max_new_tokens=1, thinker_top_k=3, thinker_repetition_penalty=1.1)
    return models


def case(draw: random.Random, models: Any) -> Case:
    model, maker = draw.choice(models), draw.choices([_request, _made, _piece, _load], [10, 3, 4, 1])[0]
    return maker(draw, model)


def _value(draw: random.Random, name: str) -> Any:
    for end, values in RIGHT.items():
        if name.endswith(end) and draw.random() < 0.4:
            return draw.choice(values)
    if name in media.STATED and draw.random() < 0.4:
        return draw.choice(media.STATED[name])
    if name == "template" and draw.random() < 0.7:
        return {draw.choice(STRANGE): wild(draw)}
    return wild(draw)


def _request(draw: random.Random, model: Omni) -> Case:
    call = draw.choice(
        ["generate", "generate", "generate_batch", "stream", "stream_batch", "speak", "stream_speech", "prepare"]
    )
    names = draw.choices([ASKED, MEDIA, STRANGE, ["steps", "conversation"]], [6, 3, 4, 1])
    options = {draw.choice(draw.choice([names[0], ASKED])): None for _ in range(draw.choice([1, 1, 1, 2, 3]))}
    taken = (
        {"conversations"} if call in ("speak", "stream_speech") else {"conversation", "conversations"}
    )  # by position
    options = {name: _value(draw, name) for name in options if name not in taken}
    asked = _asked(draw, call)
    what = f"{call}({shown(asked)}, {', '.join(f'{name}={shown(value)}' for name, value in options.items())})"
    short = {} if call == "prepare" else {"talker_max_new_tokens": 1}
    short |= {} if call in ("prepare", "speak", "stream_speech") else {"thinker_max_new_tokens": 1}
    if draw.random() < 0.3:  # speech without a limit would be hundreds of frames
        short.pop("thinker_max_new_tokens", None)
    if not model.synthesizer.loaded:
        short.pop("talker_max_new_tokens", None)

    def run() -> None:
        found = getattr(model, call)(asked, **{**short, **options})
        if call.startswith("stream"):
            for _, _ in zip(range(3), found, strict=False):
                pass

    return Case(what, run)


def _asked(draw: random.Random, call: str) -> Any:
    if draw.random() < 0.08:
        return wild(draw)
    if call in ("speak", "stream_speech"):
        return draw.choice(["Good morning!", "x", " ", "<|im_end|>"])
    content = draw.choices(["Hello", PICTURE, FILM], [7, 1, 1])[0]
    one = [{"role": "user", "content": content}]
    several = call.endswith("batch") or (call == "prepare" and draw.random() < 0.2)
    return [one] * draw.choice([1, 2]) if several else one


def _made(draw: random.Random, model: Omni) -> Case:
    """The option objects alone."""
    kind, names = draw.choice([(Sampling, SAMPLING), (MediaOptions, MEDIA[:-2])])
    options = {name: _value(draw, name) for name in draw.sample(names, draw.choice([1, 1, 2]))}
    said = f"{kind.__name__}({', '.join(f'{name}={shown(value)}' for name, value in options.items())})"
    if draw.random() < 0.5:
        return Case(f"{said} of prepare", lambda: model.prepare(HELLO, media=kind(**options)))
    return Case(said, lambda: kind(**options))


def _piece(draw: random.Random, model: Omni) -> Case:
    """Parts alone: arrays of any shape."""
    numbers = np.random.default_rng(draw.getrandbits(32))

    def array(*right: int) -> Any:
        if draw.random() < 0.3:
            return wild(draw)
        shape = [draw.choice([size, size, size, size + 1, 0, 1]) for size in right][
            : draw.choice([9, 9, len(right) - 1])
        ]
        values = (numbers.standard_normal(shape) * draw.choice([0, 1, 50])).astype(
            draw.choice(["f4", "i4", "i8", "f8", "?"])
        )
        return draw.choice([values, values, values.tolist(), list(values) if values.ndim else values])

    sight = model.config.thinker.vision_encoder
    call = draw.choice(["encode_audio", "encode_vision", "decode_codes", "logits"])
    given: dict[str, Any] = {}
    if call == "encode_audio":
        asked = array(*draw.choice([(128, 100), (2, 128, 100)]))
        given = {draw.choice(["mask", "lengths"]): array(*draw.choice([(2,), (2, 100)]))} if draw.random() < 0.7 else {}
    elif call == "encode_vision":
        asked, given = array(16, sight.patch_width), {"grid": draw.choice([[[1, 4, 4]], [[4, 2, 2]], array(1, 3)])}
    elif call == "decode_codes":
        asked = array(*draw.choice([(4, 3), (2, 4, 3), (1, 3)]))
        given = {
            name: _value(draw, name)
            for name in draw.sample(["lengths", "speaker", "seed", "noise"], draw.choice([0, 1, 2]))
        }
    else:
        asked, given = array(1, 5), {"mask": array(1, 5)} if draw.random() < 0.6 else {}
    said = ", ".join(f"{name}={shown(value)}" for name, value in given.items())
    return Case(f"{call}({shown(asked)}, {said})", lambda: getattr(model, call)(asked, **given))


def _load(draw: random.Random, model: Omni) -> Case:
    name = draw.choice(["path", "mesh", "dtype", "speech", "progress", "allow_local"])
    right = {
        "mesh": ["data=1", "v6e-8", "data=0", "x", "data=3"],
        "dtype": ["float32", "bfloat16", "int8", "float64"],
        "speech": [1, 0],
    }
    value = draw.choice([wild(draw), *right.get(name, [])])
    options = {"path": model.folder, "speech": False, name: value}
    return Case(f"load({name}={shown(value)})", lambda: Omni.load(**options))
