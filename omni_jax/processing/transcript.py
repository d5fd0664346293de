"""The transcript: turns generated tokens into text, thinking and tool calls, a piece at a time.

A whole reply is read by the same code in one push, so a stream joins to the same text by construction. The exception is
text before a ``</think>`` without a ``<think>``, which a stream has already sent as answer. Tokens of a byte-level
tokenizer are bytes. They are decoded one by one, so the pieces cannot depend on how the tokens were grouped.
"""

import codecs
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omni_jax.processing.spoken import TAGS, SpokenTokens, overlap
from omni_jax.processing.transformers_classes import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Piece:
    """What some tokens made certain: new characters of the answer, and of the thinking before it."""

    text: str = ""
    thinking: str = ""


class Transcript:
    """Reads generated tokens in order and keeps their text, thinking and tool calls.

    Tags count only as the tokenizer's single tokens. Tag pairs delimit the thinking and the tool calls; everything else
    is the answer, without special tokens. A first `</think>` without a `<think>` ends thinking that began with the
    reply: thinking models write it where the prompt has not opened the block. A stream has already sent that text as
    answer; the whole reply has it as thinking. Text never ends within a character, and bytes that cannot become one are
    U+FFFD, as in the tokenizer's own decode. Newlines between tags and text belong to neither, so newlines at the end
    of the answer are held back until it is known what follows them.

    Attributes:
        tool_calls: `{"name": str, "arguments": dict}` of each call completed so far. A block that is not such JSON, or
            is never closed, is part of the answer, tags included.
        stopped: a stop string was met; the answer ends before it and further tokens are ignored.
        tokens_used: how many of the pushed tokens were read, the one that completed a stop string included.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast | None,
        *,
        stop_strings: Sequence[str] | str = (),
        thinking: bool = False,
        calling: bool = False,
        all_spoken: bool = False,
    ) -> None:
        """Starts an empty transcript.

        Args:
            tokenizer: a byte-level tokenizer, from `prompt.load_tokenizer`; None reads tokens without their text.
            stop_strings: the answer is cut before the first of these that is complete; thinking and tool calls are
                not searched.
            thinking: the prompt has already opened the thinking.
            calling: the prompt has already opened a tool call, whose rest is not spoken.
            all_spoken: all tokens but those of a stop string are spoken, as in Transformers; so they are without a
                tokenizer.

        Raises:
            ValueError: a stop string is empty, or `thinking` with a tokenizer that has no thinking tags.
        """
        self._stops = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        if not all(isinstance(stop, str) and stop for stop in self._stops):
            raise ValueError(f"stop_strings: expected non-empty strings, got {stop_strings!r}; leave the empty one out")
        if tokenizer is None and self._stops:
            raise ValueError("stop_strings need the tokenizer's files beside the weights; use eos_token_id")
        added = tokenizer.get_added_vocab() if tokenizer else {}
        if thinking and not {"<think>", "</think>"} <= added.keys():
            raise ValueError("thinking=True, but the tokenizer has no <think> and </think>; pass thinking=False")
        self._tokenizer = tokenizer
        self._tags = {added[tag]: tag for tag in TAGS if tag in added}
        known = tokenizer.added_tokens_decoder if tokenizer else {}
        self._skipped = {token for token, spec in known.items() if spec.special}
        self._bytes = {character: byte for byte, character in byte_alphabet().items()}
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._mode = "thinking" if thinking else "answer"
        self._lone = not thinking  # the next </think> would close a block that was never opened
        self._call: list[str] = []  # text of the open tool call so far
        self._answer = _Answer(self._stops)
        self._thoughts = _Thoughts()
        self._taken = 0, 0  # numbers of parts of both already returned in pieces
        self._finished = False
        self._spoken = SpokenTokens(everything=all_spoken or tokenizer is None, muted=calling)
        if thinking:
            self._spoken.add_block()
        self.tool_calls: list[dict[str, Any]] = []
        self.tokens_used = 0

    @property
    def text(self) -> str:
        """The answer so far: all pieces' text joined."""
        return "".join(self._answer.parts)

    @property
    def thinking(self) -> str:
        """The thinking so far: all pieces' thinking joined."""
        return "".join(self._thoughts.parts)

    @property
    def stopped(self) -> bool:
        return self._answer.stopped

    @property
    def spoken(self) -> Sequence[int]:
        """Places among the tokens read of those that are spoken, ascending; pushed tokens only ever add to them."""
        return self._spoken.places

    def push(self, tokens: Sequence[int]) -> Piece:
        """Reads more tokens and returns the text that they made certain."""
        if self._finished:
            raise ValueError("the transcript is finished; start a new one for another reply")
        for token in tokens:
            if self.stopped:
                break
            self.tokens_used += 1
            start = self._answer.length
            written = self._read(int(token))
            half = self._mode == "answer" and bool(self._utf8.getstate()[0])  # a character lacks its last bytes
            if not self.stopped:
                end = self._answer.length + half
                self._spoken.add_token(start if written else end, end, self.tokens_used - 1)
            self._spoken.settle(self._answer.settled)
        return self._take()

    def finish(self) -> Piece:
        """Ends the reply and returns what was held back: half characters, open calls, beginnings of stop strings."""
        if not self._finished:
            self._finished = True
            self._flush()
            if self._mode == "call":
                self._return_call()
            self._answer.finish()
            self._spoken.finish(self._answer.settled)
        return self._take()

    def _read(self, token: int) -> bool:
        """Reads a token; returns whether it has text."""
        tag = self._tags.get(token)
        if tag is not None and self._switch(tag):
            return False
        if self._tokenizer is None or token in self._skipped:
            return False
        # Rows of the embedding beyond the vocabulary have no token; the tokenizer's decode skips them too.
        word = str(self._tokenizer.convert_ids_to_tokens(token) or "")
        try:
            raw = bytes(self._bytes[character] for character in word)
        except KeyError:  # an added token is spelt as it is
            raw = word.encode()
        self._write(self._utf8.decode(raw))
        return bool(raw)

    def _switch(self, tag: str) -> bool:
        """Enters or leaves a block; False where the tag has no meaning and is ordinary text."""
        match self._mode, tag:
            case "answer", "<think>":
                self._flush()
                self._mode, self._lone = "thinking", False
                self._thoughts.open()
                self._spoken.add_block()
            case "thinking", "</think>":
                self._flush()
                self._mode = "answer"
                self._answer.skip_newlines = True
            case "answer", "</think>" if self._lone:
                self._flush()
                self._lone = False
                self._reopen()
            case "answer", "<tool_call>":
                self._flush()
                self._mode, self._lone = "call", False
                self._spoken.add_block()
            case "call", "<tool_call>":  # the block before was never closed
                self._flush()
                self._return_call()
                self._mode = "call"
            case "call", "</tool_call>":
                self._flush()
                call = _parse_call("".join(self._call))
                if call is None:
                    self._return_call("</tool_call>")
                else:
                    self._call.clear()
                    self._mode = "answer"
                    self._answer.mark_call()
                    self.tool_calls.append(call)
            case _:
                return False
        return True

    def _reopen(self) -> None:
        """Turns everything so far into thinking; pieces that were returned as text stay so."""
        self._answer.finish()
        given = self._taken[0]
        self._thoughts.write("".join(self._answer.parts[:given]))
        taken = len(self._thoughts.parts)
        self._thoughts.write("".join(self._answer.parts[given:]))
        self._taken = 0, taken
        self._answer = _Answer(self._stops, self._answer.length)
        self._answer.skip_newlines = True
        self._spoken.forget(self._answer.length)

    def _return_call(self, end: str = "") -> None:
        """Adds a block that is no tool call to the answer, as it was written."""
        self._mode = "answer"
        self._spoken.add_block(self._answer.write("".join(["<tool_call>", *self._call, end])))
        self._call.clear()

    def _write(self, text: str) -> None:
        if self._mode == "call":
            self._call.append(text)
        elif self._mode == "thinking":
            self._thoughts.write(text)
        else:
            self._spoken.add_text(self._answer.write(text))

    def _flush(self) -> None:
        """Ends bytes that still wait for the rest of a character."""
        self._write(self._utf8.decode(b"", final=True))

    def _take(self) -> Piece:
        text, thinking = self._taken
        self._taken = len(self._answer.parts), len(self._thoughts.parts)
        return Piece("".join(self._answer.parts[text:]), "".join(self._thoughts.parts[thinking:]))


