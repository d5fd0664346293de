"""Requests that flow through slots: each is answered as it would be alone, and short answers do not wait for long ones.

Replies are written in the slots of one batch and, once some have ended, spoken together behind it. What speech needs of the
thinker is kept for each row, on the host, until then.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
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
from omni_jax.decoding.defaults import DEFAULT_NEW_TOKENS, Defaults
from omni_jax.decoding.slots import Slots, Written
from omni_jax.decoding.text import Made
from omni_jax.engine import encode
from omni_jax.engine.answer import Request
from omni_jax.engine.reply import Draft, Reply
from omni_jax.parallel.multihost import Hosts, as_said, digest, fetch, worded
from omni_jax.processing.batch import Batch, joined

# Seconds between two questions of whether all hosts have read what comes next, where none can go on without it.
PATIENCE = 1.0


class Model(Protocol):
    """What is needed of a loaded model; ``Omni`` is one."""

    @property
    def parts(self) -> Mapping[str, Any]: ...

    @property
    def config(self) -> OmniConfig: ...

    @property
    def synthesizer(
        self,
    ) -> Any: ...  # a Synthesizer: pyright refuses Omni's cached property where this names the class


@dataclass(frozen=True)
class Item:
    """One conversation to be answered.

    Attributes:
        key: its name, whatever the caller likes.
        request: of one row; None where it cannot be answered, and ``fault`` says why.
        speaker, compat: as they were asked for.
    """

    key: Any
    request: Request | None
    fault: str = ""
    speaker: str | None = None
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
    """A reply in the making, and what its speech will need: its words, the thinker's states at prompt and reply."""

    item: Item
    request: Request
    draft: Draft
    most: int
    states: Array | np.ndarray | None
    words: list[int] = field(default_factory=list)
    fed: list[np.ndarray] = field(default_factory=list)

    def take(self, written: Written) -> bool:
        """Reads what a call wrote; True when the reply is complete."""
        if isinstance(self.states, jax.Array):
            self.states = fetch(self.states)[0, : self.item.length]
        if written.fed is not None:
            self.fed.append(written.fed)
        ended = self.draft.take(written.tokens, written.logprobs, self.most)
        self.words += self.draft.new_words()
        return ended


def answers(
    omni: Model, items: Iterable[Item], *, slots: int, window: int | None = None, hosts: Hosts | None = None
) -> Iterator[list[Outcome]]:
    """Answers items; after each call of the device, those that are complete, with their replies or faults.

    Args:
        items: read in a thread, while the device works.
        slots: replies that are written at a time, and spoken at a time.
        window: items that are read ahead and sorted by the length of their prompts; by default twice the slots.
        hosts: that have the model together, each of which reads the same items.
    """
    hosts = hosts or Hosts()
    ahead, alone = _Ahead(iter(items), slots, 2 * slots if window is None else window, hosts), hosts.alone
    desk, rows, silent = Slots(omni.parts["thinker"], slots), dict[int, _Row](), list[_Row]()
    try:
        while not ahead.exhausted or rows or silent:
            done: list[Outcome] = []
            for number in desk.free:
                # While there is something to write, nobody waits for what is still being read.
                while (
                    number not in rows and (item := ahead.take(wait=not rows, more=bool(rows) or not done)) is not None
                ):
                    row = item.fault if item.request is None else _begin(omni, desk, number, item, alone)
                    if isinstance(row, str):
                        done.append((item.key, row))
                    else:
                        rows[number] = row
                if number not in rows:
                    break
            if rows:
                follow = any(row.request.speech is not None and row.request.speech.follow for row in rows.values())
                for written in desk.advance(follow=follow):
                    row = rows[written.row]
                    if row.take(written):
                        desk.release(written.row)
                        del rows[written.row]
                        if row.request.speech is None:
                            done.append((row.item.key, row.draft.reply()))
                        else:
                            silent.append(row)
            while len(silent) >= slots or (silent and not rows and ahead.exhausted):
                # Those of one group have options in common; the rest waits for its turn.
                group = [row for row in silent if _manner(row) == _manner(silent[0])][:slots]
                silent = [row for row in silent if row not in group]
                done += _told(omni, group, alone)
            yield done
    finally:
        ahead.close()


def _begin(omni: Model, desk: Slots, number: int, item: Item, alone: bool) -> _Row | str:
    """Prefills an item; or says that it is too much for the device, as far as no other host has to know."""
    request, padded, config = item.request, item.batch, omni.config.thinker
    assert request is not None
    assert padded.positions is not None  # place has counted them
    sampling = request.sampling
    most = min(sampling.max_new_tokens or DEFAULT_NEW_TOKENS, config.context - item.length)
    try:
        states = desk.put(
            number, encode.embed(omni.parts, request.prompts, config), padded.tokens, padded.positions, padded.lengths,
            sampling, request.seeds[0], most,
            candidates=sampling.candidates(config.vocabulary), keep=request.speech.keep if request.speech else None,
        )  # fmt: skip
    except JaxRuntimeError as error:
        if not (alone and desk.whole and _too_much(error)):
            raise
        return (
            f"too much for the device's memory: a prompt of {item.length:,} tokens, beside a cache for {len(desk.taken)} "
            "slots; shorten it, or try it again with fewer slots"
        )
    return _Row(item, request, Draft(request.transcript(0), sampling), most, states)


def _manner(row: _Row) -> tuple[Any, ...]:
    """What rows must have in common to be spoken together."""
    assert row.request.speech is not None
    return row.request.speech.talker, row.request.speech.predictor, row.item.compat


def _too_much(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error)


