"""The shell's entry point: omni-jax demo | generate | speak | batch | plan | convert | inspect."""

import os
from pathlib import Path
from typing import Annotated

import typer

from omni_jax import __version__
from omni_jax.cli.batch import batch
from omni_jax.cli.convert import convert
from omni_jax.cli.demo import demo
from omni_jax.cli.generate import InOrder, generate
from omni_jax.cli.inspect import inspect
from omni_jax.cli.plan import plan
from omni_jax.cli.speak import speak
from omni_jax.cli.terminal import run

app = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command(cls=InOrder)(generate)
app.command()(speak)
app.command()(batch)
app.command()(plan)
app.command()(convert)
app.command()(inspect)
app.command()(demo)


def main() -> None:
    """Runs a command; a user error is one line and exit code 2 (OMNI_JAX_DEBUG=1 shows the traceback)."""
    run(lambda: app(standalone_mode=False), "omni-jax")


@app.callback()
def _start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Qwen's omni models in JAX: they hear, see, read, write and speak.

    Compiled programs are kept between runs: JAX_COMPILATION_CACHE_DIR chooses where, empty switches it off.
    """
    if version:
        print(f"omni-jax {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
    else:
        keep_programs()


def keep_programs() -> None:
    """Makes JAX keep compiled programs on disk."""
    import jax

    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "omni_jax" / "programs"))
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
