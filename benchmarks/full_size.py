"""Qwen3-Omni-30B-A3B at full size on this machine's GPU or TPUs: time to the first answer, and the rate after it.

    python benchmarks/full_size.py [--clients 1,4,6,12,32] [--video] [--part thinker|speech] [--json FILE]

The model has the published configuration and random bfloat16 weights (70.5 GB), made on the device: nothing is read or
downloaded. So many clients arrive at once, each with 5 s of sound and 32 words (with --video also 10 s of pictures). They
are answered in one batch as omni.stream answers one: text and sound as they are ready. Times count from the raw samples
and pixels of all clients. Programs are compiled before anything is timed. --scale tiny runs a tiny model on a CPU.
"""

import argparse
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from programs import compilation, timed

from omni_jax import Omni
from omni_jax.config import OmniConfig, from_hf
from omni_jax.decoding.frames import FRAMES_PER_CALL, generate_frames
from omni_jax.engine import encode
from omni_jax.engine.answer import Request, answer
from omni_jax.engine.options import RequestOptions
from omni_jax.engine.reply import Event
from omni_jax.models import parts
from omni_jax.models.placement import shardings
from omni_jax.models.qwen3_omni.code2wav import Code2Wav
from omni_jax.nn.layers import Init
from omni_jax.processing import prompt
from omni_jax.processing.batch import Batch
from omni_jax.processing.conversation import Media
from omni_jax.processing.media import reader
from omni_jax.processing.options import MediaOptions
from omni_jax.processing.transcript import Transcript
from omni_jax.speech.stream import SpeechStream
from omni_jax.testing import tiny_config
from omni_jax.testing.qwen3_omni import preprocessor

PUBLISHED = Path(__file__).parents[1] / "tests" / "configs" / "qwen3_omni_instruct.json"
SOUND_S, SOUND_RATE, WORDS, NEWLINE = 5, 16_000, 32, 198
VIDEO_S, VIDEO_FPS, VIDEO_SIDE = 10, 2, 224
FRAME_S, SPEECH_RATE = 0.08, 24_000
# Weights with more elements are drawn layer by layer: drawing takes several times their memory.
LARGE = 1 << 30

# The Qwen3-Omni report (arXiv:2509.17765, table 2): first packet in ms, and RTF, by the number of clients.
REPORT_MS = {"audio": {1: 234, 4: 728, 6: 1172}, "video": {1: 547, 4: 1517, 6: 2284}}
REPORT_RTF = {1: 0.47, 4: 0.56, 6: 0.66}
TO_BEAT = (
    "to beat: the report's columns; 6.4 ms a frame (talker 2.30, predictor 4.09) for 12 streams on an H100. Aim for 1 client "
    "on an H200: first sound 120 ms (video 280 ms), RTF 0.08"
)
# Columns of the table: medians, some with the 95th percentile in parentheses.
COLUMNS = {
    "reading_ms": "reading", "encoding_ms": "encoding", "prefill_ms": "prefill", "first_text_ms": "first text",
    "first_sound_ms": "first sound", "report_ms": "report", "token_ms": "a token", "prompt_ms": "prompt",
    "first_chunk_ms": "first chunk", "frame_ms": "a frame", "vocoder_ms": "its vocoder", "stall_ms": "stall", "rtf": "RTF",
    "report_rtf": "report", "wall_rtf": "wall RTF", "tokens_per_s": "tokens/s",
}  # fmt: skip
SPREAD = ("first_text_ms", "first_sound_ms", "first_chunk_ms")

Figures = Mapping[str, Sequence[float]]


class Layered(Init):
    """Random weights whose largest arrays are drawn layer by layer, into place."""

    def normal(self, shape: Sequence[int], axes: Any, *, fan_in: int) -> nnx.Param:
        if math.prod(shape) < LARGE:
            return super().normal(shape, axes, fan_in=fan_in)
        scale = jnp.asarray(1 / math.sqrt(fan_in), self.dtype)

        def draw(key):
            return scale * jax.random.normal(key, tuple(shape[1:]), self.dtype)

        return nnx.Param(jax.lax.map(draw, jax.random.split(self.key(), shape[0])), axes=axes)


