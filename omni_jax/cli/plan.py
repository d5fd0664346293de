"""omni-jax plan: whether a model fits a TPU slice; asks the TPU's own compiler, without a TPU."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from omni_jax.cli.terminal import bar

FITS, DOES_NOT = 0, 3
WIDEST = 1000  # columns; a table uses only as many as it needs


def plan(
    model: Annotated[
        str,
        typer.Argument(help="A model's folder, a hub id (owner/name) or a config.json.", metavar="MODEL_OR_CONFIG"),
    ],
    topology: Annotated[str, typer.Option(help="The slice: v5e-1, v5e-8, v6e-1, v6e-4, v6e-8, v5p-8, ...")],
    batch: Annotated[int, typer.Option(help="Replies at once; their prompts are prefilled one by one.")] = 1,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of the longest conversation, all of max_new_tokens included (default: 8192)."),
    ] = None,
    speech: Annotated[
        bool, typer.Option("--speech", help="Replies are spoken, for 41 s beyond as many frames.")
    ] = False,
    mesh: Annotated[
        str | None, typer.Option(help="How the chips are used, such as data=2,model=4 (default: as Omni.load does).")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Of the programs only those with this in their names, such as decode; again for more."),
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the plan to this file, too.")] = None,
) -> int:
    """Shows whether a model fits a TPU slice, and what its programs move; needs no TPU, only its compiler (pip install
    'jax[tpu]', on Linux for x86).

    Exit code 0: it fits. 3: it does not. 2: a user error, such as a wrong option.
    """
    if as_json and (as_json.is_dir() or not as_json.parent.is_dir()):
        raise ValueError(f"--json {as_json}: expected the name of a file in a folder that is there")
    import jax

    # Programs are only compiled, not run: a TPU of this machine stays free.
    jax.config.update("jax_platforms", "cpu")
    from omni_jax.plan import plan as make
    from omni_jax.plan import write

    wanted = (lambda name: any(part in name for part in only)) if only else None
    with bar("compiling", bytewise=False) as progress:
        found = make(
            model, topology, batch=batch, context=context, speech=speech, mesh=mesh, only=wanted, progress=progress
        )
    if as_json:
        write(found, as_json)
    show(found, part=wanted is not None)
    return FITS if found.fits else DOES_NOT


def show(found, *, part: bool = False) -> None:
    """Prints the table of programs with what they move and hold, the sum of the fullest chip, and whether it fits."""
    from omni_jax.plan import summed

    # As wide as the table needs: neither a reader nor a script could use cells that are cut to fit.
    out = Console(highlight=False, soft_wrap=True, width=WIDEST)
    shape = ", ".join(f"{axis} {size}" for axis, size in found.mesh.shape.items())
    if found.compiled:
        columns = (
            "program, a step", "compiled", "moves", "x least", "operations", "x least", "temporaries", "estimate", "collectives",
        )  # fmt: skip
        table = Table(*columns, title=f"{found.topology.name}: {shape}")
        for each in found.compiled:
            if each.program is None:
                table.add_row(
                    each.entry.name,
                    f"{each.seconds:.0f} s",
                    *["-"] * 4,
                    f"{_size(each.temporaries)}: too large",
                    "-",
                    "-",
                )
                continue
            few, talk = each.entry.cost, summed(each)
            table.add_row(
                each.entry.name, f"{each.seconds:.0f} s", _size(each.bytes), _ratio(each.bytes, few.bytes),
                f"{each.flops / 1e9:,.1f} G", _ratio(each.flops, few.flops), _size(each.temporaries),
                f"{1e3 * found.seconds(each):.3g} ms",
                ", ".join(f"{kind} {_size(size)}" for kind, size in talk.items()) or "none",
            )  # fmt: skip
        out.print(table)
        out.print(
            "Moves and operations are of one chip, and how many times the least possible; the estimate is what they take at the "
            "least, at the chip's published rates, no measurement."
        )
        sizes = found.buckets
        out.print(
            f"Buckets: prompts of {_list(sizes['prefill'])} tokens, caches of {_list(sizes['decode'])} slots; each is a program."
        )
    if found.undivided:
        out.print(f"Not divided, so held by every chip of the axis: {'; '.join(found.undivided)}.")
    limit = found.topology.chip.limit
    parts = f"weights {_size(found.weights)} + caches {_size(found.cache)} + temporaries {_size(found.temporaries)}"
    out.print(f"Fullest chip of {found.topology.chips}: {parts} = {_size(found.held)} of {_size(limit)}")
    if found.compiled:
        out.print(
            "Its temporaries are the most that a program adds to weights and caches: those of the table, and its arguments and "
            "results that are neither."
        )
    if found.fits:
        out.print(f"{'As far as these programs go, it' if part else 'It'} fits {found.topology.name}.")
    else:
        out.print(f"It does not fit {found.topology.name}: {_size(found.held - limit)} too much a chip.")


def _size(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _ratio(found: int, least: int) -> str:
    return f"{found / least:.2f}" if least else "-"


def _list(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes)) if len(sizes) < 6 else f"{sizes[0]}, {sizes[1]}, {sizes[2]}, ..., {sizes[-1]}"
