"""The files of a checkpoint's processor, as any release of Transformers writes them.

processor_config.json          of Transformers 5: an object for each part; where it has one, that is used
video_preprocessor_config.json of 4.5x: the part of videos
preprocessor_config.json       as published: sound and pictures in one object
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omni_jax.config import read_json

NESTED, VIDEO, FLAT = "processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"
# A part's names in processor_config.json, and its own files, in Transformers' order.
PARTS = {
    "sound": (("feature_extractor", "audio_processor"), (FLAT,)),
    "image": (("image_processor",), (FLAT,)),
    "video": (("video_processor",), (VIDEO, FLAT)),
}


class Numbers(NamedTuple):
    """The parameters of a part of a processor, and the file they are from, for messages."""

    file: str
    values: Mapping[str, Any]


def read_processor(folder: Path, part: str) -> Numbers:
    """The parameters of a part: ``sound``, ``image`` or ``video``.

    Raises:
        ValueError: no file states them, or a file cannot be read.
    """
    names, files = PARTS[part]
    nested = read_json(folder / NESTED) if (folder / NESTED).is_file() else {}
    if name := next((name for name in names if isinstance(nested.get(name), Mapping)), None):
        return Numbers(f"{NESTED}: {name}", nested[name])
    for file in files:
        if (folder / file).is_file():
            return Numbers(file, read_json(folder / file))
    if part == "video":
        return read_processor(folder, "image")
    raise ValueError(
        f"{folder}: {'sound' if part == 'sound' else 'pictures'} cannot be read without {FLAT} or {NESTED}; copy it from the "
        "checkpoint that this one was made from"
    )
