"""A process that tries requested cases, one at a time; its parent observes what a case does to it."""

import faulthandler
import importlib
import os
import random
import signal
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

from .cases import Case, Outcome, fault_of, place_of

PRINTED = b"Traceback (most recent call last)"


def serve(line: Connection, seed: str, folder: str, log: str, letters: int) -> None:
    """Tries the cases whose kinds and numbers arrive over the connection, until it is closed.

    It sends two messages for each: ("begins", description) and ("ends", Outcome).

    Args:
        folder: for the files of all kinds.
        log: file of standard output and standard error, and of the stack where SIGUSR1 asks for it.
    """
    silenced = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(silenced, 1)
    os.dup2(silenced, 2)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    warnings.simplefilter("ignore")
    grounds = {}
    while True:
        try:
            kind, number = line.recv()
        except EOFError:
            return
        module = importlib.import_module(f"{__package__}.{kind}")
        if kind not in grounds:
            grounds[kind] = module.prepare(Path(folder))
        case = module.case(random.Random(f"{seed}/{kind}/{number}"), grounds[kind])
        line.send(("begins", case.what))
        line.send(("ends", Outcome(kind, number, case.what, *_tried(case, log, letters))))


def _tried(case: Case, log: str, letters: int) -> tuple[str | None, str, bool, float, int]:
    """The fields of an Outcome beside the case."""
    said = os.path.getsize(log)
    clear_peak()
    before, began = memory("VmRSS"), worked()
    fault, place, refused = None, "", False
    try:
        case.run()
    except BaseException as error:  # a SystemExit too would be one
        refused, fault, place = True, fault_of(error, letters), place_of(error)
        if fault:
            traceback.print_exc()
    seconds, growth = worked() - began, memory("VmHWM") - before
    if fault is None:
        with open(log, "rb") as file:
            file.seek(said)
            if PRINTED in (printed := file.read()):
                fault = f"printed a traceback: {printed[-300:].decode(errors='replace')}"
    return fault, place, refused, seconds, growth


def clear_peak() -> None:
    """Resets the kernel's record of this process' peak memory."""
    Path("/proc/self/clear_refs").write_text("5")


def memory(name: str, process: int | str = "self") -> int:
    """Bytes of a process: VmRSS now, VmHWM at its peak; 0 if it has ended."""
    try:
        found = Path(f"/proc/{process}/status").read_text().split(f"{name}:")
    except OSError:
        return 0
    return int(found[1].split()[0]) * 1024 if len(found) == 2 else 0


def worked(process: int | str = "self") -> float:
    """Processor seconds of a process so far; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
