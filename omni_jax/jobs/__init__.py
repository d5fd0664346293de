"""Batch jobs: conversations in JSONL to answers in JSONL, on one host or many; a stopped job resumes where it was.

A line of input is a conversation, a list of messages, or an object with ``messages``, an optional ``id`` and options of
its own:

    {"id": "a7", "messages": [{"role": "user", "content": "Hi"}], "seed": 3, "thinker_max_new_tokens": 64}

A line of output has the number of its input line and the result:

    {"line": 1, "id": "a7", "text": "Hello!", ..., "speech": {"file": "answers.sound/00000001.wav", ...}, "of": "..."}
    {"line": 2, "error": "a.wav: no such file; expected the path of a sound file", "of": "..."}

With several hosts, each has the model on its own devices and answers every n-th line; or as many hosts as a model needs
share one copy of it, and answer their part of the lines together (``load``).
"""

import io
import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Unpack

import jax
import numpy as np
import soundfile
from orbax.checkpoint import multihost

from omni_jax.checkpoint.hub import locate
from omni_jax.config import from_hf
from omni_jax.decoding.sampling import Sampling
from omni_jax.engine.continuous import Item, Outcome, answers
from omni_jax.engine.keywords import JobKeywords
from omni_jax.engine.options import RequestOptions
from omni_jax.engine.reply import Reply
from omni_jax.engine.transformers_keywords import translated
from omni_jax.errors import RetryableError, is_user_error, shown
from omni_jax.jobs.input import lines_of, parsed
from omni_jax.jobs.output import JobOutput
from omni_jax.omni import Omni
from omni_jax.parallel.mesh import make_mesh, well_chosen
from omni_jax.parallel.multihost import HostGroup, devices_of_copy, digest, to_host
from omni_jax.processing.options import MediaOptions, is_number

SOUNDS = ("wav", "flac")
COMPRESSED = (".gz", ".bz2", ".xz", ".zip", ".zst", ".lz4")
DOWNLOADS = ("max_bytes", "timeout", "allow_private", "allow_local")
# Device calls that a trace covers: enough for compilation, prefills and decoding, few enough that tools can open it.
PROFILED_CALLS = 50
WEEK = 7 * 24 * 3600

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Totals:
    """Totals of a job.

    Attributes:
        lines: of the input; ``answered`` and ``faults`` add up to it.
        answered: lines with a reply.
        faults: lines with an error.
        resumed: lines that earlier runs had answered.
        tokens: of the replies, of all runs.
        speech_seconds: of the replies, of all runs.
        seconds: duration of this run.
        tokens_per_second: of this run, over all of its processes.
        speech_per_second: of this run, over all of its processes.
    """

    lines: int
    answered: int
    faults: int
    resumed: int
    tokens: int
    speech_seconds: float
    seconds: float
    tokens_per_second: float
    speech_per_second: float


def load(path: str, *, mesh: str | None = None, **options: Any) -> Omni:
    """Loads the model for a job. With several processes, each has it on its own devices, or neighbours share a copy.

    Args:
        path: as in ``Omni.load``.
        mesh: devices of one copy of the model, a shape such as ``data=2,expert=4`` or a topology such as ``v5e-8``;
            None for all devices of the process, in a chosen shape. A copy with more devices than a process has spans
            several processes.
        options: as in ``Omni.load``.

    Raises:
        ValueError: such copies do not take whole hosts; or as in ``Omni.load``.
    """
    if jax.process_count() == 1:
        return Omni.load(path, mesh=mesh, **options)
    heads = from_hf(locate(path, weights=False)).thinker.decoder.kv_heads
    if mesh is None:
        return Omni.load(path, mesh=well_chosen(jax.local_devices(), kv_heads=heads), **options)
    devices = devices_of_copy(make_mesh(mesh, kv_heads=heads).size)
    return Omni.load(path, mesh=make_mesh(mesh, devices, kv_heads=heads), **options)


