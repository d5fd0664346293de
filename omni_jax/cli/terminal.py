"""Shared by the shell's commands: a progress bar, and user errors as one line with exit code 2."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from omni_jax.errors import REPORT, cut, is_user_error

# Seconds between lines of progress where there is no terminal, as in a pod's log.
LINE_EVERY = 60.0

STOPPED = 130  # exit code after Ctrl-C

note = Console(stderr=True, highlight=False, soft_wrap=True)


class StoppedError(Exception):
    """Work that the user stopped with Ctrl-C; its message is printed."""


@contextmanager
def resumable() -> Iterator[None]:
    """Around work that resumes when the same command is given again; after Ctrl-C, a message says so."""
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError("the same command goes on where it was") from None


class Parser(argparse.ArgumentParser):
    """The arguments of a script, with its docstring as help; a wrong one is a ValueError, which ``run`` prints."""

    def __init__(self, text: str | None):
        super().__init__(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists what there is")


@contextmanager
def bar(action: str, *, bytewise: bool = True) -> Iterator[Callable[[int, int, str], None]]:
    """A bar over bytes or items; call it with (done, in all, name). Without a terminal, it is a line a minute."""
    if not note.is_terminal:
        yield _lines(action, bytewise)
        return
    count = DownloadColumn() if bytewise else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=note, transient=True) as progress:
        task = progress.add_task(action, total=None)
        yield lambda done, total, name: progress.update(
            task, completed=done, total=total, description=f"{action} {name}"
        )


def _lines(action: str, bytewise: bool) -> Callable[[int, int, str], None]:
    said = time.monotonic()

    def say(done: int, total: int, name: str) -> None:
        nonlocal said
        if time.monotonic() - said >= LINE_EVERY:
            said = time.monotonic()
            count = f"{done / 1e9:.1f} of {total / 1e9:.1f} GB" if bytewise else f"{done:,} of {total:,}"
            note.print(f"{action}: {count}, {name}", markup=False)

    return say


def run(main: Callable[[], int | None], name: str) -> None:
    """Runs ``main`` and exits with its code. A user error is printed in one line, with exit code 2; an error that
    may pass, such as a failing network or a full disk, likewise with exit code 1.

    OMNI_JAX_DEBUG=1 shows the traceback instead.

    Args:
        main: the work; returns an exit code.
        name: of the command, for messages.
    """
    try:
        code = main() or 0
        if code == STOPPED:  # typer's own exit code for Ctrl-C
            raise KeyboardInterrupt
    except (KeyboardInterrupt, StoppedError) as error:
        said = f"; {error}" if str(error) else ""
        note.print(f"{name}: stopped{said}", markup=False)
        code = STOPPED
    except Exception as error:
        # Typer's exceptions for a wrong option or a missing argument have no public base, but all have this method.
        usage = getattr(error, "format_message", None)
        if os.environ.get("OMNI_JAX_DEBUG") or not (usage or isinstance(error, ValueError | OSError)):
            raise
        said = cut(usage(), REPORT) if usage else str(error)  # some versions of typer repeat the whole input
        note.print(f"{name}: {' '.join(said.split())}", markup=False)
        code = 1 if isinstance(error, OSError) and not is_user_error(error) else 2
    sys.exit(code)
