"""omni-jax batch: a file of conversations, answered in writing and in speech; run again after a stop, it goes on."""

import json
from contextlib import nullcontext
from dataclasses import asdict
from typing import Annotated, Any

import typer

from omni_jax.cli_reply import (
    Dtype,
    MaxSpeech,
    Seed,
    Speaker,
    TalkerGreedy,
    TalkerTemperature,
    TalkerTopK,
    TalkerTopP,
    named_dtype,
    speech_options,
)
from omni_jax.shell import bar, note


def batch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="Conversations in JSONL: a list of messages a line, or an object with messages, perhaps an id, and options "
            "such as seed or thinker_max_new_tokens. A path, or a URL such as gs://bucket/in.jsonl.",
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
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sample at this temperature.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among so many tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest of this total probability.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")] = False,
    seed: Seed = 0,
    speaker: Speaker = None,
    max_speech: MaxSpeech = None,
    talker_temperature: TalkerTemperature = None,
    talker_top_k: TalkerTopK = None,
    talker_top_p: TalkerTopP = None,
    talker_greedy: TalkerGreedy = None,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="Write the tokens' log-probabilities too.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try lines again that were reported as errors.")] = False,
    profile: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write a jax.profiler trace of the first calls there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the totals as JSON.")] = False,
) -> None:
    """Answers a file of conversations. Each answer is on the disk as soon as it is made: stopped, it goes on where it was.

    A line that cannot be answered is reported in its place, as {"line": n, "error": "..."}, and stops nothing.
    """
    from omni_jax import jobs
    from omni_jax.decoding.sampling import Sampling

    thinker = Sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
        do_sample=False if greedy else None,
    )  # fmt: skip
    options: dict[str, Any] = {"thinker": thinker, "seed": seed}
    voice = {
        "speaker": speaker, "max_speech": max_speech, "talker_temperature": talker_temperature,
        "talker_top_k": talker_top_k, "talker_top_p": talker_top_p, "talker_greedy": talker_greedy,
    }  # fmt: skip
    given = [f"--{name.replace('_', '-')}" for name, value in voice.items() if value is not None]
    if speech is False and given:
        raise ValueError(f"{', '.join(given)}: nothing is spoken with --no-speech; leave one of them out")
    if speech or given:
        options |= speech_options(model, **voice)
    jobs.check(source, sound=sound, slots=slots, window=window)
    first = jobs.is_first()
    with bar("loading") if first else nullcontext(_silent) as progress:
        omni = jobs.load(model, mesh=mesh, dtype=named_dtype(dtype), speech=speech, progress=progress)
    with bar("answering", bytewise=False) if first else nullcontext(_silent) as progress:
        totals = jobs.run(
            omni, source, target, slots=slots, window=window, sound=sound, logprobs=logprobs, retry=retry, profile=profile,
            progress=progress, **options,
        )  # fmt: skip
    if first and as_json:
        print(json.dumps(asdict(totals)))
    elif first:
        resumed = f" ({totals.resumed:,} by earlier runs)" if totals.resumed else ""
        spoken = f", {totals.speech_seconds:,.1f} s of speech" if totals.speech_seconds else ""
        note.print(
            f"wrote {target}: {totals.answered:,} of {totals.lines:,} lines answered{resumed}, {totals.faults:,} errors; "
            f"{totals.tokens:,} tokens{spoken}; {totals.seconds:,.1f} s, {totals.tokens_per_second:,.1f} tokens/s",
            markup=False,
        )


def _silent(done: int, total: int, name: str) -> None:
    """The progress of all processes but the first."""
