"""omni-jax generate: answers a conversation from the command line, in text and speech."""

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from omni_jax.cli.options import (
    Dtype,
    Media,
    Model,
    Seed,
    Speech,
    Text,
    follow,
    given_of_speech,
    load,
    note_warnings,
    request_options,
    show,
    speech_options,
    speech_to,
    with_options,
)
from omni_jax.cli.terminal import bar
from omni_jax.errors import cut, shown

MEDIA = ("audio", "image", "video")


class InOrder(TyperCommand):
    """Keeps the order in which media were given: the parser has only one list for each option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        before_text = args[: args.index("--")] if "--" in args else args
        flags = [argument.split("=", 1)[0].removeprefix("--") for argument in before_text if argument.startswith("--")]
        ctx.meta["media"] = [flag for flag in flags if flag in MEDIA]
        return super().parse_args(ctx, args)


@with_options(Text, Media, Speech)
def generate(
    context: typer.Context,
    model: Model,
    text: Annotated[str | None, typer.Argument(help="What to ask.", metavar="[TEXT]")] = None,
    audio: Annotated[
        list[str] | None, typer.Option(help="A recording: wav, flac, ogg, mp3, m4a; a path or URL; repeatable.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option(help="A picture: jpeg, png, webp, gif, tiff; a path or URL; repeatable.")
    ] = None,
    video: Annotated[
        list[str] | None, typer.Option(help="A video: mp4, mkv, webm, mov; a path or URL; repeatable, media in order.")
    ] = None,
    conversation: Annotated[
        Path | None,
        typer.Option(help="JSON file with a list of messages as in Qwen's examples; text and media follow it."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it is made.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole reply as JSON.")] = False,
    tools: Annotated[Path | None, typer.Option(help="JSON file with a list of function schemas.")] = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    speak: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Speak the answer too, into a .wav or .flac file; - sends sound to standard output as it is made, for a "
            "player, and the text to standard error. Ctrl-C keeps what was spoken so far.",
        ),
    ] = None,
    **given: Any,
) -> None:
    """Answers a question about text, recordings, pictures and videos, in writing and, with --speak, in speech."""
    from omni_jax.decoding.text import CALL_STEPS
    from omni_jax.processing.conversation import check

    note_warnings()
    if stream and as_json:
        raise ValueError("--stream and --json: expected one of them, got both")
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages += _json(conversation, list, "a JSON list of messages") if conversation else []
    if system and any(isinstance(message, dict) and message.get("role") == "system" for message in messages[1:]):
        raise ValueError(f"--system: {conversation} has a system message already; leave one of them out")
    parts = _media_parts({"audio": audio or [], "image": image or [], "video": video or []}, context.meta["media"])
    parts += [{"type": "text", "text": text}] if text else []
    if not parts and not conversation:
        raise ValueError("nothing to answer: give a text, --audio, --image or --video FILE, or --conversation FILE")
    messages += [{"role": "user", "content": parts}] if parts else []
    check(messages)
    options = request_options({**given, "seed": seed})
    if speak is not None:
        options |= speech_options(model, given)
    elif flags := given_of_speech(given):
        raise ValueError(f"{', '.join(flags)}: nothing is spoken without --speak FILE; add it")
    schemas = _json(tools, list, "a JSON list of function schemas") if tools else None
    written = sys.stderr if speak == "-" else sys.stdout
    with speech_to(speak) as sound:
        omni = load(model, dtype, speech=sound is not None)
        pace = {} if stream or sound is not None else {"steps": CALL_STEPS}  # nobody waits for the first words
        with bar("reading", bytewise=False) as progress:
            events = omni.stream(messages, tools=schemas, progress=progress, **pace, **options)
        reply = follow(events, sound=sound, text=written if stream else None)
    if as_json:
        print(json.dumps(_plain(reply, speak)), file=written)
    elif not stream:
        show(reply, written)


def _plain(reply: Any, file: str | None) -> dict[str, Any]:
    """A reply for JSON; of its speech, only the file and its length."""
    found = asdict(replace(reply, codes=None, audio=None))
    for name in ("codes", "audio", "sample_rate", "speech_finish_reason"):
        del found[name]
    if file is not None:
        seconds, frames = round(len(reply.audio) / reply.sample_rate, 3), reply.codes.shape[1]
        found["speech"] = {"file": file, "seconds": seconds, "frames": frames, "sample_rate": reply.sample_rate}
    return found


def _json(path: Path, kind: type, expected: str) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected {expected} ({shown(error)})") from None
    if not isinstance(found, kind):
        raise ValueError(f"{path}: expected {expected}, got {type(found).__name__}")
    return found


def _media_parts(given: dict[str, list[str]], order: list[str]) -> list[dict[str, str]]:
    """The media of a message, in the order of the command line."""
    kinds = [kind for kind in MEDIA for _ in given[kind]]
    left = {kind: iter(paths) for kind, paths in given.items()}
    parts = []
    # An option's value may look like a flag (--system --image): then the order of kinds is used.
    for kind in order if sorted(order) == sorted(kinds) else kinds:
        path = next(left[kind])
        if "://" not in path and not path.startswith("data:") and not os.path.exists(path):  # also of a too long name
            raise ValueError(f"{cut(path, 200)}: no such {kind} file")
        parts.append({"type": kind, kind: path})
    return parts
