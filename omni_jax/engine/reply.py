"""Replies: whole, as events, and unfinished."""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from omni_jax.decoding.sampling import Sampling
from omni_jax.processing.transcript import Piece, Transcript


@dataclass(frozen=True, eq=False)
class Reply:
    """What the model answered.

    Attributes:
        text: the answer, without thinking, tool calls and special tokens.
        thinking: a thinking model's ``<think>`` part.
        tool_calls: ``{"name": ..., "arguments": {...}}`` of each call.
        tokens: generated ids, the one that ended the reply included.
        logprobs: of each token, under the model itself.
        finish_reason: "stop" (an end token or stop string) or "length".
        codes: codec ids [Q, Y] of a spoken reply, else None; of length 0 if there was nothing to say.
        audio: samples [W] in [-1, 1] of a spoken reply, else None; of length 0 if there was nothing to say.
        sample_rate: of ``audio``, in Hz.
        speech_finish_reason: why a spoken reply's sound ended, "stop" or "length" (``talker_max_new_tokens``), else
            None.
    """

    text: str
    thinking: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = "stop"
    codes: np.ndarray | None = None
    audio: np.ndarray | None = None
    sample_rate: int = 24_000
    speech_finish_reason: str | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Reply):
            return NotImplemented
        return all(np.array_equal(getattr(self, own.name), getattr(other, own.name)) for own in fields(self))


@dataclass(frozen=True)
class Event:
    """A piece of a streamed reply: new text, thinking or samples [w]. ``reply`` is the whole reply, on the last event.

    If a reply has a ``</think>`` and neither it nor the prompt has a ``<think>``, the text before it was streamed as
    ``text`` but is in ``reply.thinking``.
    """

    text: str = ""
    thinking: str = ""
    audio: np.ndarray | None = None
    reply: Reply | None = None


class Draft:
    """One unfinished reply: reads a row's tokens call by call, and collects its sound."""

    def __init__(self, transcript: Transcript, sampling: Sampling):
        self.transcript, self.sampling = transcript, sampling
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.done, self.reason, self.piece = False, "length", Piece()
        self.codes: list[np.ndarray] = []
        self.samples: list[np.ndarray] = []
        self._said = 0  # how many of the transcript's spoken tokens were returned

    def add_tokens(self, tokens: list[int], logprobs: list[float], most: int) -> bool:
        """Reads the tokens of one call; returns True when the reply is complete."""
        if self.done:
            self.piece = Piece()
            return True
        self.piece = self.transcript.push(tokens)
        self.tokens += tokens
        self.logprobs += logprobs
        if self.transcript.stopped:
            del self.tokens[self.transcript.tokens_used :], self.logprobs[self.transcript.tokens_used :]
        if self.transcript.stopped or self._ended:
            self.done, self.reason = True, "stop"
        elif len(self.tokens) >= most:
            self.done = True
        if self.done:
            rest = self.transcript.finish()
            self.piece = Piece(text=self.piece.text + rest.text, thinking=self.piece.thinking + rest.thinking)
        return self.done

    @property
    def _ended(self) -> bool:
        return bool(self.tokens) and self.tokens[-1] in self.sampling.eos

    def set_tokens(self, tokens: list[int]) -> None:
        """Sets the whole reply, which is given and already known to the speech."""
        self.tokens = tokens
        first, rest = self.transcript.push(tokens), self.transcript.finish()
        self._said = len(self.transcript.spoken)
        self.piece = Piece(text=first.text + rest.text, thinking=first.thinking + rest.thinking)
        self.done, self.reason = True, "stop"

    def new_text_tokens(self) -> tuple[list[int], list[int]]:
        """New tokens to be spoken, and their places among the reply's tokens, by which to find the states at them.

        They are those of the transcript's ``spoken`` that are certain, without the token that ended the reply.
        """
        places = list(self.transcript.spoken[self._said :])
        self._said += len(places)
        if self._ended and places and places[-1] == len(self.tokens) - 1:
            del places[-1]
        return [self.tokens[place] for place in places], places

    def add_audio(self, codes: np.ndarray, samples: np.ndarray) -> None:
        """Adds sound: codes [Q, y] and samples [w]."""
        self.codes.append(codes)
        self.samples.append(samples)

    def reply(self, codebooks: int | None = None, *, cut: bool = False) -> Reply:
        """The reply so far.

        Args:
            codebooks: codes a frame; None for a reply that is not spoken.
            cut: whether its sound was cut by its length.
        """
        spoken = codebooks is not None
        return Reply(
            text=self.transcript.text, thinking=self.transcript.thinking, tool_calls=list(self.transcript.tool_calls),
            tokens=list(self.tokens), logprobs=list(self.logprobs), finish_reason=self.reason,
            codes=np.concatenate([np.zeros((codebooks, 0), np.int32), *self.codes], axis=1) if spoken else None,
            audio=np.concatenate([np.zeros(0, np.float32), *self.samples]) if spoken else None,
            speech_finish_reason=("length" if cut else "stop") if spoken else None,
        )  # fmt: skip
