"""Tries cases in a separate process and watches its time and memory; the process is restarted when a case ends it."""

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from .cases import WAITING, Bounds, Outcome
from .worker import memory, serve, worked

WATCH_SECONDS = 0.02
READY_SECONDS = 600.0  # to import, write and load tiny models, on a busy machine
LAST_WORDS = 1.0
PATIENCE = 15  # seconds of the clock for a second of work, on a busy machine
TIRED_BYTES = 3 << 30  # a process that has grown larger than this over many cases is restarted


class BrokenHarnessError(Exception):
    """The process that tries cases failed: a mistake of a generator, not of the tried code."""


def try_all(
    cases: Iterable[tuple[str, int]],
    *,
    seed: str,
    bounds: Bounds,
    seconds: float = float("inf"),
    folder: str | None = None,
) -> Iterator[Outcome]:
    """Yields the result of each case until the time is up.

    Args:
        cases: kinds, which are modules beside this one with ``prepare`` and ``case``, and numbers; a case depends on the
            seed, its kind and its number alone.
        folder: for files; by default one that is deleted.
    """
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="omni_jax_fuzz_") as scratch:
        worker = None
        try:
            for kind, number in cases:
                if time.monotonic() > until:
                    return
                worker = worker or _Worker(seed, folder or scratch, bounds)
                yield worker.attempt(kind, number)
                if not worker.process.is_alive() or memory("VmRSS", worker.process.pid) > TIRED_BYTES:
                    worker.end()
                    worker = None
        finally:
            if worker is not None:
                worker.end()


class _Worker:
    def __init__(self, seed: str, folder: str, bounds: Bounds):
        self.bounds, self.log = bounds, Path(folder) / f"{os.getpid()}.log"
        spawn = multiprocessing.get_context("spawn")
        self.line, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, seed, folder, str(self.log), bounds.letters))
        self.process.start()
        theirs.close()

    def hear(self, seconds: float):
        """The worker's next message, unless the case is late or too large."""
        try:
            if self.line.poll(seconds):
                return self.line.recv()
        except (EOFError, OSError):
            pass
        said = self.tail()
        self.end()
        raise BrokenHarnessError(f"the process that tries cases came to its end outside of one: {said}")

    def attempt(self, kind: str, number: int) -> Outcome:
        try:
            self.line.send((kind, number))
        except OSError:
            self.hear(0)
        _, what = self.hear(READY_SECONDS)
        before, clock = memory("VmRSS", self.process.pid), _Clock(self.process.pid)
        bound = max(self.bounds.seconds, WAITING.get(kind, 0))
        while True:
            with suppress(EOFError, OSError):
                if self.line.poll(WATCH_SECONDS):
                    outcome = self.line.recv()[1]
                    if outcome.growth > self.bounds.growth and not outcome.fault:  # too short to be observed from here
                        outcome = replace(outcome, fault=f"took {outcome.growth / 1e9:.1f} GB")
                    return outcome
            growth = memory("VmHWM", self.process.pid) - before
            if not self.process.is_alive():
                fault = f"the process died ({self.process.exitcode})"
            elif growth > self.bounds.growth:
                fault = f"took {growth / 1e9:.1f} GB and went on"
            elif late := clock.late(bound):
                fault = late
            else:
                continue
            place = self.stack()
            self.end()
            return Outcome(kind, number, what, fault, place, False, clock.worked, max(growth, 0))

    def stack(self) -> str:
        """The worker's stack in one line, innermost frame first."""
        if self.process.is_alive():
            size = self.log.stat().st_size
            os.kill(self.process.pid, signal.SIGUSR1)
            time.sleep(LAST_WORDS)
            with open(self.log, "rb") as file:
                file.seek(size)
                said = file.read().decode(errors="replace")
        else:
            said = self.tail()
        frames = [part.strip().removeprefix("File ") for part in said.splitlines() if part.strip().startswith("File ")]
        own = [frame for frame in frames if "/omni_jax/" in frame and "/tests/" not in frame]
        return " < ".join(frame.replace('"', "").split("/omni_jax/")[-1] for frame in (own or frames)[:3])

    def tail(self) -> str:
        return self.log.read_bytes()[-2000:].decode(errors="replace") if self.log.exists() else ""

    def end(self) -> None:
        """Closes the connection, which ends a worker, and does not wait for a busy one."""
        self.line.close()
        self.process.join(LAST_WORDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class _Clock:
    """The time of a case on a shared machine: processor time of its process, or time without any."""

    def __init__(self, process: int):
        self.process, self.before, self.began = process, worked(process), time.monotonic()
        self.worked, self.moved = 0.0, self.began

    def late(self, bound: float) -> str | None:
        """A message if a case has worked longer than the bound, done nothing for as long, or both by turns."""
        now, so_far = time.monotonic(), worked(self.process) - self.before
        if so_far > self.worked:
            self.worked, self.moved = so_far, now
        if self.worked > bound:
            return f"no end after {self.worked:.0f} s of work"
        if now - self.moved > bound:
            return f"no end after {now - self.moved:.0f} s of waiting"
        if now - self.began > PATIENCE * bound:
            return f"no end after {now - self.began:.0f} s"
        return None