def _told(omni: Model, rows: list[_Row], alone: bool) -> list[Outcome]:
    """The replies of rows whose words are all there: spoken together, by halves where that is too much for the device."""
    try:
        return _spoken(omni, rows)
    except JaxRuntimeError as error:
        if not (alone and _too_much(error)):
            raise
    if len(rows) > 1:
        half = len(rows) // 2
        return _told(omni, rows[:half], alone) + _told(omni, rows[half:], alone)
    fault = f"too much for the device's memory: the speech of {len(rows[0].draft.tokens):,} tokens"
    return [(rows[0].item.key, f"{fault}; ask for a shorter reply, or try it again with fewer slots")]


def _spoken(omni: Model, rows: list[_Row]) -> list[Outcome]:
    """As ``_told``; where it fails, the rows are as they were."""
    (talker, predictor, compat), requests = _manner(rows[0]), [row.request for row in rows]
    names = [row.item.speaker for row in rows]
    batch = joined([row.item.batch for row in rows]).padded()
    speech = omni.synthesizer.speech(
        batch, [omni.synthesizer.choose(name, 1)[0] for name in names], tuple(request.seeds[0] for request in requests),
        Defaults(requests[0].sampling, talker, predictor), compat=compat,
    )  # fmt: skip
    states = _stacked([row.states for row in rows], batch.tokens.shape) if speech.keep is not None else None
    voices = speech.make(omni.parts, omni.config, speech, states, streamed=False)
    if speech.follow:
        fed = [np.concatenate(row.fed) if row.fed else None for row in rows]
        counts = np.array(
            [0 if states is None else len(states) for states in fed] + [0] * (len(batch.tokens) - len(fed))
        )
        if counts.any():
            made = _stacked(fed, (len(counts), bucket(int(counts.max()))))
            nothing = np.zeros((len(counts), 0))
            voices.follow(Made(nothing, nothing, counts, fed=jax.device_put(made)))
    for number, row in enumerate(rows):
        voices.say(number, row.words, ended=True)
    heard = []
    while not voices.done:
        heard += voices.advance()
    for chunk in heard:
        rows[chunk.row].draft.hear(chunk.codes, chunk.samples)
    return [
        (row.item.key, row.draft.reply(voices.codebooks, cut=number in voices.cut)) for number, row in enumerate(rows)
    ]


def _stacked(parts: list[Any], shape: tuple[int, ...]) -> Float[np.ndarray, "B T D"]:
    """States [n, D] of rows, zeros behind them and for rows that have none."""
    some = next(part for part in parts if part is not None)
    made = np.zeros((*shape[:2], some.shape[1]), some.dtype)
    for number, part in enumerate(parts):
        if part is not None:
            made[number, : len(part)] = part
    return made


class _Ahead:
    """Reads items in a thread, and hands them out window by window, sorted by length.

    To and fro, so that neighbours of two windows are alike too: the cache is as long as its longest row needs.

    Hosts that have a model together get the same items at the same call, whichever of them reads faster.
    """

    def __init__(self, items: Iterator[Item], first: int, window: int, hosts: Hosts):
        self.items, self.window, self.ready, self.upwards, self.hosts = items, window, list[Item](), True, hosts
        self.thread = ThreadPoolExecutor(1, "omni_jax_reads")
        self.coming: Future[list[tuple[Item, str]]] | None = self.thread.submit(self._read, first)

    @property
    def exhausted(self) -> bool:
        return not self.ready and self.coming is None

    def take(self, *, wait: bool, more: bool = True) -> Item | None:
        """The next item; None where there is none, or none yet and nobody waits, or none of this window and not ``more``."""
        if not self.ready and more and self.coming is not None and self._arrived(self.coming, wait):
            self.ready = sorted(self._agreed(self.coming), key=lambda item: item.length, reverse=self.upwards)
            self.upwards = not self.upwards
            self.coming = self.thread.submit(self._read, self.window) if self.ready else None
        return self.ready.pop() if self.ready else None

    def close(self) -> None:
        self.thread.shutdown(wait=False, cancel_futures=True)

    def _read(self, count: int) -> list[tuple[Item, str]]:
        """Items, and what other hosts must have read as this one did."""
        return [
            (item, "" if self.hosts.alone or item.request is None else digest(item))
            for item in islice(self.items, count)
        ]

    def _arrived(self, coming: Future, wait: bool) -> bool:
        """Whether all hosts have read what comes next; to wait is to ask until they have."""
        while True:
            if wait:
                wait_for([coming], None if self.hosts.alone else PATIENCE)
            if all(said == b"1" for said in self.hosts.gather(b"1" if coming.done() else b"0")):
                return True
            if not wait:
                return False

    def _agreed(self, coming: Future[list[tuple[Item, str]]]) -> list[Item]:
        """The items, as all hosts have them: what one of them could not read, or reads otherwise, is no item on any."""
        if self.hosts.alone:
            return [item for item, _ in coming.result()]
        error = coming.exception()
        read = coming.result() if error is None else []
        own = {"stopped": error and worded(error), "items": [(item.fault, what) for item, what in read]}
        found = [json.loads(said) for said in self.hosts.gather(json.dumps(own).encode())]
        if error is not None:
            raise error
        if stopped := [each["stopped"] for each in found if each["stopped"] is not None]:
            raise as_said(*stopped[0], where="on another host that has the model together with this one: ")
        if len({len(each["items"]) for each in found}) > 1:
            raise ValueError(
                "the hosts that have the model together read different inputs; give one that all of them find"
            )
        return [_common(item, said) for (item, _), *said in zip(read, *(each["items"] for each in found), strict=True)]


def _common(item: Item, read: list[tuple[str, str]]) -> Item:
    """An item of which each host says with what fault, if any, and as what it was read."""
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
