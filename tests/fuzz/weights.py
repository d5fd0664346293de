"""Files of weights: headers and bodies of safetensors, their index, the pickle of voices, and converted pieces."""

import json
import random
import shutil
import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from omni_jax import checkpoint, weights
from omni_jax.config import from_hf
from omni_jax.weights.speakers import FILE, read_speakers

from . import ground
from .cases import Case
from .mutations import EDGES, damaged, mutate, written

SPEAKING = "qwen2_5"


def prepare(folder: Path) -> Any:
    published = {family: ground.checkpoint(folder, family) for family in ground.FAMILIES}
    for family, source in published.items():
        checkpoint.convert(source, folder / f"{family}_converted")
    return published, {family: from_hf(source) for family, source in published.items()}, folder


def case(draw: random.Random, held: Any) -> Case:
    published, configs, folder = held
    how = draw.choices([_header, _body, _index, _voices, _piece, _manifest], [5, 2, 2, 5, 4, 2])[0]
    family = SPEAKING if how is _voices else draw.choice(list(published))
    source = folder / f"{family}_converted" if how in (_piece, _manifest) else published[family]
    path, content, said = how(draw, source)
    target = folder / "tried"
    shutil.rmtree(target, ignore_errors=True)
    ground.linked(source, target)
    path = target / path.relative_to(source)
    if content is None:
        path.unlink()
    else:
        ground.replace(path, content)
    reader, speech = (checkpoint if how in (_piece, _manifest) else weights), draw.choice([True, False])

    def run() -> None:
        if how is _voices:
            read_speakers(target, configs[family])
        else:
            reader.load(target, configs[family], dtype=np.float32, speech=speech)

    return Case(f"{family} {path.relative_to(target)}: {said}", run)


def _header(draw: random.Random, source: Path) -> tuple[Path, bytes | None, str]:
    """The header of safetensors: shapes, dtypes and offsets, or its length."""
    path = draw.choice(sorted(source.glob("*.safetensors")))
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    tree, said = json.loads(content[8 : 8 + size]), []
    for _ in range(draw.choice([0, 1, 1, 2])):
        tree, done = mutate(tree, draw, names=("__metadata__", "dtype", "shape", "data_offsets"))
        said.append(done)
    head = written(tree, draw)
    length = len(head) if draw.random() < 0.8 else draw.choice(EDGES[:-1]) % 2**64
    return path, struct.pack("<Q", length) + head + content[8 + size :], f"header of {length}: {'; '.join(said)}"


def _body(draw: random.Random, source: Path) -> tuple[Path, bytes | None, str]:
    path = draw.choice(sorted(source.glob("*.safetensors")))
    if draw.random() < 0.1:
        return path, None, "gone"
    content, said = damaged(path.read_bytes(), draw)
    return path, content, said


def _index(draw: random.Random, source: Path) -> tuple[Path, bytes | None, str]:
    path = source / "model.safetensors.index.json"
    tree, said = mutate(json.loads(path.read_text()), draw)
    return path, written(tree, draw), said


def _voices(draw: random.Random, source: Path) -> tuple[Path, bytes | None, str]:
    """spk_dict.pt: the pickle in it, the numbers beside that, or the archive around them."""
    content = (source / FILE).read_bytes()
    if draw.random() < 0.3:
        content, said = damaged(content, draw, head=5000)
        return source / FILE, content, f"archive, {said}"
    said, packed = "", BytesIO()
    with zipfile.ZipFile(BytesIO(content)) as archive, zipfile.ZipFile(packed, "w") as out:
        names = archive.namelist()
        chosen = draw.choice([name for name in names if name.endswith("data.pkl")] * 4 + names)
        for name in names:
            held = archive.read(name)
            if name == chosen:
                held, done = _pickle(held, draw) if name.endswith(".pkl") else damaged(held, draw)
                said = f"{name}, {done}"
            how = draw.choices([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], [9, 1])[0]
            out.writestr(draw.choices([name, name.upper(), f"../{name}"], [50, 1, 1])[0], held, how)
        if draw.random() < 0.05:
            out.writestr("x/data/9", bytes(300_000_000), zipfile.ZIP_DEFLATED, 1)
    return source / FILE, packed.getvalue(), said


def _pickle(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Inserts opcodes, among them those that call, copy and fill memory."""
    if draw.random() < 0.6:
        return damaged(content, draw, head=len(content))
    program = draw.choice(
        [
            b"cos\nsystem\n(X\x02\0\0\0idtR.",
            b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.",
            b"(" * 1_000_000 + b".",
            b"]" + b"(]h\0h\0e" * 1000 + b".",
            b"}q\0" + b"h\0" * 100_000 + b".",
            b"L" + b"9" * 100_000 + b"L\n.",
            b"X\xff\xff\xff\x7fx.",
            b"\x8a\xff" + b"\xff" * 255 + b".",
            b"N" * 100_000 + b".",
            b"(" + b"I1\n" * 1000 + b"t" + b"\x85" * 100_000 + b".",
            b"r\xff\xff\xff\x7f.",
            b"j\xff\xff\xff\x7f.",
            b"B\xff\xff\xff\xff.",
            b".",
            b"",
        ]
    )
    if draw.random() < 0.5:
        return program, f"{program[:20]}"
    spot = draw.randrange(len(content))
    return content[:spot] + program[:-1] + content[spot:], f"{program[:20]} put in at {spot}"


def _piece(draw: random.Random, source: Path) -> tuple[Path, bytes | None, str]:
    """A file of the converted weights, mostly of its old size, because other sizes are refused at once."""
    path = draw.choice(sorted(path for path in (source / "weights").rglob("*") if path.is_file()))
    if draw.random() < 0.1:
        return path, None, "gone"
    old = path.read_bytes()
    content, said = damaged(old, draw, head=500)
    if draw.random() < 0.8:
        content = content[: len(old)].ljust(len(old), b"\0")
    return path, content, said


def _manifest(draw: random.Random, source: Path) -> tuple[Path, bytes | None, str]:
    path = source / "omni_jax.json"
    tree, said = mutate(json.loads(path.read_text()), draw, names=("pieces", "shape", "stacked", "bytes", "dtype"))
    if draw.random() < 0.3 and isinstance(tree, dict):
        tree["pieces"] = draw.choice(
            ["", "x", "file:///none", "memory://x", "http://127.0.0.1:9/x", "\0", "x" * 5000, "gs://"]
        )
        said += f", pieces {tree['pieces'][:30]!r}"
    return path, written(tree, draw), said
