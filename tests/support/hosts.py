"""A job of two processes over localhost, of four devices each."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.support.compiling import flags

ROOT = Path(__file__).resolve().parents[2]

START = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
assert (jax.process_count(), jax.local_device_count(), jax.device_count()) == (2, 4, 8)
"""


def two_processes(script, folder, *arguments, **environment):
    """What each of them reports: the last line that it prints, in JSON.

    Args:
        script: finds ``arguments`` in ``sys.argv[3:]``, and JAX's runtime started.
        folder: where their output goes.
        environment: beside the usual variables.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    variables = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": flags(devices=4),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    }
    runs = []
    for number in ("0", "1"):
        with (folder / f"output{number}").open("w") as output, (folder / f"errors{number}").open("w") as errors:
            command = [sys.executable, "-c", START + script, address, number, *map(str, arguments)]
            runs.append(subprocess.Popen(command, env=variables | environment, stdout=output, stderr=errors))
    try:
        codes = [run.wait(timeout=300) for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()
    assert codes == [0, 0], "".join((folder / f"errors{number}").read_text()[-3000:] for number in (0, 1))
    return [json.loads((folder / f"output{number}").read_text().splitlines()[-1]) for number in (0, 1)]
