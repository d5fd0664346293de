"""Token ids that config.json may leave to the tokenizer beside it."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from omni_jax.config.fields import json_or_empty

# Maps a token's text to its id; None where it is unknown.
Words = Callable[[str], int | None]

UNKNOWN = -1  # stands for an id that no source states; no token has it


def no_words(text: str) -> int | None:
    """Stands in where there is no tokenizer: knows no token."""
    del text


class TokenizerFiles:
    """The tokens of a folder's tokenizer, from whichever of its files exist. They are read at the first lookup."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __call__(self, text: str) -> int | None:
        token = self._tokens.get(text)
        return token if type(token) is int and token >= 0 else None

    @cached_property
    def _tokens(self) -> Mapping[str, Any]:
        """Ids by text. A damaged file is ignored here: loading the tokenizer reports it."""
        whole, about = self._read("tokenizer.json"), self._read("tokenizer_config.json")
        words = dict(_object(_object(whole.get("model")).get("vocab"))) or self._read("vocab.json")
        listed, decoder = whole.get("added_tokens"), _object(about.get("added_tokens_decoder"))
        for added in listed if isinstance(listed, list) else ():
            if isinstance(added, Mapping) and isinstance(added.get("content"), str):
                words[added["content"]] = added.get("id")
        for number, added in decoder.items():
            if number.isdecimal() and len(number) < 10 and isinstance(_object(added).get("content"), str):
                words[added["content"]] = int(number)
        return {**words, **self._read("added_tokens.json")}

    def _read(self, name: str) -> dict[str, Any]:
        return json_or_empty(self.folder / name)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
