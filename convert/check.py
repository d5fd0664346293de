"""Compares a converted checkpoint with the Hugging Face folder it came from, value by value, and voice by voice.

    python convert/check.py Qwen3-Omni-30B-A3B-Instruct converted

Prints a row for each part, and a line for each leaf or voice that differs. Exit code 0: all equal; 1: not; 2: not comparable.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from omni_jax import checkpoint, weights
from omni_jax.cli.terminal import Parser, bar, run
from omni_jax.weights import Speaker


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("source", type=Path, help="the Hugging Face folder")
    parser.add_argument("converted", type=Path, help="the converted folder")
    given = parser.parse_args(arguments)
    config = weights.config_of(given.source)
    converted, _ = checkpoint.converted(given.converted, config)
    published, _ = weights.published(given.source, config, dtype=converted.dtype)
    kinds = sorted({leaf.dtype.name for leaf in converted.leaves.values()})
    parts: dict[str, list[float]] = {}  # part -> leaves, values, differing, largest difference
    seen: set[str] = set()
    faults = []
    with bar("comparing") as progress:
        for found in weights.compare(published, converted, progress=progress):
            row = parts.setdefault(found.path.split(".")[0], [0, 0, 0, 0.0])
            row[0] += found.path not in seen
            seen.add(found.path)
            row[1] += found.values
            row[2] += found.differing
            row[3] = max(row[3], found.largest)
            if found.differing:
                where = found.path if found.layer is None else f"{found.path} [layer {found.layer}]"
                faults.append(
                    f"{where}: {found.differing:,} of {found.values:,} values differ, by up to {found.largest:g}"
                )
    theirs, ours = (weights.voices(folder, config) for folder in (given.source, given.converted))
    names = sorted(theirs.keys() | ours.keys())
    faults += [f"voice {name} differs" for name in names if not _same(theirs.get(name), ours.get(name))]
    out = Console(highlight=False, soft_wrap=True)
    table = Table("part", "leaves", "values", "differing", "largest difference", title=f"in {', '.join(kinds)}")
    for part, (leaves, values, differing, largest) in parts.items():
        table.add_row(part, f"{leaves:,}", f"{values:,}", f"{differing:,}", f"{largest:g}")
    out.print(table)
    for fault in faults:
        out.print(fault, markup=False)
    out.print("the converted checkpoint differs" if faults else "equal")
    return 1 if faults else 0


def _same(left: Speaker | None, right: Speaker | None) -> bool:
    if left is None or right is None:
        return False
    arrays = (left.cond, right.cond), (left.ref_mel, right.ref_mel)
    return left.bos_token == right.bos_token and all(np.array_equal(*pair) for pair in arrays)


if __name__ == "__main__":
    run(main, "check")
