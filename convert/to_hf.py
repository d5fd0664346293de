"""Writes a converted checkpoint back as a Hugging Face folder, in the published layout.

python convert/to_hf.py converted exported --dtype bfloat16 --shard-gb 5
"""

import math
from collections.abc import Sequence
from pathlib import Path

from omni_jax import checkpoint
from omni_jax.checkpoint.describe import missing
from omni_jax.cli.terminal import Parser, bar, note, run


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("source", help="a converted folder, or its address")
    parser.add_argument("target", help="the local folder to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the tensors (default: as stored)")
    parser.add_argument(
        "--shard-gb", type=float, default=5.0, help="largest size of a file, in GB (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    if not 0 < given.shard_gb < math.inf:
        raise ValueError(f"--shard-gb: expected a size above 0, got {given.shard_gb}")
    shard_bytes = int(given.shard_gb * 1e9)
    with bar("exporting") as progress:
        checkpoint.export(given.source, given.target, dtype=given.dtype, shard_bytes=shard_bytes, progress=progress)
    note.print(f"wrote {given.target}", markup=False)
    for lacking in missing(Path(given.target)):
        note.print(f"missing, as in the source: {lacking}", markup=False)
    return 0


if __name__ == "__main__":
    run(main, "to_hf")
