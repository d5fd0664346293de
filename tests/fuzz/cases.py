"""What a case of fuzzing is, and what counts as a fault of it."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

KINDS = ("media", "config", "weights", "conversations", "options", "addresses", "jobs", "conversions")
# Seconds for kinds whose work other processes do, which a watch over one process takes for waiting.
WAITING = {"conversions": 300.0}
PACKAGE = find_spec("omni_jax").submodule_search_locations[0]  # pyright: ignore  # not imported, for that takes seconds


@dataclass(frozen=True)
class Bounds:
    """Beyond these a case is at fault.

    Attributes:
        seconds: of the processor, or of waiting for something else.
        growth: bytes of memory beyond what the process had before the case, at their highest.
        letters: of a message.
    """

    seconds: float = 20.0
    growth: int = 10**9
    letters: int = 500


@dataclass(frozen=True)
class Case:
    """One input, made and ready to be tried.

    Attributes:
        what: it is, in a few words, for the report.
        run: tries it.
    """

    what: str
    run: Callable[[], object]


@dataclass(frozen=True)
class Outcome:
    """What became of a case: ``fault`` is None where it was answered or refused as it should be.

    Attributes:
        kind, number: of the case.
        place: where a fault was raised, so that those of one cause can be counted together.
        seconds: of the processor that it took. growth: bytes of memory, at their highest.
    """

    kind: str
    number: int
    what: str
    fault: str | None
    place: str
    refused: bool
    seconds: float
    growth: int


class BrokenPromiseError(Exception):
    """A case ended without an error, but what it left is wrong."""


def fault_of(error: BaseException, letters: int) -> str | None:
    """What is wrong with an error that bad input gave: None for a ValueError or OSError of one short line."""
    said = str(error)
    if not isinstance(error, ValueError | OSError):
        return f"{type(error).__name__}: {said}"
    if isinstance(error, UnicodeError):  # a ValueError that nobody put into words
        return f"{type(error).__name__}: {said}"
    if not said.strip():
        return f"{type(error).__name__} without a word"
    if len(said.splitlines()) > 1:
        return f"a message of {len(said.splitlines())} lines: {said}"
    if len(said) >= letters:
        return f"a message of {len(said):,} characters: {said}"
    return None


def place_of(error: BaseException) -> str:
    """The innermost place of our own sources that an error came through, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    own = [frame for frame in frames if frame.filename.startswith(PACKAGE)]
    last = frames[-1]
    raised = f"{Path(last.filename).name}:{last.lineno}"
    if not own:
        return raised
    at = f"{Path(own[-1].filename).relative_to(PACKAGE)}:{own[-1].lineno}"
    return at if own[-1] is last else f"{at} ({raised})"