# Instead of a tokenizer: each id is a letter, so that a token is text as soon as it is generated.
LETTERS: Any = SimpleNamespace(
    get_added_vocab=dict, added_tokens_decoder={}, convert_ids_to_tokens=lambda token: chr(ord("a") + token % 26)
)


def make(config: OmniConfig, dtype: Any, devices: Sequence[Any]) -> parts.OmniParts:
    """The parts with random weights, made on the first device, or with the experts spread over several."""
    mesh = jax.sharding.Mesh(np.asarray(devices), ("expert",)) if len(devices) > 1 else None
    builders, made = parts.builders(config), {}
    # The default generator's programs take minutes to compile here.
    keys = jax.random.split(jax.random.key(0, impl="unsafe_rbg"), len(builders))
    for (name, build), key in zip(builders.items(), keys, strict=True):

        def draw(key, name=name, build=build):
            return {name: build(Layered(key, dtype))}

        abstract = jax.eval_shape(draw, key)
        placed = None if mesh is None else parts.replace(abstract, shardings(abstract, mesh))
        # One part at a time, so that the extra memory of drawing is not needed for all of them at once.
        made |= jax.block_until_ready(jax.jit(draw, out_shardings=placed)(key))
    return parts.collect(config, made)


def build(scale: str, devices: Sequence[Any], folder: Path) -> Omni:
    """The model; writes the two small files that it needs beside its weights into ``folder``."""
    published = json.loads(PUBLISHED.read_text())
    hub, dtype = (published["config"], jnp.bfloat16) if scale == "full" else (tiny_config(), jnp.float32)
    (folder / "generation_config.json").write_text(json.dumps(published["generation_config"]))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(hub["thinker_config"])))
    config = from_hf(hub)
    return Omni(make(config, dtype, devices), config, folder)


@dataclass(frozen=True)
class Question:
    """A client's input: samples [W] at 16 kHz, ids of words, frames [n, h, w, 3] or none."""

    samples: np.ndarray
    words: np.ndarray
    frames: np.ndarray | None


