"""omni-jax batch on every host of a pod: each answers its share of the lines, the first one reports.

    python tpu/pod_inference.py gs://bucket/in.jsonl gs://bucket/answers.jsonl --model gs-or-local-folder --slots 64

A model that is too large for one host's chips is had by several together: --mesh v5e-16 is one copy on four hosts of four chips.

Start it on all hosts, with the same arguments. On Cloud TPU, GKE, Slurm and Open MPI the hosts find each other; elsewhere say
--coordinator HOST:PORT --processes N --process I. All other arguments are those of omni-jax batch, which --help lists.

Exit code 2 is a mistake in what was given, which another start would only say again; after any other, start it again: it goes on.
"""

import os
import sys
from collections.abc import Sequence

import jax
import typer

from omni_jax.cli import UsageError, keep_programs
from omni_jax.cli_batch import batch
from omni_jax.shell import Parser, run


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--coordinator", help="host and port of the first process", metavar="HOST:PORT")
    parser.add_argument("--processes", type=int, help="how many there are", metavar="N")
    parser.add_argument("--process", type=int, help="which one this is, from 0", metavar="I")
    wanted = list(sys.argv[1:] if arguments is None else arguments)
    given, rest = parser.parse_known_args([argument for argument in wanted if argument not in ("-h", "--help")])
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    command.command(help=__doc__)(batch)
    if set(wanted) & {"-h", "--help"}:
        command(["--help"], standalone_mode=False)
        return
    meet(given.coordinator, given.processes, given.process)
    keep_programs()
    command(rest, standalone_mode=False)


def meet(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the processes of all hosts, where there are several."""
    told = (coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"), processes, process)
    if told == (None, None, None):
        try:
            jax.distributed.initialize()
        except ValueError as error:
            if "coordinator_address" not in str(error):
                raise
            # Nothing around tells of other hosts: this one is alone.
    elif None in told:
        raise ValueError("expected --coordinator, --processes and --process together, got a part of them")
    else:
        jax.distributed.initialize(*told)


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # torch is not missing here, it is not needed
    run(main, "pod_inference", usage=UsageError)
