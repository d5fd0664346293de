"""The clock of both sides: wall time or, with ``--pinned``, the processor time of one thread on one core.

Other load on a shared machine lengthens wall time, most for a side that waits for its threads; of processor time it
only costs shared caches and memory. Imported before jax and torch, because both count the cores on import.
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
    """Adds the option to a parser's help; its value was read when this file was imported."""
    parser.add_argument("--pinned", action="store_true", help="one thread on one core, timed by processor time (Linux)")


def spent_both(action: Callable[[], object]) -> np.ndarray:
    """Seconds of wall time, and of this process's processor time."""
    start = np.array([time.perf_counter(), time.process_time()])
    action()
    return np.array([time.perf_counter(), time.process_time()]) - start


def spent(action: Callable[[], object]) -> float:
    """Seconds by the clock of this run."""
    return float(spent_both(action)[int(PINNED)])


def threads() -> str:
    """How the rows were timed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return "one pinned thread, processor time" if PINNED else f"{cores} cores, wall time"
