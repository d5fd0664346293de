"""Shared by the commands that answer: the model, options, and printing and speaking a reply."""

import inspect
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any, TextIO, TypeVar, get_type_hints

import typer

from omni_jax.cli.sound_file import Sound, sound_out
from omni_jax.cli.terminal import bar, note

Model = Annotated[
    str, typer.Argument(help="A Hugging Face folder, a converted folder or a hub id (owner/name).", metavar="MODEL")
]
Dtype = Annotated[
    str | None, typer.Option(help="float32 or bfloat16; by default bfloat16 on TPU and GPU, float32 on CPU.")
]
Seed = Annotated[int, typer.Option(help="Seed of the sampling.")]


class Media:
    """How media are read."""

    load_audio_from_video: Annotated[
        bool | None,
        typer.Option("--load-audio-from-video", "--use-audio-in-video", help="Hear the sound of videos too."),
    ] = None
    fps: Annotated[float | None, typer.Option(help="Frames a second to take from videos (2).")] = None
    max_frames: Annotated[int | None, typer.Option(help="Most frames to take from a video (768).")] = None
    min_pixels: Annotated[int | None, typer.Option(help="Least area of an image or frame, in pixels.")] = None
    max_pixels: Annotated[int | None, typer.Option(help="Largest area of an image or frame, in pixels.")] = None
    allow_private: Annotated[bool | None, typer.Option("--allow-private", help="Fetch from private addresses too.")] = (
        None
    )


class Text:
    """How the answer's text is generated."""

    thinking: Annotated[bool | None, typer.Option(help="Ask a thinking model to think, or not to.")] = None
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None
    min_new_tokens: Annotated[int | None, typer.Option(help="Shortest answer, in tokens.")] = None
    temperature: Annotated[float | None, typer.Option(help="Sample at this temperature.")] = None
    top_k: Annotated[int | None, typer.Option(help="Sample among so many tokens.")] = None
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest of this total probability.")] = None
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: repeat less.")] = None
    greedy: Annotated[bool | None, typer.Option("--greedy", help="Always the likeliest token.")] = None
    stop: Annotated[list[str] | None, typer.Option(help="End the answer before this text; repeatable.")] = None


class Speech:
    """How it is spoken."""

    speaker: Annotated[
        str | None, typer.Option(help="Whose voice; omni-jax inspect MODEL lists them (default: the family's first).")
    ] = None
    max_speech: Annotated[
        float | None,
        typer.Option(
            help="Longest speech, in seconds (5 minutes, if the checkpoint sets no other).", metavar="SECONDS"
        ),
    ] = None
    talker_temperature: Annotated[float | None, typer.Option(help="Sample the sound at this temperature.")] = None
    talker_top_k: Annotated[int | None, typer.Option(help="Sample the sound among so many codes.")] = None
    talker_top_p: Annotated[
        float | None, typer.Option(help="Sample the sound among the likeliest codes of this total probability.")
    ] = None
    talker_greedy: Annotated[bool | None, typer.Option("--talker-greedy", help="Always the likeliest code.")] = None


Command = TypeVar("Command", bound=Callable[..., None])


def with_options(*groups: type) -> Callable[[Command], Command]:
    """Adds the options of groups to a command, which gets them as its ``**given``."""

    def add(command: Command) -> Command:
        signature, hints = inspect.signature(command), get_type_hints(command, include_extras=True)
        own = [item for item in signature.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=getattr(group, name), annotation=kind)
            for group in groups
            for name, kind in get_type_hints(group, include_extras=True).items()
        ]
        command.__signature__ = signature.replace(parameters=[*own, *shared])  # pyright: ignore
        command.__annotations__ = hints | {item.name: item.annotation for item in shared}
        return command

    return add


def request_options(given: Mapping[str, Any]) -> Any:
    """A command's options of media and text as keywords of ``Omni.generate``, in a dictionary."""
    from omni_jax.engine.options import RequestOptions

    found = {name: given[name] for name in get_type_hints(Media)} | {"seed": given["seed"]}
    names = ("max_new_tokens", "min_new_tokens", "repetition_penalty")
    found |= {f"thinker_{name}": given[name] for name in names} | _sampled(given, "", "thinker_")
    found["thinker_stop_strings"] = tuple(given["stop"] or ()) or None
    if given["thinking"] is not None:
        found["template"] = {"enable_thinking": given["thinking"]}
    try:
        RequestOptions.from_mapping(found)  # before any weights are read
    except ValueError as error:
        raise ValueError(str(error).removeprefix("thinker_")) from None  # flags have no such prefix
    return {name: value for name, value in found.items() if value is not None}


def given_of_speech(given: Mapping[str, Any]) -> list[str]:
    """The speech options that a command was given, as flags."""
    return [_flag(name) for name in get_type_hints(Speech) if given[name] is not None]


def speech_options(model: str, given: Mapping[str, Any]) -> Any:
    """A command's options of speech as keywords of ``Omni.generate``, in a dictionary, checked against the model's
    configuration before any weights are read."""
    from omni_jax import weights
    from omni_jax.checkpoint.hub import locate
    from omni_jax.engine.options import RequestOptions
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
    speech.select_speakers(given["speaker"], 1)
    found = {"speaker": given["speaker"], **_sampled(given, "talker_", "talker_")}
    if max_speech is not None:
        found["talker_max_new_tokens"] = speech.tokens(max_speech)
    RequestOptions.from_mapping(found)
    return {name: value for name, value in found.items() if value is not None}


def _sampled(given: Mapping[str, Any], prefix: str, part: str) -> dict[str, Any]:
    """A part's keywords of sampling, from the flags with a prefix."""
    drawn = {name: given[f"{prefix}{name}"] for name in ("temperature", "top_k", "top_p")}
    if not given[f"{prefix}greedy"]:
        return {f"{part}{name}": value for name, value in drawn.items()}
    if ignored := [_flag(f"{prefix}{name}") for name, value in drawn.items() if value is not None]:
        raise ValueError(
            f"{_flag(f'{prefix}greedy')} and {', '.join(ignored)}: expected one of them; leave the other out"
        )
    return {f"{part}do_sample": False}


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
