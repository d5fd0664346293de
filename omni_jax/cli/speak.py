"""omni-jax speak: reads a text aloud."""

import sys
from typing import Annotated, Any

import typer

from omni_jax.cli.options import (
    Dtype,
    Model,
    Seed,
    Speech,
    follow,
    load,
    note_warnings,
    speech_options,
    speech_to,
    with_options,
)


@with_options(Speech)
def speak(
    model: Model,
    text: Annotated[str, typer.Argument(help="What to say; - reads it from standard input.", metavar="TEXT")],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The .wav or .flac file to write; - sends sound to standard output as it is made, for a player.",
        ),
    ],
    seed: Seed = 0,
    dtype: Dtype = None,
    **given: Any,
) -> None:
    """Reads a text aloud, into a sound file or to a player. Ctrl-C keeps what was spoken so far.

    To hear it at once: omni-jax speak MODEL TEXT -o - | ffplay -nodisp -autoexit -
    """
    note_warnings()
    options = speech_options(model, given)
    with speech_to(output) as sound:
        words = sys.stdin.read().strip() if text == "-" else text
        if not words.strip():
            raise ValueError("nothing to say: expected a text, or - and a text on standard input")
        follow(load(model, dtype, speech=True).stream_speech(words, seed=seed, **options), sound=sound, text=None)
