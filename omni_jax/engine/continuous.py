"""Continuous batching of requests: each reply is as if it were alone, and short replies do not wait for long ones.

Text is generated in the slots of one batch. Replies whose text is complete are spoken together in another batch. Until
then, the thinker's states that speech needs are kept for each row, on the host.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

import jax
import numpy as np
from jax.errors import JaxRuntimeError
from jaxtyping import Array, Float

from omni_jax.buckets import bucket
from omni_jax.config import OmniConfig
from omni_jax.decoding.defaults import DEFAULT_NEW_TOKENS, GenerationConfig
from omni_jax.decoding.slots import RowOutput, Slots
from omni_jax.decoding.text import StepOutput
from omni_jax.engine import encode
from omni_jax.engine.answer import Request
from omni_jax.engine.reply import Draft, Reply
from omni_jax.errors import is_out_of_memory
from omni_jax.models.parts import OmniParts
from omni_jax.parallel.multihost import HostGroup, digest, from_wire, to_host, to_wire
from omni_jax.processing.batch import Batch, joined
from omni_jax.speech.synthesizer import Synthesizer

# Seconds between two checks of whether all hosts have read the next items, when none can continue without them.
POLL_SECONDS = 1.0


class Model(Protocol):
    """The members of a loaded model that are used here; ``Omni`` is one."""

    @property
    def parts(self) -> OmniParts: ...

    @property
    def config(self) -> OmniConfig: ...

    @property
    def synthesizer(self) -> Synthesizer[Any, Any]: ...


@dataclass(frozen=True)
class Item:
    """One conversation to be answered.

    Attributes:
        key: its name, chosen by the caller.
        request: of one row; None where it cannot be answered, and ``fault`` says why.
        fault: why it cannot be answered.
        speaker: as it was asked for.
        compat: as it was asked for.
    """

    key: Any
    request: Request | None
    fault: str = ""
    speaker: str | Sequence[str] | None = None
    compat: str | None = None

    @property
    def batch(self) -> Batch:
        assert self.request is not None
        return self.request.prompts.batch

    @property
    def length(self) -> int:
        return 0 if self.request is None else int(self.batch.lengths[0])


Outcome = tuple[Any, Reply | str]


@dataclass(eq=False)
class _Row:
    """An unfinished reply and what its speech will need: its tokens, and the thinker's states at prompt and reply."""

    item: Item
    request: Request
    draft: Draft
    most: int
    states: Array | np.ndarray | None
    text_tokens: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    hidden_states: list[np.ndarray] = field(default_factory=list)

    def add_tokens(self, written: RowOutput) -> bool:
        """Reads the tokens of a call; returns True when the reply is complete."""
        if isinstance(self.states, jax.Array):
            self.states = to_host(self.states)[0, : self.item.length]
        if written.hidden_states is not None:
            self.hidden_states.append(written.hidden_states)
        ended = self.draft.add_tokens(written.tokens, written.logprobs, self.most)
        text_tokens, places = self.draft.new_text_tokens()
        self.text_tokens += text_tokens
        self.places += places
        return ended


def answers(
    omni: Model, items: Iterable[Item], *, slots: int, window: int | None = None, hosts: HostGroup | None = None
) -> Iterator[list[Outcome]]:
    """Answers items; after each call of the device, yields those that are complete, with their replies or faults.

    Args:
        omni: the model.
        items: read in a thread, while the device works.
        slots: replies whose text is generated at a time, and that are spoken at a time.
        window: items that are read ahead and sorted by the length of their prompts; by default twice the slots.
        hosts: those that share the model; each reads the same items.
    """
    hosts = hosts or HostGroup()
    ahead, alone = _Ahead(iter(items), slots, 2 * slots if window is None else window, hosts), hosts.alone
    running, rows, silent = Slots(omni.parts.thinker, slots), dict[int, _Row](), list[_Row]()
    try:
        while not ahead.exhausted or rows or silent:
            done: list[Outcome] = []
            for number in running.free:
                # While there are rows to decode, do not wait for items that are still being read.
                while (
                    number not in rows
                    and (item := ahead.next_item(wait=not rows, more=bool(rows) or not done)) is not None
                ):
                    row = item.fault if item.request is None else _begin(omni, running, number, item, alone)
                    if isinstance(row, str):
                        done.append((item.key, row))
                    else:
                        rows[number] = row
                if number not in rows:
                    break
            if rows:
                return_hidden_states = any(
                    row.request.speech is not None and row.request.speech.return_hidden_states for row in rows.values()
                )
                for written in running.decode(return_hidden_states=return_hidden_states):
                    row = rows[written.row]
                    if row.add_tokens(written):
                        running.release(written.row)
                        del rows[written.row]
                        if row.request.speech is None:
                            done.append((row.item.key, row.draft.reply()))
                        else:
                            silent.append(row)
            while len(silent) >= slots or (silent and not rows and ahead.exhausted):
                # A group of replies has its options in common; the others wait for a later group.
                group = [row for row in silent if _manner(row) == _manner(silent[0])][:slots]
                silent = [row for row in silent if row not in group]
                done += _told(omni, group, alone)
            yield done
    finally:
        ahead.close()


