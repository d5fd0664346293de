"""Converts a Hugging Face folder into a checkpoint that loads onto any mesh.

    python convert/from_hf.py Qwen3-Omni-30B-A3B-Instruct converted --dtype bfloat16

Reads layer by layer, so neither side needs to fit into memory. Run again after a stop, it goes on where it was.
"""

from collections.abc import Sequence
from pathlib import Path

from omni_jax import checkpoint
from omni_jax.checkpoint.describe import missing
from omni_jax.checkpoint.hub import locate
from omni_jax.cli.terminal import Parser, bar, note, run


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("source", help="a folder with config.json and safetensors, or a hub id")
    parser.add_argument("target", help="the local folder to write")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the converted weights (default: as stored)"
    )
    given = parser.parse_args(arguments)
    checkpoint.room_for(given.target, source=given.source)  # before anything is downloaded
    with bar("converting") as progress:
        checkpoint.convert(locate(given.source), given.target, dtype=given.dtype, progress=progress)
    note.print(f"wrote {given.target}", markup=False)
    for lacking in missing(Path(given.target)):
        note.print(f"missing, as in the source: {lacking}", markup=False)
    return 0


if __name__ == "__main__":
    run(main, "from_hf")