def questions(clients: int, *, video: bool, seed: int) -> list[Question]:
    """Questions that all differ, because equal ones would choose the same experts."""
    rng, seconds, asked = np.random.default_rng(seed), np.arange(SOUND_S * SOUND_RATE) / SOUND_RATE, []
    for _ in range(clients):
        tones = sum(np.sin(2 * np.pi * tone * seconds) for tone in rng.uniform(80, 4000, 3))
        samples = (0.1 * tones + 0.02 * rng.standard_normal(seconds.size)).astype(np.float32)
        coarse = rng.integers(0, 256, (VIDEO_S * VIDEO_FPS, 7, 7, 3), np.uint8)
        frames = np.kron(coarse, np.ones((1, VIDEO_SIDE // 7, VIDEO_SIDE // 7, 1), np.uint8)) if video else None
        asked.append(Question(samples, rng.integers(0, 256, WORDS), frames))
    return asked


def read(omni: Omni, asked: Sequence[Question]) -> Batch:
    """Questions as arrays, by the library's own media readers; tokens are given, because there is no tokenizer."""
    config, thinker = omni.config, omni.config.thinker
    rows, found = [], []
    for question in asked:
        items, ids = [], [config.im_start, config.user, NEWLINE]
        if question.frames is not None:
            items.append(Media("video", question.frames, "video", {"fps": VIDEO_FPS}))
            ids += [thinker.vision_start, thinker.video_token, thinker.vision_end]
        items.append(Media("audio", question.samples, "audio"))
        ids += [thinker.audio_start, thinker.audio_token, thinker.audio_end, *question.words.tolist()]
        ids += [config.im_end, NEWLINE, config.im_start, config.assistant, NEWLINE]
        found.append(reader.read(items, omni.reader, MediaOptions()))
        rows.append(prompt.expand(ids, found[-1].runs))
    mel, videos = [clip for item in found for clip in item.mel], [video for item in found for video in item.videos]
    return Batch.from_tokens(np.asarray(rows), mel=mel, videos=videos)


@dataclass(frozen=True)
class Load:
    """The size of a reply: tokens of text and frames of sound, tokens a call of the thinker; and the speaker."""

    tokens: int
    frames: int
    steps: int
    speaker: str

    def request(self, omni: Omni, batch: Batch, *, seed: int, aloud: bool = True) -> Request:
        """A request for replies of exactly this length, as random weights never end; all else as in the checkpoint."""
        options = dict(
            seed=[seed + row for row in range(len(batch.tokens))], return_audio=aloud, speaker=self.speaker,
            thinker_max_new_tokens=self.tokens, thinker_min_new_tokens=self.tokens,
            # The token that ends speech is counted, and gives no frame.
            talker_max_new_tokens=self.frames + 1, talker_min_new_tokens=self.frames + 1,
        )  # fmt: skip
        asked = RequestOptions.from_mapping(options, rows=len(batch.tokens))
        return replace(omni.request_of(batch, asked), transcript=lambda row: Transcript(LETTERS))


def whole(omni: Omni, asked: Sequence[Question], load: Load, seed: int, *, aloud: bool = True) -> Figures:
    """Answers clients that arrive together, from their raw media to their last sample."""
    start = time.perf_counter()
    batch = read(omni, asked)
    reading = 1e3 * (time.perf_counter() - start)
    request = load.request(omni, batch, seed=seed, aloud=aloud)
    events = [
        (time.perf_counter() - start, row, event)
        for row, event in answer(omni.parts, omni.config, request, steps=load.steps, streamed=True)
    ]
    text = {"reading_ms": [reading], **texts(events, len(asked))}
    if not aloud:
        return text
    sound = sounds(events, len(asked), omni.parts.code2wav)
    # As in the report: the cost of one token and one frame, divided by a frame's duration.
    rtf = (text["token_ms"][0] + sound["frame_ms"][0]) / (1e3 * FRAME_S)
    return {**text, **sound, "rtf": [rtf]}


Times = Sequence[tuple[float, int, Event]]


def spent(events: Times, wanted: Callable[[Event], bool]) -> float:
    """Milliseconds of work on events of one kind, without the first event, which waits for the prompt.

    Nothing runs concurrently: the time between two events is the work on the second.
    """
    gaps = [after - before for (before, _, _), (after, _, event) in itertools.pairwise(events) if wanted(event)]
    return 1e3 * sum(gaps if wanted(events[0][2]) else gaps[1:])


def texts(events: Times, clients: int) -> Figures:
    """Measures of a run's text, from its events."""
    pieces = [[(at, len(event.text)) for at, row, event in events if row == n and event.text] for n in range(clients)]
    counts = [sum(count for _, count in row) for row in pieces]
    token = spent(events, lambda event: bool(event.text)) / (counts[0] - pieces[0][0][1])
    return {
        "first_text_ms": [1e3 * row[0][0] for row in pieces], "token_ms": [token], "tokens_per_s": [1e3 * clients / token],
        "tokens": counts,
    }  # fmt: skip


def sounds(events: Times, clients: int, vocoder: Code2Wav) -> Figures:
    """Measures of a run's sound, from its events."""
    found: dict[str, list[float]] = {name: [] for name in ("first_sound_ms", "stall_ms", "wall_rtf", "frames")}
    after_first = 0.0
    for client in range(clients):
        own = [(at, event.audio.size) for at, row, event in events if row == client and event.audio is not None]
        times, sizes = np.asarray(own).T
        ends = np.cumsum(sizes) / SPEECH_RATE
        # Playback that starts with the first chunk stalls where a later chunk comes after all earlier sound was played.
        late = times[1:] - times[0] - ends[:-1]
        found["first_sound_ms"].append(1e3 * times[0])
        found["stall_ms"].append(1e3 * late.max(initial=0))
        found["wall_rtf"].append(times[-1] / ends[-1])
        found["frames"].append((sizes.sum() + vocoder.lag) / vocoder.frame_samples)
        after_first = sizes[1:].sum() / vocoder.frame_samples
    return found | {"frame_ms": [spent(events, lambda event: event.audio is not None) / after_first]}


def thinker(omni: Omni, asked: Sequence[Question], load: Load, seed: int) -> Figures:
    """Text only; splits the time to its first token into encoding and prefill."""
    batch = read(omni, asked)
    placed = encode.pad_and_index(batch, omni.config.thinker)
    _, encoding = timed(lambda: encode.embed(omni.parts, placed, omni.config.thinker))
    found = whole(omni, asked, load, seed, aloud=False)
    prefill = found["first_text_ms"][0] - found["reading_ms"][0] - encoding
    return {**found, "encoding_ms": [encoding], "prefill_ms": [prefill]}


def speech(omni: Omni, asked: Sequence[Question], load: Load, seed: int) -> Figures:
    """Speech only, of given tokens: its prompt, its first chunk, a frame's codes, a frame's samples."""
    batch = read(omni, asked)
    spoken = load.request(omni, batch, seed=seed).speech
    assert spoken is not None
    # Any states will do instead of the thinker's at the prompt; these have their shape.
    states = encode.embed(
        omni.parts, encode.pad_and_index(batch, omni.config.thinker), omni.config.thinker
    ).x.block_until_ready()

    def listen() -> tuple[SpeechStream, Any]:
        stream = spoken.make(omni.parts, omni.config, spoken, states, streamed=True)
        return stream, stream.states

    (stream, _), listening = timed(listen)
    for row in range(len(asked)):
        stream.add_text(row, [0] * load.tokens, list(range(load.tokens)), ended=True)
    _, first = timed(stream.advance)
    (state, rows), count = stream.states, min(FRAMES_PER_CALL, load.frames - 1)
    words = jnp.zeros((len(stream.rows), FRAMES_PER_CALL, state.frame.shape[-1]), state.frame.dtype)
    models = omni.parts.talker, omni.parts.code_predictor
    (_, codes), frame = timed(
        lambda: generate_frames(*models, state, words, rows, np.int32(count), candidates=stream.candidates)
    )
    codes = np.asarray(codes)[: len(asked), :, :count]
    _, vocoder = timed(lambda: omni.decode_codes(codes))
    times = {"prompt_ms": listening, "first_chunk_ms": first, "frame_ms": frame / count, "vocoder_ms": vocoder / count}
    return {name: [value] for name, value in times.items()}


STAGES = {"all": whole, "thinker": thinker, "speech": speech}


def measure(omni: Omni, clients: int, load: Load, given: argparse.Namespace) -> dict[str, Any]:
    """Measures a stage for so many clients, warm: medians and 95th percentiles over runs and clients."""

    def once(seed: int) -> Figures:
        return STAGES[given.part](omni, questions(clients, video=given.video, seed=seed), load, 1000 * seed)

    with compilation() as compiled:
        once(0)
    with compilation() as late:
        runs = [once(seed) for seed in range(1, given.repeat + 1)]
    if given.trace:
        with jax.profiler.trace(str(given.trace / f"{clients}_clients")):
            once(given.repeat + 1)
    result: dict[str, Any] = {
        name: dict(zip(("p50", "p95"), np.percentile([run[name] for run in runs], (50, 95)).tolist(), strict=True))
        for name in runs[0]
        if name not in ("tokens", "frames")
    }
    if given.part == "all" and given.scale == "full":
        report = REPORT_MS["video" if given.video else "audio"]
        result |= {"report_ms": {"p50": report.get(clients)}, "report_rtf": {"p50": REPORT_RTF.get(clients)}}
    made = {name: runs[-1][name] for name in ("tokens", "frames") if name in runs[-1]}
    times = {"programs": len(compiled), "compile_s": sum(compiled), "compiled_while_timed": len(late)}
    return result | times | made


def memory(device: Any) -> dict[str, int] | None:
    """Bytes on a device, now and at peak; None if it does not report them."""
    stats = device.memory_stats()
    return stats and {"in_use": stats["bytes_in_use"], "peak": stats.get("peak_bytes_in_use", 0)}


def line(clients: int, found: dict[str, Any], *, head: bool) -> str:
    """A line of the table, or its head."""
    cells = "clients" if head else f"{clients:>7}"
    for name in (name for name in COLUMNS if name in found):
        p50, p95 = found[name]["p50"], found[name].get("p95")
        digits = 2 if name.endswith(("rtf", "frame_ms", "vocoder_ms")) else 0 if name == "report_ms" else 1
        cell = "" if p50 is None else f"{p50:.{digits}f}" + (f" ({p95:.1f})" if name in SPREAD else "")
        cells += f"{COLUMNS[name] if head else cell:>{17 if name in SPREAD else 12}}"
    return cells + ("" if head else f"   ({found['programs']} programs compiled in {found['compile_s']:.0f} s)")


def run(given: argparse.Namespace, folder: Path) -> None:
    devices = jax.devices()[: given.devices]
    load = Load(given.tokens, given.frames, given.steps, given.speaker)
    omni, milliseconds = timed(lambda: build(given.scale, devices, folder))
    held = {name: sum(leaf.nbytes for leaf in jax.tree.leaves(part)) for name, part in omni.parts.items()}
    result: dict[str, Any] = {
        "device": devices[0].device_kind, "devices": len(devices), "jax": jax.__version__, "scale": given.scale,
        "part": given.part, "input": "video" if given.video else "audio", "tokens": given.tokens, "frames": given.frames,
        "prompt": int(read(omni, questions(1, video=given.video, seed=0)).lengths[0]), "repeat": given.repeat,
        "weights_bytes": held, "weights_s": milliseconds / 1e3, "memory_of_weights": memory(devices[0]), "clients": {},
    }  # fmt: skip
    sizes = ", ".join(f"{name} {size / 1e9:.3f}" for name, size in held.items())
    print(f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}, {given.scale} size, {result['input']} in")
    print(f"weights: {sum(held.values()) / 1e9:.3f} GB ({sizes}), made in {milliseconds / 1e3:.0f} s")
    print(f"bytes of the first device: {result['memory_of_weights'] or 'not told'}")
    print(f"prompts of {result['prompt']} tokens; replies of {given.tokens} tokens and {given.frames} frames of 80 ms")
    print(f"medians of {given.repeat} runs, 95th percentiles in parentheses; ms", flush=True)
    if given.scale == "full":
        print(TO_BEAT)
    for clients in given.clients:
        found = measure(omni, clients, load, given)
        if not result["clients"]:
            print(line(clients, found, head=True))
        print(line(clients, found, head=False), flush=True)
        result["clients"][str(clients)] = found | {"memory": memory(devices[0])}
        if given.json:  # after each, because the next may not fit
            given.json.write_text(json.dumps(result, indent=1))
    print(f"bytes of the first device: {memory(devices[0]) or 'not told'}")


def number(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def numbers(text: str) -> list[int]:
    return [number(item) for item in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=numbers, default="1,4,6,12,32", help="how many at once (%(default)s)")
    parser.add_argument("--repeat", type=number, default=10, help="timed runs of each number of clients (%(default)s)")
    parser.add_argument("--tokens", type=number, default=50, help="of text in a reply (%(default)s)")
    parser.add_argument("--frames", type=number, default=150, help="of 80 ms of sound in a reply (%(default)s)")
    parser.add_argument("--steps", type=number, default=4, help="tokens a call of the thinker (%(default)s)")
    parser.add_argument("--speaker", type=str.lower, choices=("aiden", "chelsie", "ethan"), default="ethan")
    parser.add_argument("--video", action="store_true", help=f"{VIDEO_S} s of pictures beside each client's sound")
    parser.add_argument("--part", choices=STAGES, default="all", help="one stage alone (%(default)s)")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full")
    parser.add_argument("--devices", type=number, help="how many to use (all)")
    parser.add_argument("--trace", type=Path, help="folder for a profile of one more run")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    if min(given.tokens, given.frames) < 2:
        parser.error("--tokens, --frames: expected at least 2, for the first of each waits for its prompt")
    if given.scale == "full" and jax.default_backend() == "cpu":
        parser.error("the full size needs a GPU or TPUs, and JAX sees none; give --scale tiny to try the program here")
    with tempfile.TemporaryDirectory() as folder:
        run(given, Path(folder))


if __name__ == "__main__":
    main()
