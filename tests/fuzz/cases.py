"""What a case of fuzzing is, and what counts as a fault of it."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

KINDS = ("media", "config", "weights", "conversations", "options", "addresses", "jobs", "conversions")
# Seconds for kinds that work in other processes, which a watch over one process counts as waiting.
WAITING = {"conversions": 300.0}
PACKAGE = find_spec("omni_jax").submodule_search_locations[0]  # pyright: ignore  # not imported, for that takes seconds


@dataclass(frozen=True)
class Bounds:
    """A case that exceeds these is a fault.

    Attributes:
        seconds: of processor time, or of waiting.
        growth: bytes of memory beyond those before the case, at the peak.
        letters: of a message.
    """

    seconds: float = 20.0
    growth: int = 10**9
    letters: int = 500


@dataclass(frozen=True)
class Case:
    """One input, ready to be tried.

    Attributes:
        what: a short description for the report.
        run: tries it.
    """

    what: str
    run: Callable[[], object]


@dataclass(frozen=True)
class Outcome:
    """The result of a case: ``fault`` is None if it was answered or refused correctly.

    Attributes:
        kind, number: of the case.
        place: where a fault was raised, so that faults of one cause can be counted together.
        seconds: processor time. growth: bytes of memory at the peak.
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
    """A case ended without an error, but its result is wrong."""


def fault_of(error: BaseException, letters: int) -> str | None:
    """The fault of an error from bad input: None for a ValueError or OSError of one short line."""
    said = str(error)
    if not isinstance(error, ValueError | OSError):
        return f"{type(error).__name__}: {said}"
    if isinstance(error, UnicodeError):  # a ValueError without a message of ours
        return f"{type(error).__name__}: {said}"
    if not said.strip():
        return f"{type(error).__name__} without a word"
    if len(said.splitlines()) > 1:
        return f"a message of {len(said.splitlines())} lines: {said}"
    if len(said) >= letters:
        return f"a message of {len(said):,} characters: {said}"
    return None


def place_of(error: BaseException) -> str:
    """The innermost line of our sources in an error's traceback, and the line that raised it."""
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