def _begin(omni: Model, running: Slots, number: int, item: Item, alone: bool) -> _Row | str:
    """Prefills an item. If the device has no memory for it and no other host is involved, returns the fault instead."""
    request, padded, config = item.request, item.batch, omni.config.thinker
    assert request is not None
    assert padded.positions is not None  # pad_and_index has counted them
    sampling = request.sampling
    most = min(sampling.max_new_tokens or DEFAULT_NEW_TOKENS, config.context - item.length)
    try:
        states = running.insert(
            number, encode.embed(omni.parts, request.prompts, config), padded.tokens, padded.positions, padded.lengths,
            sampling, request.seeds[0], most,
            candidates=sampling.candidates(config.vocabulary),
            hidden_layer=request.speech.hidden_layer if request.speech else None,
        )  # fmt: skip
    except JaxRuntimeError as error:
        if not (alone and running.whole and is_out_of_memory(error)):
            raise
        return (
            f"too much for the device's memory: a prompt of {item.length:,} tokens, beside a cache for {len(running.taken)} "
            "slots; shorten it, or try it again with fewer slots"
        )
    return _Row(item, request, Draft(request.transcript(0), sampling), most, states)


def _manner(row: _Row) -> tuple[Any, ...]:
    """What rows must have in common to be spoken together."""
    assert row.request.speech is not None
    return row.request.speech.talker, row.request.speech.predictor, row.item.compat


def _told(omni: Model, rows: list[_Row], alone: bool) -> list[Outcome]:
    """The replies of rows whose text is complete: spoken together, or in halves if the device has no memory for all."""
    try:
        return _spoken(omni, rows)
    except JaxRuntimeError as error:
        if not (alone and is_out_of_memory(error)):
            raise
    if len(rows) > 1:
        half = len(rows) // 2
        return _told(omni, rows[:half], alone) + _told(omni, rows[half:], alone)
    fault = f"too much for the device's memory: the speech of {len(rows[0].draft.tokens):,} tokens"
    return [(rows[0].item.key, f"{fault}; ask for a shorter reply, or try it again with fewer slots")]


def _spoken(omni: Model, rows: list[_Row]) -> list[Outcome]:
    """As ``_told``, in one batch; if it fails, the rows are unchanged."""
    (talker, predictor, compat), requests = _manner(rows[0]), [row.request for row in rows]
    names = [row.item.speaker for row in rows]
    batch = joined([row.item.batch for row in rows]).padded()
    speech = omni.synthesizer.speech(
        batch, [omni.synthesizer.select_speakers(name, 1)[0] for name in names], tuple(request.seeds[0] for request in requests),
        GenerationConfig(requests[0].sampling, talker, predictor), compat=compat,
    )  # fmt: skip
    begun = [request.speech.prompt.text_tokens[0] for request in requests if request.speech is not None]
    begun += [()] * (len(batch.tokens) - len(begun))
    speech = replace(speech, prompt=replace(speech.prompt, text_tokens=tuple(begun)))  # without thinking and calls
    states = _stacked([row.states for row in rows], batch.tokens.shape) if speech.hidden_layer is not None else None
    stream = speech.make(omni.parts, omni.config, speech, states, streamed=False)
    if speech.return_hidden_states:
        hidden_states = [np.concatenate(row.hidden_states) if row.hidden_states else None for row in rows]
        counts = np.array(
            [0 if states is None else len(states) for states in hidden_states]
            + [0] * (len(batch.tokens) - len(hidden_states))
        )
        if counts.any():
            made = _stacked(hidden_states, (len(counts), bucket(int(counts.max()))))
            nothing = np.zeros((len(counts), 0))
            stream.add_hidden_states(StepOutput(nothing, nothing, counts, hidden_states=jax.device_put(made)))
    for number, row in enumerate(rows):
        stream.add_text(number, row.text_tokens, row.places, ended=True)
    chunks = []
    while not stream.done:
        chunks += stream.advance()
    for chunk in chunks:
        rows[chunk.row].draft.add_audio(chunk.codes, chunk.samples)
    return [
        (row.item.key, row.draft.reply(stream.codebooks, cut=number in stream.cut)) for number, row in enumerate(rows)
    ]


