"""What the conversion scripts share: a progress bar, and errors in one line with exit code 2."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

note = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def bar(action: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar over bytes, to be called with (bytes done, bytes in all, name)."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=note, transient=True) as progress:
        task = progress.add_task(action, total=None)
        yield lambda done, total, name: progress.update(
            task, completed=done, total=total, description=f"{action} {name}"
        )


def run(main: Callable[[], int]) -> None:
    """Runs a script's ``main`` and exits with its code; a user's mistake is one line and exit code 2."""
    try:
        code = main()
    except (ValueError, OSError) as error:
        note.print(" ".join(str(error).split()), markup=False)
        code = 2
    except KeyboardInterrupt:
        note.print("stopped")
        code = 130
    sys.exit(code)
