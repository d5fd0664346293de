"""omni-jax inspect: the parts of a checkpoint, without reading its weights."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from omni_jax.cli.options import Model


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


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
