"""Conversions under disturbances: another conversion into the same folder, a kill, a full disk."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from omni_jax import checkpoint
from omni_jax.config import from_hf
from omni_jax.weights.layerwise import leaves

from . import ground
from .cases import BrokenPromiseError, Case

ANSWER_SECONDS = 240.0


class _Converter:
    """A process that converts on request, so that one start serves many cases."""

    def __init__(self):
        spawn = multiprocessing.get_context("spawn")
        self.line, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_convert, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.line.recv()

    def begin(self, source: Path, target: Path, wait: float) -> None:
        self.line.send((source, target, wait))

    def end(self) -> str | None:
        """Its answer: None if the folder is complete, else the reason."""
        if not self.line.poll(ANSWER_SECONDS):
            raise BrokenPromiseError("a conversion has no end")
        return self.line.recv()


def _convert(line: Connection) -> None:
    line.send(None)
    while True:
        try:
            source, target, wait = line.recv()
        except EOFError:
            return
        time.sleep(wait)
        try:
            checkpoint.convert(source, target)
            line.send(None)
        except (ValueError, OSError) as error:
            line.send(str(error))


def prepare(folder: Path) -> dict[str, Any]:
    source = ground.checkpoint(folder, "qwen2_5")
    config = from_hf(source)
    checkpoint.convert(source, folder / "right")
    return {
        "folder": folder, "source": source, "config": config, "right": _leaves(folder / "right", config),
        "converters": [_Converter(), _Converter()],
    }  # fmt: skip


def case(draw: random.Random, held: dict[str, Any]) -> Case:
    target = held["folder"] / "tried"
    shutil.rmtree(target, ignore_errors=True)
    maker = draw.choices([_two, _killed, _full], [6, 1, 1])[0]
    return maker(draw, held, target)


def _leaves(folder: Path, config: Any) -> dict[str, Any]:
    return leaves(checkpoint.load(folder, config, dtype=np.float32))


def _check(held: dict[str, Any], target: Path) -> None:
    """Raises if a folder that counts as complete has wrong content."""
    try:
        found = _leaves(target, held["config"])
    except ValueError as error:
        raise BrokenPromiseError(f"a folder that counts as whole is not: {error}") from error
    if unlike := [
        path for path, value in held["right"].items() if not np.array_equal(np.asarray(found[path]), np.asarray(value))
    ]:
        raise BrokenPromiseError(f"{len(unlike)} leaves are not as they should be, the first is {unlike[0]}")


def _two(draw: random.Random, held: dict[str, Any], target: Path) -> Case:
    waits = [0.0, draw.choice([0, 0, 0.01, 0.1, 0.3, draw.random()])]

    def run() -> None:
        for converter, wait in zip(held["converters"], waits, strict=True):
            converter.begin(held["source"], target, wait)
        said = [converter.end() for converter in held["converters"]]
        if long := [text for text in said if text and (len(text) >= 500 or len(text.splitlines()) > 1)]:
            raise BrokenPromiseError(f"a message of {len(long[0]):,} characters: {long[0]}")
        if None not in said:
            raise BrokenPromiseError(f"neither of two conversions succeeds: {said}")
        _check(held, target)

    return Case(f"two at a time, {waits[1]:.2f} s apart", run)


def _killed(draw: random.Random, held: dict[str, Any], target: Path) -> Case:
    wait, number = draw.random() * 2, draw.randrange(2)

    def run() -> None:
        converter = held["converters"][number]
        converter.begin(held["source"], target, 0)
        time.sleep(wait)
        os.kill(converter.process.pid, signal.SIGKILL)
        converter.process.join()
        if checkpoint.is_converted(target) and (target / "omni_jax.json").exists():
            _check(held, target)
        held["converters"][number] = converter = _Converter()
        converter.begin(held["source"], target, 0)
        if said := converter.end():
            raise BrokenPromiseError(f"does not go on after a kill: {said}")
        _check(held, target)

    return Case(f"killed after {wait:.2f} s", run)


def _full(draw: random.Random, held: dict[str, Any], target: Path) -> Case:
    """Runs in a shell, because output of Python itself counts too. Where no disk can be mounted, files may not grow."""
    size = draw.choice([1, 500, 1500, 3000, 4200, 5000, draw.randrange(6000)]) << 10
    command = [sys.executable, "-m", "omni_jax.cli", "convert", str(held["source"]), str(target / "converted")]

    def run() -> None:
        target.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(target)]
        mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0

        def bound() -> None:
            if not mounted:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size // 8, size // 8))
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        try:
            done = subprocess.run(command, capture_output=True, text=True, preexec_fn=bound)
            said = done.stderr.strip()
            if done.returncode not in (0, 1) or len(said.splitlines()) > 1 or len(said) >= 500:
                raise BrokenPromiseError(
                    f"exit code {done.returncode} and {len(said.splitlines())} lines: {said[:300]}"
                )
            if not done.returncode:
                _check(held, target / "converted")
        finally:
            if mounted:
                subprocess.run(["umount", str(target)], check=True)

    return Case(f"a disk of {size >> 10} KiB", run)
