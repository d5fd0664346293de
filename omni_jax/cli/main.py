"""The shell's way in: omni-jax demo | generate | speak | batch | plan | convert | inspect."""

import json
import os
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from omni_jax import __version__
from omni_jax.cli.batch import batch
from omni_jax.cli.generate import InOrder, generate
from omni_jax.cli.options import Model, follow, load, named_dtype
from omni_jax.cli.plan import plan
from omni_jax.cli.sound_file import sound_out
from omni_jax.cli.speak import speak
from omni_jax.cli.terminal import bar, note, run

app = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# What typer raises for an unknown option or a missing argument; it has no public name for it.
UsageError = typer.BadParameter.__mro__[1]

app.command(cls=InOrder)(generate)
app.command()(speak)
app.command()(batch)
app.command()(plan)


def main() -> None:
    """Runs a command; a user's mistake is one line and exit code 2 (OMNI_JAX_DEBUG=1 shows the traceback)."""
    run(lambda: app(standalone_mode=False), "omni-jax", usage=(UsageError,))


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
    """Has JAX keep compiled programs on the disk."""
    import jax

    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "omni_jax" / "programs"))
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(help="A Hugging Face folder or a hub id (or, with --to-hf, a converted folder or its address)."),
    ],
    target: Annotated[
        str,
        typer.Argument(help="The local folder to write. To a bucket: gcloud storage cp -r FOLDER gs://bucket/model"),
    ],
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; by default as stored.")] = None,
    to_hf: Annotated[
        bool, typer.Option("--to-hf", help="Write published safetensors from a converted folder.")
    ] = False,
) -> None:
    """Writes a converted checkpoint (Orbax) that loads onto any mesh; run again, it goes on where it stopped.

    With --to-hf it starts anew.
    """
    from omni_jax import checkpoint
    from omni_jax.checkpoint.describe import missing
    from omni_jax.checkpoint.hub import locate

    action, kind = checkpoint.export if to_hf else checkpoint.convert, named_dtype(dtype)
    checkpoint.room_for(target, beside=source)  # before anything is downloaded
    with bar("converting") as progress:
        action(locate(source), target, dtype=kind, progress=progress)
    note.print(f"wrote {target}", markup=False)
    for lacking in missing(Path(target)):
        note.print(f"missing, as in the source: {lacking}", markup=False)


@app.command()
def inspect(
    model: Model,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Shows the parts of a checkpoint, their parameters, stored dtypes and memory; reads no weights."""
    from omni_jax.checkpoint.describe import describe

    found = describe(model)
    if as_json:
        print(json.dumps(found))
        return
    table = Table(
        "part", "parameters", "stored as", "bfloat16", "float32", title=f"{found['folder']}  ({found['family']})"
    )
    for part in found["parts"]:
        table.add_row(
            part["name"],
            f"{part['parameters']:,}",
            part["stored"],
            *(_gigabytes(part["bytes"][kind]) for kind in ("bfloat16", "float32")),
        )
    table.add_section()
    total = found["bytes"]
    table.add_row("all", f"{found['parameters']:,}", "", _gigabytes(total["bfloat16"]), _gigabytes(total["float32"]))
    out = Console(highlight=False)
    out.print(table)
    out.print(
        f"context {found['context']:,} tokens; cache {found['cache_bytes_per_token'] / 1e3:.1f} kB a token in bfloat16"
    )
    out.print(f"speakers: {', '.join(found['speakers']) or 'none (text only)'}")
    for lacking in found["missing"]:
        out.print(f"missing: {lacking}", markup=False, soft_wrap=True)


@app.command()
def demo(
    keep: Annotated[
        Path | None, typer.Option(help="Keep the model and the sound in this folder (default: a temporary one).")
    ] = None,
) -> None:
    """Hears a recording, sees a picture and speaks, with a tiny model of random weights: no download. Shows that all works."""
    from PIL import Image

    from omni_jax import checkpoint
    from omni_jax.testing import write_tiny

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(keep or scratch)
        note.print("1/3  writing a tiny random Qwen3-Omni in the published layout")
        if not (folder / "published" / "config.json").exists():
            write_tiny(folder / "published")
        note.print("2/3  converting it")
        with bar("converting") as progress:
            checkpoint.convert(folder / "published", folder / "converted", progress=progress)
        note.print("3/3  listening to a recording, looking at a picture, answering and speaking")
        omni = load(str(folder / "converted"), None, speech=True)
        with (
            resources.as_file(resources.files("omni_jax") / "assets" / RECORDING) as recording,
            sound_out(str(folder / ANSWER)) as sound,
        ):
            content = [
                {"type": "audio", "audio": str(recording)},
                {"type": "image", "image": Image.radial_gradient("L")},
                {"type": "text", "text": "What is said, and what is there to see?"},
            ]
            events = omni.stream(
                [{"role": "user", "content": content}],
                thinker_max_new_tokens=48, thinker_top_k=20, talker_max_new_tokens=40,
            )  # fmt: skip
            follow(events, sound=sound, text=sys.stdout)
    kept = f"in {folder / ANSWER}" if keep else "not kept: --keep FOLDER keeps it"
    note.print(
        f"It spoke for {sound.seconds:.1f} s ({kept}).\n"
        "The weights are random, so the answer is noise: this shows that the whole path runs, not what the model knows.\n"
        "With real weights: omni-jax generate Qwen/Qwen3-Omni-30B-A3B-Instruct --audio FILE \"What is said?\"",
        markup=False,
    )  # fmt: skip


RECORDING, ANSWER = "hello.flac", "answer.wav"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
