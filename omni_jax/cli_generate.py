"""omni-jax generate: a conversation from the command line, answered in writing and in speech."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from omni_jax.cli_reply import (
    Dtype,
    MaxSpeech,
    Model,
    Seed,
    Speaker,
    TalkerGreedy,
    TalkerTemperature,
    TalkerTopK,
    TalkerTopP,
    follow,
    load,
    show,
    speech_options,
    speech_to,
)
from omni_jax.shell import bar

MEDIA = ("audio", "image", "video")


class InOrder(TyperCommand):
    """Remembers in which order media were given: the parser keeps a list for each option and forgets what came between."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        before_text = args[: args.index("--")] if "--" in args else args
        flags = [argument.split("=", 1)[0].removeprefix("--") for argument in before_text if argument.startswith("--")]
        ctx.meta["media"] = [flag for flag in flags if flag in MEDIA]
        return super().parse_args(ctx, args)


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
    load_audio_from_video: Annotated[
        bool | None,
        typer.Option("--load-audio-from-video", "--use-audio-in-video", help="Hear the sound of videos too."),
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second to take from videos (2).")] = None,
    max_frames: Annotated[int | None, typer.Option(help="Most frames to take from a video (768).")] = None,
    allow_private: Annotated[bool, typer.Option("--allow-private", help="Fetch from private addresses too.")] = False,
    min_pixels: Annotated[int | None, typer.Option(help="Least area of an image or frame, in pixels.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Largest area of an image or frame, in pixels.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it is made.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole reply as JSON.")] = False,
    thinking: Annotated[bool | None, typer.Option(help="Ask a thinking model to think, or not to.")] = None,
    tools: Annotated[Path | None, typer.Option(help="JSON file with a list of function schemas.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    min_new_tokens: Annotated[int | None, typer.Option(help="Shortest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sample at this temperature.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among so many tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest of this total probability.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: repeat less.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")] = False,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer before this text; repeatable.")] = None,
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
    speaker: Speaker = None,
    max_speech: MaxSpeech = None,
    talker_temperature: TalkerTemperature = None,
    talker_top_k: TalkerTopK = None,
    talker_top_p: TalkerTopP = None,
    talker_greedy: TalkerGreedy = None,
) -> None:
    """Answers a question about text, recordings, pictures and videos, in writing and, with --speak, in speech."""
    from omni_jax.decoding.sampling import Sampling
    from omni_jax.processing import prompt
    from omni_jax.processing.options import MediaOptions

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
    prompt.check(messages)
    media = MediaOptions.named(
        {
            "load_audio_from_video": load_audio_from_video, "fps": fps, "max_frames": max_frames, "min_pixels": min_pixels,
            "max_pixels": max_pixels, "allow_private": allow_private,
        }
    )  # fmt: skip
    sampling = Sampling(
        max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
        repetition_penalty=repetition_penalty, do_sample=False if greedy else None, stop_strings=tuple(stop) if stop else None,
    )  # fmt: skip
    options: dict[str, Any] = {"thinker": sampling, "seed": seed}
    voice = {
        "speaker": speaker, "max_speech": max_speech, "talker_temperature": talker_temperature,
        "talker_top_k": talker_top_k, "talker_top_p": talker_top_p, "talker_greedy": talker_greedy,
    }  # fmt: skip
    if speak is not None:
        options |= speech_options(model, **voice)
    elif given := [f"--{name.replace('_', '-')}" for name, value in voice.items() if value is not None]:
        raise ValueError(f"{', '.join(given)}: nothing is spoken without --speak FILE; add it")
    schemas = _json(tools, list, "a JSON list of function schemas") if tools else None
    template = {} if thinking is None else {"enable_thinking": thinking}
    written = sys.stderr if speak == "-" else sys.stdout
    with speech_to(speak) as sound:
        omni = load(model, dtype, speech=sound is not None)
        with bar("reading", bytewise=False) as progress:
            batch = omni.prepare(messages, media=media, tools=schemas, progress=progress, **template)
        if stream or sound is not None:
            reply = follow(omni.stream(batch, **options), sound=sound, text=written if stream else None)
        else:
            reply = omni.generate(batch, **options)
    if as_json:
        print(json.dumps(_plain(reply, speak)), file=written)
    elif not stream:
        show(reply, written)


def _plain(reply: Any, file: str | None) -> dict[str, Any]:
    """A reply for JSON: of its speech, where it is and how much."""
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
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected {expected} ({error})") from None
    if not isinstance(found, kind):
        raise ValueError(f"{path}: expected {expected}, got {type(found).__name__}")
    return found


def _media_parts(given: dict[str, list[str]], order: list[str]) -> list[dict[str, str]]:
    """The media of a message, in the order of the command line."""
    kinds = [kind for kind in MEDIA for _ in given[kind]]
    left = {kind: iter(paths) for kind, paths in given.items()}
    parts = []
    # An option's own value may look like a flag (--system --image): then the kinds' order has to do.
    for kind in order if sorted(order) == sorted(kinds) else kinds:
        path = next(left[kind])
        if "://" not in path and not path.startswith("data:") and not Path(path).exists():
            raise ValueError(f"{path}: no such {kind} file")
        parts.append({"type": kind, kind: path})
    return parts
