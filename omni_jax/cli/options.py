"""Shared by the commands that answer: the model, options, and printing and speaking a reply."""

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any, TextIO

import typer

from omni_jax.cli.sound_file import Sound, sound_out
from omni_jax.cli.terminal import bar, note

Model = Annotated[
    str, typer.Argument(help="A Hugging Face folder, a converted folder or a hub id (owner/name).", metavar="MODEL")
]
Dtype = Annotated[
    str | None, typer.Option(help="float32 or bfloat16; by default bfloat16 on TPU and GPU, float32 on CPU.")
]
# How media are read.
AudioInVideo = Annotated[
    bool | None,
    typer.Option("--load-audio-from-video", "--use-audio-in-video", help="Hear the sound of videos too."),
]
Fps = Annotated[float | None, typer.Option(help="Frames a second to take from videos (2).")]
MaxFrames = Annotated[int | None, typer.Option(help="Most frames to take from a video (768).")]
AllowPrivate = Annotated[bool, typer.Option("--allow-private", help="Fetch from private addresses too.")]
MinPixels = Annotated[int | None, typer.Option(help="Least area of an image or frame, in pixels.")]
MaxPixels = Annotated[int | None, typer.Option(help="Largest area of an image or frame, in pixels.")]
# How the answer's text is generated.
Thinking = Annotated[bool | None, typer.Option(help="Ask a thinking model to think, or not to.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest answer, in tokens.")]
MinNewTokens = Annotated[int | None, typer.Option(help="Shortest answer, in tokens.")]
Temperature = Annotated[float | None, typer.Option(help="Sample at this temperature.")]
TopK = Annotated[int | None, typer.Option(help="Sample among so many tokens.")]
TopP = Annotated[float | None, typer.Option(help="Sample among the likeliest of this total probability.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1: repeat less.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")]
Stop = Annotated[list[str] | None, typer.Option(help="End the answer before this text; repeatable.")]
Seed = Annotated[int, typer.Option(help="Seed of the sampling.")]
# How it is spoken.
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
OF_SPEECH = ("speaker", "max_speech", "talker_temperature", "talker_top_k", "talker_top_p", "talker_greedy")
OF_MEDIA = ("load_audio_from_video", "fps", "max_frames", "min_pixels", "max_pixels", "allow_private")
DRAWN = ("temperature", "top_k", "top_p")


def note_warnings() -> None:
    """Prints each Python warning in one line, without its place in the source code."""
    warnings.showwarning = lambda message, *_: note.print(f"note: {' '.join(str(message).split())}", markup=False)


def load(model: str, dtype: str | None, *, speech: bool | None) -> Any:
    """Loads the model, with a progress bar."""
    from omni_jax.omni import Omni

    with bar("loading") as progress:
        return Omni.load(model, dtype=named_dtype(dtype), speech=speech, progress=progress)


def named_dtype(name: str | None) -> Any:
    import jax.numpy as jnp

    if name not in (None, "float32", "bfloat16"):
        raise ValueError(f"--dtype: expected float32 or bfloat16, got {name}")
    return name and jnp.dtype(name)


def media_options(given: Mapping[str, Any], **others: Any) -> Any:
    """Media options from a command's parameters, by name; ``others`` are further ones of MediaOptions."""
    from omni_jax.processing.options import MediaOptions

    return MediaOptions.named({**{name: given[name] for name in OF_MEDIA}, **others})


def sampling(given: Mapping[str, Any], prefix: str = "", **others: Any) -> Any:
    """Sampling options from a command's parameters, by name; ``others`` are further ones of Sampling."""
    from omni_jax.decoding.sampling import Sampling

    drawn = {name: given[f"{prefix}{name}"] for name in DRAWN}
    greedy = given[f"{prefix}greedy"]
    if greedy and (unheard := [_flag(f"{prefix}{name}") for name, value in drawn.items() if value is not None]):
        raise ValueError(
            f"{_flag(f'{prefix}greedy')} and {', '.join(unheard)}: expected one of them; leave the other out"
        )
    return Sampling(**drawn, do_sample=False if greedy else None, **others)


def writing(given: Mapping[str, Any]) -> Any:
    """Sampling options of the text, from a command's parameters, by name."""
    names = ("max_new_tokens", "min_new_tokens", "repetition_penalty")
    return sampling(given, **{name: given[name] for name in names}, stop_strings=tuple(given["stop"] or ()) or None)


def speech_given(given: Mapping[str, Any]) -> list[str]:
    """The speech options that a command was given, as flags."""
    return [_flag(name) for name in OF_SPEECH if given[name] is not None]


def speech_options(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Speech options for Omni from a command's parameters, by name, checked against the model's configuration before
    any weights are read."""
    from omni_jax import weights
    from omni_jax.checkpoint.hub import locate
    from omni_jax.engine.request import why_no_talker
    from omni_jax.speech.synthesizer import synthesizer

    max_speech = given["max_speech"]
    if max_speech is not None and not 0 < max_speech < math.inf:
        raise ValueError(f"--max-speech: expected seconds above 0, got {max_speech}")
    folder = locate(model, weights=False)
    config = weights.config_of(folder)
    if config.talker is None:
        raise ValueError(f"{model}: it answers in text only: it {why_no_talker(folder)}")
    speech = synthesizer(config, folder)
    speech.choose(given["speaker"], 1)
    try:
        talker = sampling(given, "talker_", max_new_tokens=None if max_speech is None else speech.tokens(max_speech))
    except ValueError as error:
        raise ValueError(f"talker: {error}") from None
    return {"speaker": given["speaker"], "talker": talker}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@contextmanager
def speech_to(target: str | None) -> Iterator[Sound | None]:
    """Opens the file or stream for speech, if there is one, and prints how much was written."""
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
    """Consumes a reply's events as they come; writes their sound and, if ``text`` is given, their text.

    Args:
        events: of the reply.
        sound: where its sound goes, if anywhere.
        text: where its text goes, if anywhere.

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
        if text is not None:  # also if the work was stopped in the middle of a line
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
