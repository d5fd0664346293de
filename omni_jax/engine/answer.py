"""Answers a request: the thinker's tokens are read as they are generated, and spoken once there are enough of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from omni_jax.config import OmniConfig
from omni_jax.decoding.defaults import DEFAULT_NEW_TOKENS
from omni_jax.decoding.sampling import Sampling, SamplingRows
from omni_jax.decoding.text import CALL_STEPS, StepOutput, generate
from omni_jax.engine import encode
from omni_jax.engine.encode import PaddedBatch
from omni_jax.engine.reply import Draft, Event
from omni_jax.models.parts import OmniParts
from omni_jax.processing.transcript import Transcript
from omni_jax.speech.stream import SpeechRequest, SpeechStream


@dataclass(frozen=True)
class Request:
    """Rows to be answered, checked and ready.

    Attributes:
        prompts: padded, with padding rows.
        sampling: how the thinker's tokens are chosen.
        seeds: one a real row.
        transcript: makes the reader of a row's reply.
        speech: how the replies are spoken; None for text alone.
        given: whether the replies are given, so that the thinker generates nothing.
    """

    prompts: PaddedBatch
    sampling: Sampling
    seeds: tuple[int, ...]
    transcript: Callable[[int], Transcript]
    speech: SpeechRequest | None = None
    given: bool = False


def answer(
    parts: OmniParts, config: OmniConfig, request: Request, *, steps: int = CALL_STEPS, streamed: bool = False
) -> Iterator[tuple[int, Event]]:
    """Events of each row, in the order in which they occur; a row's last event has its whole reply.

    Args:
        parts: of the model.
        config: of the model.
        request: the rows.
        steps: tokens of the thinker a call.
        streamed: whether sound comes in chunks that grow from one frame, while the thinker still generates.
    """
    rows = [Draft(request.transcript(row), request.sampling) for row in range(len(request.seeds))]
    stream: SpeechStream | None = None
    writing = set(range(len(rows)))
    for made in _recite(parts, config, request, rows) if request.given else _write(parts, config, request, rows, steps):
        for number in sorted(writing):
            row = rows[number]
            reply = row.reply() if row.done and request.speech is None else None
            if row.piece.text or row.piece.thinking or reply:
                yield number, Event(text=row.piece.text, thinking=row.piece.thinking, reply=reply)
        if request.speech is not None and stream is None:
            stream = request.speech.make(parts, config, request.speech, made.take_prompt_states(), streamed=streamed)
        if stream is not None:
            stream.add_hidden_states(made)
            for number in sorted(writing):
                stream.add_text(number, *rows[number].new_text_tokens(), ended=rows[number].done)
        writing = {number for number in writing if not rows[number].done}
        # When all text is generated, the thinker's cache is freed before the rest is spoken.
        while streamed and writing and stream is not None and stream.ready:
            yield from _spoken(stream, rows)
    if stream is not None:
        while not stream.done:
            yield from _spoken(stream, rows)
        for number, row in enumerate(rows):
            yield number, Event(reply=row.reply(stream.codebooks, cut=number in stream.cut))


def _spoken(stream: SpeechStream, rows: list[Draft]) -> Iterator[tuple[int, Event]]:
    for chunk in stream.advance():
        rows[chunk.row].add_audio(chunk.codes, chunk.samples)
        if chunk.samples.size:
            yield chunk.row, Event(audio=chunk.samples)


def _write(
    parts: OmniParts, config: OmniConfig, request: Request, rows: list[Draft], steps: int
) -> Iterator[StepOutput]:
    """Generates the replies; each row reads its tokens. Yields after each call."""
    context, sampling = config.thinker.context, request.sampling
    padded, embedded = request.prompts.batch, encode.embed(parts, request.prompts, config.thinker)
    assert padded.positions is not None  # pad_and_index has counted them
    longest = sampling.max_new_tokens or DEFAULT_NEW_TOKENS
    most = [min(longest, context - int(length)) for length in padded.lengths]
    made = generate(
        parts.thinker, embedded, padded.tokens, padded.positions, padded.lengths,
        SamplingRows.of([sampling] * len(most), [*request.seeds, *[0] * (len(most) - len(rows))], most),
        candidates=sampling.candidates(config.thinker.vocabulary), steps=steps,
        hidden_layer=request.speech.hidden_layer if request.speech else None,
        return_hidden_states=request.speech is not None and request.speech.return_hidden_states,
    )  # fmt: skip
    del embedded  # otherwise the prompt's embeddings would stay on the device until the reply is finished
    call = next(made)
    while True:
        stop = np.ones(len(most), bool)
        for number, row in enumerate(rows):
            new = slice(0, int(call.counts[number]))
            stop[number] = row.add_tokens(
                call.tokens[number, new].tolist(), call.logprobs[number, new].tolist(), most[number]
            )
        yield call
        try:
            call = made.send(stop)
        except StopIteration:
            return


def _recite(parts: OmniParts, config: OmniConfig, request: Request, rows: list[Draft]) -> Iterator[StepOutput]:
    """Reads replies that are given. The thinker only prefills, and only if speech needs its states."""
    assert request.speech is not None
    nothing = np.zeros((len(rows), 0), np.int32)
    made = StepOutput(nothing, nothing, nothing)
    if request.speech.hidden_layer is not None:
        once = replace(request, sampling=Sampling(max_new_tokens=1))
        made = next(_write(parts, config, once, [Draft(Transcript(None), once.sampling) for _ in rows], 1))
    for row, text_tokens in zip(rows, request.speech.prompt.text_tokens, strict=False):
        row.set_tokens(list(text_tokens))
    yield made
