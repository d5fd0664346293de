"""Compares a converted checkpoint with the Hugging Face folder it came from, value by value.

    python convert/check.py Qwen3-Omni-30B-A3B-Instruct converted

Prints a row for each part, and a line for each leaf that differs. Exit code 0: all equal; 1: not; 2: not comparable.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from omni_jax import checkpoint, weights
from omni_jax.config import from_hf
from omni_jax.shell import Parser, bar, run


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("source", type=Path, help="the Hugging Face folder")
    parser.add_argument("converted", type=Path, help="the converted folder")
    given = parser.parse_args(arguments)
    config = from_hf(given.source)
    converted, _ = checkpoint.converted(given.converted, config)
    published, _ = weights.published(given.source, config, dtype=converted.dtype)
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
    out = Console(highlight=False, soft_wrap=True)
    table = Table("part", "leaves", "values", "differing", "largest difference", title=f"in {converted.dtype.name}")
    for part, (leaves, values, differing, largest) in parts.items():
        table.add_row(part, f"{leaves:,}", f"{values:,}", f"{differing:,}", f"{largest:g}")
    out.print(table)
    for fault in faults:
        out.print(fault, markup=False)
    out.print("the converted weights differ" if faults else "equal")
    return 1 if faults else 0


if __name__ == "__main__":
    run(main, "check")
