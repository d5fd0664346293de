"""What the commands that answer share: the model, options of speech, and a reply brought to a screen and a sound file."""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any, TextIO

import typer

from omni_jax.shell import bar, note
from omni_jax.sound_out import Sound, sound_out

Model = Annotated[
    str, typer.Argument(help="A Hugging Face folder, a converted folder or a hub id (owner/name).", metavar="MODEL")
]
Dtype = Annotated[
    str | None, typer.Option(help="float32 or bfloat16; by default bfloat16 on TPU and GPU, float32 on CPU.")
]
Seed = Annotated[int, typer.Option(help="Seed of the sampling.")]
Speaker = Annotated[
    str | None, typer.Option(help="Whose voice; omni-jax inspect MODEL lists them (default: the family's first).")
]
MaxSpeech = Annotated[
    float | None,
    typer.Option(help="Longest speech, in seconds (5 minutes, if the checkpoint sets no other).", metavar="SECONDS"),
]
TalkerTemperature = Annotated[float | None, typer.Option(help="Sample the sound at this temperature.")]
TalkerTopK = Annotated[int | None, typer.Option(help="Sample the sound among so many codes.")]
TalkerTopP = Annotated[
    float | None, typer.Option(help="Sample the sound among the likeliest codes of this total probability.")
]
TalkerGreedy = Annotated[bool | None, typer.Option("--talker-greedy", help="Always the likeliest code.")]


def load(model: str, dtype: str | None, *, speech: bool | None) -> Any:
    """The model, with a bar while it is read."""
    from omni_jax.omni import Omni

    with bar("loading") as progress:
        return Omni.load(model, dtype=named_dtype(dtype), speech=speech, progress=progress)


def named_dtype(name: str | None) -> Any:
    import jax.numpy as jnp

    if name not in (None, "float32", "bfloat16"):
        raise ValueError(f"--dtype: expected float32 or bfloat16, got {name}")
    return name and jnp.dtype(name)


def speech_options(
    model: str,
    *,
    speaker: str | None,
    max_speech: float | None,
    talker_temperature: float | None,
    talker_top_k: int | None,
    talker_top_p: float | None,
    talker_greedy: bool | None,
) -> dict[str, Any]:
    """Options of speech as Omni takes them, checked against the model's configuration before any weights are read."""
    from omni_jax.config import from_hf
    from omni_jax.decoding.sampling import Sampling
    from omni_jax.hub import locate
    from omni_jax.speaking import synthesizer

    if max_speech is not None and not 0 < max_speech < math.inf:
        raise ValueError(f"--max-speech: expected seconds above 0, got {max_speech}")
    folder = locate(model, weights=False)
    config = from_hf(folder)
    if config.talker is None:
        raise ValueError(f"{model}: this release answers in text only, it has no talker; use an Instruct release")
    speech = synthesizer(config, folder)
    speech.choose(speaker, 1)
    try:
        talker = Sampling(
            max_new_tokens=None if max_speech is None else speech.tokens(max_speech),
            temperature=talker_temperature, top_k=talker_top_k, top_p=talker_top_p,
            do_sample=False if talker_greedy else None,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"talker: {error}") from None
    return {"speaker": speaker, "talker": talker}


@contextmanager
def speech_to(target: str | None) -> Iterator[Sound | None]:
    """Opens the file (or stream) that is spoken to, where there is one, and says what came into it."""
    if target is None:
        yield None
        return
    with sound_out(target) as sound:
        try:
            yield sound
        except KeyboardInterrupt:
            if target != "-" and sound.count:
                note.print(f"wrote {target} as far as it was spoken: {sound.seconds:.1f} s", markup=False)
            raise
    if target != "-":
        note.print(f"wrote {target}: {sound.seconds:.1f} s", markup=False)


def follow(events: Iterable[Any], *, sound: Sound | None, text: TextIO | None) -> Any:
    """Takes a reply's events as they come, writing what is spoken and, where ``text`` is given, what is written.

    Returns:
        The whole reply.
    """
    reply, thought = None, False
    try:
        with note.status("thinking") if text is None else nullcontext() as status:
            for event in events:
                if sound is not None and event.audio is not None:
                    sound.write(event.audio)
                    if status is not None:
                        status.update(f"speaking: {sound.seconds:.1f} s")
                if text is not None:
                    if event.thinking:
                        note.print(event.thinking, end="", style="dim", markup=False)
                        thought = True
                    if event.text and thought:
                        note.print()
                        thought = False
                    print(event.text, end="", file=text, flush=True)
                reply = event.reply or reply
    finally:
        if text is not None:  # also where the work was stopped in the middle of a line
            print(file=text, flush=True)
    if text is not None:
        _print_calls(reply, text)
    return reply


def show(reply: Any, text: TextIO) -> None:
    """Prints a whole reply."""
    if reply.thinking:
        note.print(reply.thinking, style="dim", markup=False)
    print(reply.text, file=text)
    _print_calls(reply, text)


def _print_calls(reply: Any, text: TextIO) -> None:
    for call in reply.tool_calls:
        print(json.dumps(call, ensure_ascii=False), file=text)