def _stacked(parts: list[Any], shape: tuple[int, ...]) -> Float[np.ndarray, "B T D"]:
    """States [n, D] of rows, padded with zeros; all zeros for rows that have none."""
    some = next(part for part in parts if part is not None)
    made = np.zeros((*shape[:2], some.shape[1]), some.dtype)
    for number, part in enumerate(parts):
        if part is not None:
            made[number, : len(part)] = part
    return made


class _Ahead:
    """Reads items in a thread and returns them window by window, sorted by length.

    The order alternates, so that neighbours across two windows are similar too: the cache is as long as its longest row
    needs.

    Hosts that share a model get the same items at the same call, whichever of them reads faster.
    """

    def __init__(self, items: Iterator[Item], first: int, window: int, hosts: HostGroup):
        self.items, self.window, self.ready, self.upwards, self.hosts = items, window, list[Item](), True, hosts
        self.thread = ThreadPoolExecutor(1, "omni_jax_reads")
        self.coming: Future[list[tuple[Item, str]]] | None = self.thread.submit(self._read, first)

    @property
    def exhausted(self) -> bool:
        return not self.ready and self.coming is None

    def next_item(self, *, wait: bool, more: bool = True) -> Item | None:
        """The next item. None if none is left, or none yet and not ``wait``, or none in this window and not ``more``."""
        if not self.ready and more and self.coming is not None and self._arrived(self.coming, wait):
            self.ready = sorted(self._agreed(self.coming), key=lambda item: item.length, reverse=self.upwards)
            self.upwards = not self.upwards
            self.coming = self.thread.submit(self._read, self.window) if self.ready else None
        return self.ready.pop() if self.ready else None

    def close(self) -> None:
        self.thread.shutdown(wait=False, cancel_futures=True)

    def _read(self, count: int) -> list[tuple[Item, str]]:
        """Items, each with a digest of what other hosts must have read too."""
        return [
            (item, "" if self.hosts.alone or item.request is None else digest(item))
            for item in islice(self.items, count)
        ]

    def _arrived(self, coming: Future, wait: bool) -> bool:
        """Whether all hosts have read the next items; with ``wait``, asks until they have."""
        while True:
            if wait:
                wait_for([coming], None if self.hosts.alone else POLL_SECONDS)
            if all(said == b"1" for said in self.hosts.gather(b"1" if coming.done() else b"0")):
                return True
            if not wait:
                return False

    def _agreed(self, coming: Future[list[tuple[Item, str]]]) -> list[Item]:
        """The items that all hosts agree on: one that a host could not read, or read differently, is a fault on all."""
        if self.hosts.alone:
            return [item for item, _ in coming.result()]
        error = coming.exception()
        read = coming.result() if error is None else []
        own = {"stopped": error and to_wire(error), "items": [(item.fault, what) for item, what in read]}
        found = [json.loads(said) for said in self.hosts.gather(json.dumps(own).encode())]
        if error is not None:
            raise error
        if stopped := [each["stopped"] for each in found if each["stopped"] is not None]:
            raise from_wire(*stopped[0], where="on another host that has the model together with this one: ")
        if len({len(each["items"]) for each in found}) > 1:
            raise ValueError(
                "the hosts that have the model together read different inputs; give one that all of them find"
            )
        return [_common(item, said) for (item, _), *said in zip(read, *(each["items"] for each in found), strict=True)]


def _common(item: Item, read: list[tuple[str, str]]) -> Item:
    """An item after comparison with what all hosts read: pairs of its fault, if any, and its digest."""
    faults = [fault for fault, _ in read if fault]
    if len(faults) == len(read):
        return item
    if faults:
        fault = f"{faults[0]} (on {len(faults)} of the {len(read)} hosts that have the model together)"
    elif len({what for _, what in read}) > 1:
        fault = "read otherwise on one host than on another; give what all of the hosts find, with the same content"
    else:
        return item
    return replace(item, request=None, fault=fault)
