"""omni-jax demo: runs everything with a tiny model of random weights, which needs no download."""

import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from omni_jax.cli.options import follow, load
from omni_jax.cli.sound_file import sound_out
from omni_jax.cli.terminal import bar, note


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
