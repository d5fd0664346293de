"""The pages of the documentation and their blocks of code."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
OTHERS = ("README.md", "CONTRIBUTING.md", "tpu/launch/README.md", "tests/fuzz/README.md", "omni_jax/assets/README.md")
PAGES = [*(ROOT / page for page in OTHERS), *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)
OPERATORS = ("&&", "|", ";")


class Command(NamedTuple):
    """One command of a line of a shell.

    Attributes:
        line: the line as it is written.
        words: the command's own words, without variables that are set for it.
        variables: names of those.
        piped: whether a pipe takes its output.
    """

    line: str
    words: tuple[str, ...]
    variables: tuple[str, ...]
    piped: bool


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return [code for _, found, code in FENCE.findall(text(page)) if found == language]


def unlabelled(page: Path) -> list[str]:
    """Lines that Markdown shows as code although no fence says of which kind: indented by four, after an empty line."""
    return re.findall(r"^\n {4}.*$", FENCE.sub("", text(page)), re.MULTILINE)


def commands(block: str) -> list[Command]:
    """The commands of a block, one after another; comments are left out."""
    found = []
    for line in block.replace("\\\n", "").splitlines():
        reader = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        reader.whitespace_split = True
        words: list[str] = []
        for word in [*reader, ";"]:
            if word not in OPERATORS:
                words.append(word)
            elif words:
                own = [each for each in words if re.match(r"[A-Z_]+=", each)]
                own = own if words[: len(own)] == own else []
                variables = tuple(each.partition("=")[0] for each in own)
                found.append(Command(line, tuple(words[len(own) :]), variables, word == "|"))
                words = []
    return found
