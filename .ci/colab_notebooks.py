"""Runs the notebooks in the environment of this interpreter, which `.ci/colab` has made like Colab's.

first   sessions that have imported NumPy and Pillow, as Colab's have: the install needs no restart, all cells run
again   a session that has imported jax: the install asks for a restart, and after it has nothing to do
"""

import os
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tpu" / "notebooks"
COLAB = {
    "COLAB_RELEASE_TAG": "release-colab",
    "JAX_PLATFORMS": "cpu",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a warning of ipykernel's debugger on every start
    "XLA_FLAGS": "--xla_backend_optimization_level=0",  # programs that are compiled fast rather than run fast
}


def run(name: str, *, before: str, cells: list[str] | None = None) -> nbformat.NotebookNode:
    """A notebook after a new session ran it, behind a cell of what the session has imported.

    Args:
        cells: ids of those to run; None for all.
    """
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    kept = [cell for cell in notebook.cells if cells is None or cell.id in cells]
    for cell in kept:
        if cell.id == "install":
            line = next(line for line in cell.source.splitlines() if line.startswith("SOURCE = "))
            cell.source = cell.source.replace(line, f'SOURCE = "{ROOT.as_uri()}"')
    notebook.cells = [new_code_cell(before, id="before"), *kept]
    with tempfile.TemporaryDirectory() as folder:
        # A tiny model's programs compile in less than the second from which JAX keeps them.
        kept_from = {
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        settings = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/programs", "IPYTHONDIR": folder, **kept_from}
        started = time.monotonic()
        client = NotebookClient(notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": folder}})
        client.execute(env=os.environ | COLAB | settings)
        print(f"{name}: {len(kept)} cells in {time.monotonic() - started:.0f} s")
        if cells is None and not list(Path(folder, "programs").iterdir()):
            raise SystemExit(f"{name}: no compiled program was kept")
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                print(f"  [{cell.id}] {output.text.rstrip()}")
                if output.name == "stderr":
                    raise SystemExit(f"{name}: {cell.id} wrote to stderr")
    return notebook


def first() -> None:
    numpy = metadata.version("numpy")
    for name in ("quickstart", "video_with_sound"):
        run(name, before="import numpy\nimport PIL.Image")
    if metadata.version("numpy") != numpy:
        raise SystemExit(f"expected numpy {numpy} to stay, found {metadata.version('numpy')}")
    print(
        *(f"{name} {metadata.version(name)}" for name in ("numpy", "jax", "jaxlib", "libtpu", "flax", "av")), sep=", "
    )


def again() -> None:
    try:
        run("quickstart", before="import jax", cells=["install"])
    except CellExecutionError as error:
        print(f"  {error.evalue}")
        if not error.evalue.startswith("Runtime > Restart session") or "jax 0.7.2" not in error.evalue:
            raise
    else:
        raise SystemExit("expected the install to ask for a restart: jax was imported in its old version")
    notebook = run("quickstart", before="import jax", cells=["install"])
    if notebook.cells[-1].outputs:
        raise SystemExit("expected nothing to install after the restart")


if __name__ == "__main__":
    {"first": first, "again": again}[sys.argv[1]]()
