"""omni-jax batch: answers a file of conversations in text and speech; run again after a stop, it resumes."""

import json
from contextlib import nullcontext
from dataclasses import asdict
from typing import Annotated, Any

import typer

from omni_jax.cli.options import (
    Dtype,
    Media,
    Seed,
    Speech,
    Text,
    given_of_speech,
    named_dtype,
    note_warnings,
    request_options,
    speech_options,
    with_options,
)
from omni_jax.cli.terminal import bar, note, resumable


@with_options(Text, Media, Speech)
def batch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="Conversations in JSONL: a list of messages a line, or an object with messages, perhaps an id, and options "
            "such as seed or thinker_max_new_tokens (docs/batch.md). A path, or a URL such as gs://bucket/in.jsonl.",
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(metavar="OUT", help="Where the answers go, in JSONL; sound files go into a folder beside it."),
    ],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="A Hugging Face folder, a converted folder or a hub id (owner/name).")
    ],
    slots: Annotated[int, typer.Option(help="Answers that are written at a time.")] = 8,
    window: Annotated[
        int | None, typer.Option(help="Lines read ahead and sorted by length (default: twice the slots).")
    ] = None,
    mesh: Annotated[
        str | None,
        typer.Option(
            help="Devices that one copy of the model takes, such as data=2,expert=4 or v5e-8 (default: all of a host's). On a "
            "pod, hosts that have fewer than that take a copy together with their neighbours."
        ),
    ] = None,
    dtype: Dtype = None,
    speech: Annotated[
        bool | None, typer.Option("--speech/--no-speech", help="Speak the answers (default: where the model can).")
    ] = None,
    sound: Annotated[str, typer.Option(help="Sound files: wav or flac.")] = "wav",
    allow_local: Annotated[
        bool,
        typer.Option(
            "--allow-local/--no-local",
            help="Whether lines may name media by paths and gs:// or s3:// URLs; --no-local is for lines that others wrote.",
        ),
    ] = True,
    seed: Seed = 0,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="Write the tokens' log-probabilities too.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try lines again that were reported as errors.")] = False,
    profile: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write a jax.profiler trace of the first calls there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the totals as JSON.")] = False,
    **given: Any,
) -> None:
    """Answers a file of conversations. Each answer is on the disk as soon as it is made: stopped, it goes on where it was.

    A line that cannot be answered is reported in its place, as {"line": n, "error": "..."}, and stops nothing. A line's own
    options come before those given here; a system message is the first of a line's messages.

    Exit code 0: every line has its answer or its error. 1: the same command may go on later, once the network or the disk
    does. 2: a user error, such as a wrong option.
    """
    from omni_jax import jobs

    note_warnings()
    options = request_options({**given, "seed": seed}) | {"allow_local": allow_local}
    flags = given_of_speech(given)
    if speech is False and flags:
        raise ValueError(f"{', '.join(flags)}: nothing is spoken with --no-speech; leave one of them out")
    if speech or flags:
        options |= speech_options(model, given)
    jobs.check(source, sound=sound, slots=slots, window=window)
    first = jobs.is_first()
    with bar("loading") if first else nullcontext(_silent) as progress:
        omni = jobs.load(model, mesh=mesh, dtype=named_dtype(dtype), speech=speech, progress=progress)
    with resumable(), bar("answering", bytewise=False) if first else nullcontext(_silent) as progress:
        totals = jobs.run(
            omni, source, target, slots=slots, window=window, sound=sound, logprobs=logprobs, retry=retry, profile=profile,
            progress=progress, **options,
        )  # fmt: skip
    if first and as_json:
        print(json.dumps(asdict(totals)))
    elif first:
        resumed = f" ({totals.resumed:,} by earlier runs)" if totals.resumed else ""
        spoken = f", {totals.speech_seconds:,.1f} s of speech" if totals.speech_seconds else ""
        hint = " (--retry tries them again)" if totals.faults else ""
        note.print(
            f"wrote {target}: {totals.answered:,} of {totals.lines:,} lines answered{resumed}, {totals.faults:,} errors{hint}; "
            f"{totals.tokens:,} tokens{spoken}; {totals.seconds:,.1f} s, {totals.tokens_per_second:,.1f} tokens/s",
            markup=False,
        )


def _silent(done: int, total: int, name: str) -> None:
    """Ignores progress; for all processes but the first."""