class _Answer:
    """The answer's text: cut at a stop string; its last newlines are held back, and dropped next to a tool call."""

    def __init__(self, stops: tuple[str, ...], length: int = 0) -> None:
        self.parts: list[str] = []
        self.stopped = False
        self.skip_newlines = False  # just after </think>
        self._stops = stops
        self._tail = ""  # may become a stop string
        self._newlines = 0  # certain but not returned yet; a count, so that a long run stays cheap
        self.length = length  # characters of the answer up to here, _tail and _newlines included
        self._last_call = -1  # the length at which the latest tool call stands

    @property
    def settled(self) -> int:
        """Characters of the answer that no stop string can take away."""
        return self.length - len(self._tail)

    def write(self, text: str) -> str:
        """Adds text and returns what of it is the answer's, up to a stop string or beyond it."""
        if self.skip_newlines:
            text = text.lstrip("\n")
            self.skip_newlines = not text
        if self.stopped or not text:
            return ""
        self.length += len(text)
        added = text
        text = self._tail + text
        # The stop string that is complete first, so that the cut depends on the text and not on how tokens split it.
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stops if stop in text]
        if found:
            self.stopped = True
            cut = min(found)[1]
            self.length -= len(text) - cut
            self._tail = text[:cut]
            self.finish()
            return added
        held = max((overlap(text, stop) for stop in self._stops), default=0)
        self._tail = text[len(text) - held :]
        self._give(text[: len(text) - held])
        return added

    def mark_call(self) -> None:
        """Records that a tool call stands here."""
        self._last_call = self.length

    def finish(self) -> None:
        """Ends the answer: adds the tail, and the last newlines unless a tool call stands beside them."""
        self._give(self._tail)
        self._tail = ""
        if not self.length - self._newlines <= self._last_call <= self.length and self._newlines:
            self.parts.append("\n" * self._newlines)
        self._newlines = 0

    def _give(self, text: str) -> None:
        body = text.rstrip("\n")
        if body:
            self.parts.append("\n" * self._newlines + body)
            self._newlines = 0
        self._newlines += len(text) - len(body)


class _Thoughts:
    """The thinking's text, without whitespace at both ends; blocks after the first start on a new line."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._gap: list[str] = []  # whitespace that is added once something follows it
        self._empty = True  # whether this block is empty so far

    def open(self) -> None:
        self._gap = ["\n"] if self.parts else []
        self._empty = True

    def write(self, text: str) -> None:
        if self._empty:
            text = text.lstrip()
            self._empty = not text
        body = text.rstrip()
        if body:
            self.parts.append("".join([*self._gap, body]))
            self._gap.clear()
        self._gap.append(text[len(body) :])


def byte_alphabet() -> dict[int, str]:
    """Byte -> the character that spells it in a byte-level vocabulary.

    Printable characters of Latin-1 spell themselves; the other bytes get the characters from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


def _parse_call(text: str) -> dict[str, Any] | None:
    """The call that a block holds as JSON, else None; arguments written as a string are decoded too."""
    try:
        call = json.loads(text)
        name, arguments = call["name"], call.get("arguments")
        arguments = {} if arguments in (None, "") else arguments
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    is_call = isinstance(name, str) and isinstance(arguments, dict)
    return {"name": name, "arguments": arguments} if is_call else None
