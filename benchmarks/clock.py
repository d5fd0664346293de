"""The clock of both sides: the wall's or, with ``--pinned``, the processor time of one thread on one core.

Company on a shared machine lengthens a wall's seconds, and those of a side that waits for its threads most; of processor time it
takes what caches and memory are shared. Imported before jax and torch, for both count the cores as they are imported.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable

import numpy as np

PINNED = "--pinned" in sys.argv
if PINNED:
    if not hasattr(os, "sched_setaffinity"):
        sys.exit("--pinned: expected a system that pins processes to cores (Linux); leave the option out")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"


def add_option(parser: argparse.ArgumentParser) -> None:
    """Says what the option is; it was read when this file was imported."""
    parser.add_argument("--pinned", action="store_true", help="one thread on one core, timed by processor time (Linux)")


def spent_both(action: Callable[[], object]) -> np.ndarray:
    """Seconds by the wall, and of this process's processors."""
    start = np.array([time.perf_counter(), time.process_time()])
    action()
    return np.array([time.perf_counter(), time.process_time()]) - start


def spent(action: Callable[[], object]) -> float:
    """Seconds by the clock that this run counts with."""
    return float(spent_both(action)[int(PINNED)])


def threads() -> str:
    """What the rows below were timed with."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return "one pinned thread, processor time" if PINNED else f"{cores} cores, wall time"