def run(
    omni: Omni,
    source: str,
    target: str,
    *,
    slots: int = 8,
    window: int | None = None,
    sound: str = "wav",
    logprobs: bool = False,
    retry: bool = False,
    profile: str | None = None,
    progress: Progress | None = None,
    **options: Unpack[JobKeywords],
) -> Totals:
    """Answers every line of a file that is not answered yet; called again after a stop, it resumes.

    All processes of ``jax.distributed`` call it with the same arguments and see the same files.

    Args:
        omni: the model, from ``load``.
        source: a local path, or a URL that fsspec knows (gs://, s3://: their packages must be installed).
        target: a local path or URL, as ``source``.
        slots: replies that are generated at a time, by each copy of the model.
        window: lines that are read ahead and sorted by length; by default twice the slots.
        sound: "wav" or "flac".
        logprobs: whether answers have the log-probabilities of their tokens.
        retry: whether lines that were reported as faults are tried again.
        profile: a folder for a trace of the first calls, for TensorBoard or Perfetto.
        progress: called with lines done and lines in all, of this process, and the throughput. Of hosts that share a
            model, only the first one calls it and writes.
        options: for all lines, as in ``Omni.generate``; a line's own options take precedence.

    Raises:
        ValueError: files cannot be read or written; the output belongs to another input, model or set of options; or
            options are impossible.
        OSError: a full disk, a failing network: the same call may succeed later. A medium of a line that cannot be
            fetched is no such error: the line is reported as a fault, and ``retry`` tries it again.
    """
    check(source, sound=sound, slots=slots, window=window)
    if target.endswith(COMPRESSED):
        raise ValueError(
            f"{target}: answers are written as plain text, line by line; expected a name that ends in .jsonl"
        )
    of_all = RequestOptions.from_mapping(options)
    _try(omni, of_all)
    hosts, began, share, how = HostGroup.of(omni.parts), time.monotonic(), None, _how(omni, translated(options), sound)
    with ExitStack() as stack:

        def begin() -> list[int]:
            nonlocal share
            output = stack.enter_context(JobOutput(target, process=hosts.number, processes=hosts.groups))
            share = _Share(output, source, hosts, retry=retry)
            output.check_settings(how, write=is_first())
            return share.left

        left = hosts.by_first(begin)
        _together("opened")
        stack.enter_context(_working())
        items = _items(omni, source, set(left), of_all)
        with _traced(profile) as call:
            for outcomes in answers(omni, items, slots=slots, window=window, hosts=hosts) if left else ():
                call()
                if share is not None:
                    share.write(outcomes, sound=sound, logprobs=logprobs)
                    if outcomes and progress is not None:
                        rate = share.written / (time.monotonic() - began)
                        progress(share.done, len(share.lines), f"{rate:.1f} tokens/s")
        hosts.by_first(lambda: share and share.output.flush())
        _together("written")
        if share is not None and is_first():
            share.merge()
        _together("merged")
        return Totals(**hosts.by_first(lambda: share and asdict(share.totals(time.monotonic() - began))))


class _Share:
    """The lines of one copy of the model and the output of their answers; exists on the first host of the copy.

    Attributes:
        lines: their numbers.
        left: numbers of lines that this run answers.
        done: how many lines are answered.
        written: tokens generated by this run.
    """

    def __init__(self, output: JobOutput, source: str, hosts: HostGroup, *, retry: bool):
        self.output, known = output, output.entries
        kept = {number for number, entry in known.items() if not (retry and entry.fault)}
        self.numbers = _checked(source, output.target, known)
        self.lines = [number for number in self.numbers if number % hosts.groups == hosts.number]
        self.left = [number for number in self.lines if number not in kept]
        self.kept, self.done, self.written = kept, len(self.lines) - len(self.left), 0

    def write(self, outcomes: list[Outcome], *, sound: str, logprobs: bool) -> None:
        self.output.write([_line(self.output, *outcome, sound=sound, logprobs=logprobs) for outcome in outcomes])
        self.done += len(outcomes)
        self.written += sum(len(reply.tokens) for _, reply in outcomes if isinstance(reply, Reply))

    def merge(self) -> None:
        """Joins the lines of all copies; from then on this share is all of them."""
        self.output.merge(self.numbers)
        self.lines = self.numbers

    def totals(self, seconds: float) -> Totals:
        return _totals(self.output, self.lines, self.kept & set(self.lines), seconds)


def is_first() -> bool:
    """Whether this process is the one that reports."""
    return jax.process_index() == 0


def check(source: str, *, sound: str, slots: int, window: int | None) -> None:
    """Checks the arguments of a job, as far as possible without the model.

    Raises:
        ValueError: in one line.
    """
    if not isinstance(sound, str) or sound not in SOUNDS:
        raise ValueError(f"sound: expected one of {', '.join(SOUNDS)}, got {shown(sound)}")
    if not all(
        is_number(number, whole=True) and number >= 1 for number in (slots, slots if window is None else window)
    ):
        raise ValueError(f"slots, window: expected at least 1, got {shown(slots)} and {shown(window)}")
    next(lines_of(source), None)


def _try(omni: Omni, options: RequestOptions) -> None:
    """Raises for wrong options before the first line is read."""
    system = omni.synthesizer.system
    head = [{"role": "system", "content": system}] if system else []
    omni.request_of([[*head, {"role": "user", "content": "?"}]], options)


def _how(omni: Omni, options: Mapping[str, Any], sound: str) -> dict[str, Any]:
    """The settings that determine answers beside the lines themselves: a job must be resumed with the same.

    Slots, window, mesh, log-probabilities and limits of downloads are left out. All hosts that share a model call it.
    """
    # A small weight that any training changes distinguishes models of one shape, wherever their files are.
    norm = to_host(omni.parts.thinker.decoder.norm.scale[...])
    found: dict[str, Any] = {"model": digest([omni.config, omni.defaults, np.asarray(norm, np.float32)])}
    found |= {"dtype": str(norm.dtype), "speech": omni.synthesizer.loaded, "sound": sound}
    for name, value in options.items():
        if isinstance(value, Sampling):
            found |= {f"{name}_{part}": item for part, item in asdict(value).items()}
        elif isinstance(value, MediaOptions):
            found |= {part: item for part, item in asdict(value).items() if item != getattr(MediaOptions, part)}
        else:
            found[name] = value
    found = {
        name: value for name, value in found.items() if value is not None and value != {} and name not in DOWNLOADS
    }
    return json.loads(json.dumps(found, default=repr))


