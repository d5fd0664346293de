"""omni-jax convert: a Hugging Face folder to a converted checkpoint, and back."""

from pathlib import Path
from typing import Annotated

import typer

from omni_jax.cli.options import named_dtype
from omni_jax.cli.terminal import bar, note


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
    checkpoint.room_for(target, source=source)  # before anything is downloaded
    with bar("converting") as progress:
        action(locate(source), target, dtype=kind, progress=progress)
    note.print(f"wrote {target}", markup=False)
    for lacking in missing(Path(target)):
        note.print(f"missing, as in the source: {lacking}", markup=False)
