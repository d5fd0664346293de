"""omni-jax batch on every host of a pod: each host answers its share of the lines, and the first one reports.

    python tpu/pod_inference.py gs://bucket/in.jsonl gs://bucket/answers.jsonl --model gs-or-local-folder --slots 64

Several hosts can share a model that is too large for one: --mesh v5e-16 is one copy on four hosts of four chips.

Start it on all hosts, with the same arguments. On Cloud TPU, GKE, Slurm and Open MPI the hosts find each other;
elsewhere say --coordinator HOST:PORT --processes N --process I. All other arguments are those of omni-jax batch, which
--help lists.

Exit code 2 is a user error, in the arguments or the input, which a restart does not mend. After any other, start it again:
it resumes. SIGTERM ends it soon, with exit code 143 and all finished lines durable. If one process ends so, or by a
user error, all do.
"""

import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import jax
import typer

from omni_jax.cli.batch import batch
from omni_jax.cli.main import keep_programs
from omni_jax.cli.terminal import Parser, note, run

NAME = "pod_inference"
# The coordinator's keys: the exit code of the first process that ended early, and the processes that left.
ENDED, LEFT = "omni_jax_ended", "omni_jax_left"
# Seconds between two checks of the others; for a stopped main thread to react; for it to save its lines.
LOOK, HEAR, SAVE = 0.5, 3.0, 20.0
TERMINATED = 128 + signal.SIGTERM
# Set when this process has joined the others (earlier, JAX would treat a request to the coordinator as a fatal error),
# and when it leaves them.
joined, leaving = threading.Event(), threading.Event()


def main(arguments: Sequence[str] | None = None) -> int | None:
    parser = Parser(__doc__)
    parser.add_argument("--coordinator", help="host and port of the first process", metavar="HOST:PORT")
    parser.add_argument("--processes", type=int, help="how many there are", metavar="N")
    parser.add_argument("--process", type=int, help="which one this is, from 0", metavar="I")
    wanted = list(sys.argv[1:] if arguments is None else arguments)
    given, rest = parser.parse_known_args([argument for argument in wanted if argument not in ("-h", "--help")])
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    command.command(help=__doc__)(batch)
    if set(wanted) & {"-h", "--help"}:
        return command(["--help"], standalone_mode=False)
    meet(given.coordinator, given.processes, given.process)
    keep_programs()
    return command(rest, standalone_mode=False)


def meet(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the processes of all hosts, if there are several."""
    jax.config.update("jax_enable_preemption_service", False)  # it would catch SIGTERM and continue
    told = (coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"), processes, process)
    if told == (None, None, None):
        try:
            jax.distributed.initialize()
        except ValueError as error:
            if "coordinator_address" not in str(error):
                raise
            return  # the environment names no other hosts: this one is alone
    elif None in told:
        raise ValueError("expected --coordinator, --processes and --process together, got a part of them")
    else:
        jax.distributed.initialize(*told)
    joined.set()


class Watch:
    """Ends this process soon after SIGTERM, or after another process of the job has ended, which this one would wait
    for in vain.

    The main thread is asked first, and saves what it has. If it does not react, because it waits for a device or for
    other hosts, the process is ended without it.
    """

    def __init__(self) -> None:
        self.code, self.heard = TERMINATED, threading.Event()
        self.told, tell = os.pipe()
        os.set_blocking(tell, False)
        signal.set_wakeup_fd(tell)  # writes at once, whatever the main thread does
        signal.signal(signal.SIGTERM, self._stop)
        self.tell, self.thread = tell, threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Ends the watch; from now on SIGTERM ends the process by itself."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.write(self.tell, b"\0")
        self.thread.join()

    def _stop(self, *_: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough, and saving must not be interrupted
        self.heard.set()
        raise SystemExit(self.code)

    def _watch(self) -> None:
        while True:
            said = os.read(self.told, 64) if select.select([self.told], [], [], LOOK)[0] else b""
            if b"\0" in said:
                return
            if signal.SIGTERM in said:
                break
            if not leaving.is_set() and (code := first_code()) is not None:
                self.code = code
                note.print(f"{NAME}: another process has ended with exit code {code}; so does this one")
                os.kill(os.getpid(), signal.SIGTERM)
                break
        if self.heard.wait(HEAR):
            time.sleep(SAVE)
        leave(self.code)


def group() -> Any:
    """The processes of the job: their number, this one's, and a client of the coordinator's key-value store."""
    from jax._src import distributed  # no public name of jax leads to that store

    return distributed.global_state


def first_code() -> int | None:
    """The exit code of the first process that ended before the work did."""
    client = group().client
    if client is not None and joined.is_set():
        with suppress(Exception):  # no process has ended; or the coordinator has, which JAX handles
            return int(client.key_value_try_get(ENDED))
    return None


def leave(code: int) -> NoReturn:
    """Ends this process now, with the exit code of the first process that ended. It tells the others and does not wait
    for them, except in the process that runs the coordinator: this one stays for some seconds, so that the others can
    read the code."""
    leaving.set()
    client, own = group().client, group().process_id
    if client is not None and joined.is_set():
        with suppress(Exception):  # the first one has set it already
            client.key_value_set(ENDED, str(code))
        code = first_code() or code
        with suppress(Exception):
            client.key_value_set(f"{LEFT}/{own}", "")
            until = time.monotonic() + (HEAR + 2 * LOOK if own == 0 else 0)
            while time.monotonic() < until and len(client.key_value_dir_get(LEFT)) < group().num_processes:
                time.sleep(LOOK / 5)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def live(action: Callable[[], None]) -> NoReturn:
    """Runs an action that ends with SystemExit. JAX's own exit waits for all other processes: only for success."""
    watch, code = Watch(), 1
    try:
        action()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    if code:
        leave(code)
    watch.close()
    sys.exit(0)


if __name__ == "__main__":
    live(lambda: run(main, NAME))