def _checked(source: str, target: str, known: Mapping[int, Any]) -> list[int]:
    """The numbers of the input's lines; raises ValueError if the output answers other lines."""
    numbers = []
    for number, text in lines_of(source):
        if number in known and known[number].checksum != _checksum(text):
            raise ValueError(
                f"{target}: its line {number} answers another one than {source} has there; give another name for the output"
            )
        numbers.append(number)
    if extra := known.keys() - set(numbers):
        raise ValueError(
            f"{target}: answers line {min(extra)}, which {source} does not have; give another name for the output"
        )
    return numbers


def _items(omni: Omni, source: str, wanted: set[int], of_all: RequestOptions) -> Iterator[Item]:
    """The lines to be answered, as requests; a line that cannot be answered is an item with a fault."""
    for number, text in lines_of(source):
        if number not in wanted:
            continue
        name = None
        try:
            name, messages, own = parsed(text)
            options = of_all.override(own)
            request = omni.request_of([messages], options)
            item = Item((number, _checksum(text), name), request, "", options.speaker, options.compat)
        except Exception as error:  # whatever it is, the other lines are still answered
            kind = "" if isinstance(error, ValueError | RetryableError) else f"{type(error).__name__}: "
            item = Item((number, _checksum(text), name), None, f"{kind}{' '.join(str(error).split())}")
        yield item


def _line(
    output: JobOutput, key: tuple[int, str, Any], outcome: Reply | str, *, sound: str, logprobs: bool
) -> tuple[int, str, dict[str, Any]]:
    """An output line: its number, checksum and content; its sound file is written before this returns."""
    number, of, name = key
    content: dict[str, Any] = {} if name is None else {"id": name}
    if isinstance(outcome, str):
        return number, of, {**content, "error": outcome}
    found = asdict(replace(outcome, codes=None, audio=None))
    for left in ("codes", "audio", "sample_rate", "speech_finish_reason", *(() if logprobs else ("logprobs",))):
        del found[left]
    content |= found
    if outcome.audio is not None and outcome.codes is not None:
        samples, file = np.rint(np.clip(outcome.audio, -1, 1) * 32767).astype("<i2"), io.BytesIO()
        if sound == "flac" and not samples.size:
            samples = np.zeros(1, "<i2")  # without a sample there would be no header
        soundfile.write(file, samples, outcome.sample_rate, "PCM_16", format=sound.upper())
        content["speech"] = {
            "file": output.put(f"{number:08d}.{sound}", file.getvalue()),
            "seconds": round(len(outcome.audio) / outcome.sample_rate, 3),
            "frames": outcome.codes.shape[1],
            "sample_rate": outcome.sample_rate,
            "finish_reason": outcome.speech_finish_reason,
        }
    return number, of, content


def _totals(output: JobOutput, numbers: Iterable[int], resumed: set[int], seconds: float) -> Totals:
    counts = {True: [0, 0, 0.0], False: [0, 0, 0.0]}  # lines, tokens, seconds of speech; True for earlier runs
    faults = 0
    for number in numbers:
        record = output.entries[number]
        faults += record.fault
        count = counts[number in resumed]
        count[0] += 1
        count[1] += record.tokens
        count[2] += record.seconds
    earlier, now = counts[True], counts[False]
    return Totals(
        lines=int(earlier[0] + now[0]), answered=int(earlier[0] + now[0]) - faults, faults=faults, resumed=int(earlier[0]),
        tokens=int(earlier[1] + now[1]), speech_seconds=round(earlier[2] + now[2], 3), seconds=round(seconds, 3),
        tokens_per_second=round(now[1] / seconds, 3), speech_per_second=round(now[2] / seconds, 3),
    )  # fmt: skip


def _checksum(text: bytes) -> str:
    return f"{zlib.crc32(text):08x}"


def _together(name: str) -> None:
    """Waits for the other processes at the coordinator; a collective would time out where one has more to do."""
    if jax.process_count() > 1:
        multihost.get_barrier_sync_fn()(key=f"omni_jax_job_{name}", timeout_ms=WEEK * 1000)


@contextmanager
def _working() -> Iterator[None]:
    """Turns missing or closed files into RetryableError: once a job answers, they are no user error in its arguments."""
    try:
        yield
    except OSError as error:
        if not is_user_error(error):
            raise
        raise RetryableError(str(error)) from error


@contextmanager
def _traced(folder: str | None) -> Iterator[Callable[[], None]]:
    """A trace of the first calls; call the yielded function after each call."""
    left = PROFILED_CALLS if folder is not None else 0
    if folder is not None:
        jax.profiler.start_trace(folder)

    def call() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            jax.profiler.stop_trace()

    try:
        yield call
    finally:
        if left > 0:
            jax.profiler.stop_trace()
