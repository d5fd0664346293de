"""The shell's way in: omni-jax demo | generate | convert | inspect."""

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from omni_jax.shell import bar, note, run

app = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# What typer raises for an unknown option or a missing argument; it has no public name for it.
UsageError = typer.BadParameter.__mro__[1]

Model = Annotated[
    str, typer.Argument(help="A Hugging Face folder, a converted folder or a hub id (owner/name).", metavar="MODEL")
]
Dtype = Annotated[
    str | None, typer.Option(help="float32 or bfloat16; by default bfloat16 on TPU and GPU, float32 on CPU.")
]


def main() -> None:
    """Runs a command; a user's mistake is one line and exit code 2 (OMNI_JAX_DEBUG=1 shows the traceback)."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # torch is not missing here, it is not needed
    run(lambda: app(standalone_mode=False), "omni-jax", usage=UsageError)


@app.callback()
def _start(context: typer.Context) -> None:
    """Qwen's omni models in JAX: they hear, see, read and write.

    Compiled programs are kept between runs: JAX_COMPILATION_CACHE_DIR chooses where, empty switches it off.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())
    else:
        keep_programs()


def keep_programs() -> None:
    """Has JAX keep compiled programs on the disk."""
    import jax

    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "omni_jax" / "programs"))
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


MEDIA = ("audio", "image", "video")


class InOrder(TyperCommand):
    """Remembers in which order media were given: the parser keeps a list for each option and forgets what came between."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        before_text = args[: args.index("--")] if "--" in args else args
        flags = [argument.split("=", 1)[0].removeprefix("--") for argument in before_text if argument.startswith("--")]
        ctx.meta["media"] = [flag for flag in flags if flag in MEDIA]
        return super().parse_args(ctx, args)


@app.command(cls=InOrder)
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
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    dtype: Dtype = None,
) -> None:
    """Answers a question about text, recordings, pictures and videos."""
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
    schemas = _json(tools, list, "a JSON list of function schemas") if tools else None
    template = {} if thinking is None else {"enable_thinking": thinking}
    omni = _load(model, dtype, speech=False)
    with bar("reading", bytewise=False) as progress:
        batch = omni.prepare(messages, media=media, tools=schemas, progress=progress, **template)
    if stream:
        _print_stream(omni.stream(batch, **options))
        return
    reply = omni.generate(batch, **options)
    if as_json:
        print(
            json.dumps(
                {name: value for name, value in asdict(reply).items() if name not in ("codes", "audio", "sample_rate")}
            )
        )
        return
    if reply.thinking:
        note.print(reply.thinking, style="dim", markup=False)
    print(reply.text)
    for call in reply.tool_calls:
        print(json.dumps(call, ensure_ascii=False))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A Hugging Face folder (or, with --to-hf, a converted one).")],
    target: Annotated[Path, typer.Argument(help="The folder to write.")],
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; by default as stored.")] = None,
    to_hf: Annotated[
        bool, typer.Option("--to-hf", help="Write published safetensors from a converted folder.")
    ] = False,
) -> None:
    """Writes a converted checkpoint (Orbax) that loads onto any mesh; run again, it goes on where it stopped."""
    from omni_jax import checkpoint

    action = checkpoint.export if to_hf else checkpoint.convert
    with bar("converting") as progress:
        action(source, target, dtype=_dtype(dtype), progress=progress)
    note.print(f"wrote {target}", markup=False)


@app.command()
def inspect(
    model: Model,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Shows the parts of a checkpoint, their parameters, stored dtypes and memory; reads no weights."""
    from omni_jax.describe import describe

    found = describe(model)
    if as_json:
        print(json.dumps(found))
        return
    table = Table(
        "part", "parameters", "stored as", "bfloat16", "float32", title=f"{found['folder']}  ({found['family']})"
    )
    for part in found["parts"]:
        table.add_row(
            part["name"],
            f"{part['parameters']:,}",
            part["stored"],
            *(_gigabytes(part["parameters"] * size) for size in (2, 4)),
        )
    table.add_section()
    total = found["parameters"]
    table.add_row("all", f"{total:,}", "", _gigabytes(2 * total), _gigabytes(4 * total))
    out = Console(highlight=False)
    out.print(table)
    out.print(
        f"context {found['context']:,} tokens; cache {found['cache_bytes_per_token'] / 1e3:.1f} kB a token in bfloat16"
    )
    out.print(f"speakers: {', '.join(found['speakers']) or 'none (text only)'}")


@app.command()
def demo(
    keep: Annotated[Path | None, typer.Option(help="Keep the model in this folder (default: a temporary one).")] = None,
) -> None:
    """Hears a recording and sees a picture with a tiny model of random weights: no download. Shows that everything works."""
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
        note.print("3/3  listening to a recording, looking at a picture and answering")
        omni = _load(str(folder / "converted"), None, speech=None)
        with resources.as_file(resources.files("omni_jax") / "assets" / RECORDING) as recording:
            content = [
                {"type": "audio", "audio": str(recording)},
                {"type": "image", "image": Image.radial_gradient("L")},
                {"type": "text", "text": "What is said, and what is there to see?"},
            ]
            _print_stream(
                omni.stream([{"role": "user", "content": content}], thinker_max_new_tokens=48, thinker_top_k=20)
            )
    note.print(
        "The weights are random, so the answer is noise: this shows that the whole path runs, not what the model knows.\n"
        "With real weights: omni-jax generate Qwen/Qwen3-Omni-30B-A3B-Instruct --audio FILE \"What is said?\"",
        markup=False,
    )  # fmt: skip


RECORDING = "hello.flac"


def _print_stream(events: Iterator[Any]) -> None:
    for event in events:
        if event.thinking:
            note.print(event.thinking, end="", style="dim", markup=False)
        print(event.text, end="", flush=True)
        for call in event.reply.tool_calls if event.reply else ():
            print("\n" + json.dumps(call, ensure_ascii=False), end="")
    print()


def _load(model: str, dtype: str | None, *, speech: bool | None) -> Any:
    from omni_jax.omni import Omni

    with bar("loading") as progress:
        return Omni.load(model, dtype=_dtype(dtype), speech=speech, progress=progress)


def _dtype(name: str | None) -> Any:
    import jax.numpy as jnp

    if name not in (None, "float32", "bfloat16"):
        raise ValueError(f"--dtype: expected float32 or bfloat16, got {name}")
    return name and jnp.dtype(name)


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


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


if __name__ == "__main__":
    main()
