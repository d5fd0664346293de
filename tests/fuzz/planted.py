"""Deliberate faults by their number, to check that the harness finds each."""

import os
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from .cases import Case


def prepare(folder: Path) -> Path:
    return folder


def case(draw: random.Random, folder: Path) -> Case:
    name = draw.choice(list(PLANTED))
    return Case(name, PLANTED[name])


def number_of(name: str, seed: str) -> int:
    """The number of the case that has this fault."""
    numbers = range(1000)
    return next(n for n in numbers if random.Random(f"{seed}/planted/{n}").choice(list(PLANTED)) == name)


def refuse(text: str) -> Any:
    def run() -> NoReturn:
        raise ValueError(text)

    return run


def wrong_kind() -> None:
    len(5)  # pyright: ignore


def work_for_ever() -> None:
    while True:
        pass


def take_memory() -> None:
    held = []
    while True:
        held.append(bytes(10_000_000).replace(b"\0", b"x"))
        time.sleep(0.01)


def take_memory_for_a_moment() -> None:
    bytes(300_000_000).replace(b"\0", b"x")


def print_traceback() -> None:
    try:
        len(5)  # pyright: ignore
    except TypeError:
        traceback.print_exc()


PLANTED = {
    "answered": lambda: None,
    "refused": refuse("x: expected a number, got a word; give a number"),
    "wrong kind": wrong_kind,
    "long": refuse("x" * 500),
    "two lines": refuse("x\ny"),
    "wordless": refuse(" "),
    "traceback": print_traceback,
    "exit": lambda: sys.exit(1),
    "death": lambda: os._exit(3),
    "waits": lambda: time.sleep(3600),
    "works": work_for_ever,
    "memory": take_memory,
    "moment": take_memory_for_a_moment,
}
