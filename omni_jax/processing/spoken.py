"""Which tokens of a reply are spoken: those of its visible answer, each as soon as nothing can take it away again."""

import sys
from collections import deque

# Each tag that begins what is not the answer, and the tag that ends it.
BLOCKS = {"<think>": "</think>", "<tool_call>": "</tool_call>"}
TAGS = tuple(tag for pair in BLOCKS.items() for tag in pair)


class SpokenTokens:
    """Chooses the tokens that are spoken, as the transcript reads them one by one.

    A token is spoken if all of its characters belong to the answer. Not spoken are thinking, tool calls, malformed or
    unfinished calls that are part of the text, special tokens, stop strings, and tags that several tokens spell, with
    what stands between them. Text that may yet become a tag waits. If the reply ends in such text, it is not spoken.
    Blank tokens wait for the next word. Blanks between a block and the beginning or the end of what is said are not
    spoken, and a reply of blanks alone is silent.

    The choice depends on the tokens alone, not on how they were grouped, and no chosen token is taken back.

    Attributes:
        places: the places of the chosen tokens in the reply, ascending.
    """

    def __init__(self, *, everything: bool, muted: bool) -> None:
        """Starts with an empty reply.

        Args:
            everything: speaks all tokens but those of a stop string, as Transformers does.
            muted: the prompt has already opened a tool call.
        """
        self.places: list[int] = []
        self._everything = everything
        self._waiting: deque[tuple[int, int, int]] = deque()  # a token's place and the bounds of its characters
        self._blanks: list[int] = []  # places of blank tokens that wait for a word
        self._text, self._base = "", 0  # the answer's characters from _base on
        self._clear = 0  # characters before this one are certain: part of a tag or not
        self._silent: deque[tuple[int, int]] = deque()  # bounds of characters that are not spoken
        self._close = BLOCKS["<tool_call>"] if muted else ""  # the tag that ends an open block of several tokens
        self._first_block, self._last_block, self._last_word = (0 if muted else sys.maxsize), -1, -1

    def add_token(self, start: int, end: int, place: int) -> None:
        """Adds a token of the answer: its place in the reply and the bounds of its characters in the answer."""
        if self._everything or end > start:
            self._waiting.append((place, start, end))

    def add_text(self, text: str) -> None:
        """Adds characters to the answer."""
        if self._everything:
            return
        self._text += text
        tail = self._text[self._clear - self._base :]
        while found := self._first_tag(tail):
            at, tag = found
            self._silence(self._clear if self._close else self._clear + at, self._clear + at + len(tag))
            self._close = "" if self._close else BLOCKS.get(tag, "")
            tail = tail[at + len(tag) :]
        sure = len(tail) - max(overlap(tail, tag) for tag in self._tags)
        if self._close and sure:
            self._silence(self._clear, self._clear + sure)
        self._clear = self._length - len(tail) + sure

    def add_block(self, text: str = "") -> None:
        """Records thinking or a tool call at the end of the answer; ``text`` is what the answer shows of it."""
        if self._everything:
            return
        self._silence(self._clear, self._length)  # the beginning of a tag
        self._text += text
        self._silence(self._length - len(text), self._length)

    def forget(self, length: int) -> None:
        """Drops what still waits, for the answer's ``length`` characters so far were thinking."""
        if self._everything:
            return
        for waiting in (self._waiting, self._blanks, self._silent):
            waiting.clear()
        self._text, self._base, self._close = "", length, ""
        self._silence(length, length)

    def settle(self, settled: int) -> None:
        """Chooses among the tokens whose characters are all certain; ``settled`` are those without a stop string."""
        limit = settled if self._everything else min(settled, self._clear)
        while self._waiting and self._waiting[0][2] <= limit:
            place, start, end = self._waiting.popleft()
            if self._everything:
                self.places.append(place)
                continue
            while self._silent and self._silent[0][1] <= start:
                self._silent.popleft()
            if self._silent and self._silent[0][0] < end:
                continue
            if self._text[start - self._base : end - self._base].isspace():
                self._blanks.append(place)
                continue
            if self.places or start < self._first_block:
                self.places += self._blanks
            self._blanks.clear()
            self.places.append(place)
            self._last_word = end
        needed = min(self._clear, self._waiting[0][1]) if self._waiting else self._clear
        self._text, self._base = self._text[needed - self._base :], needed

    def finish(self, settled: int) -> None:
        """Ends the reply, whose answer has ``settled`` characters."""
        if not self._everything and self._clear < self._length:
            self._silence(self._clear, self._length)
        self.settle(settled)
        if self.places and self._last_block < self._last_word:
            self.places += self._blanks
        self._blanks.clear()

    @property
    def _length(self) -> int:
        return self._base + len(self._text)

    @property
    def _tags(self) -> tuple[str, ...]:
        return (self._close,) if self._close else TAGS

    def _first_tag(self, text: str) -> tuple[int, str] | None:
        return min(((text.find(tag), tag) for tag in self._tags if tag in text), default=None)

    def _silence(self, start: int, end: int) -> None:
        if end > start:
            self._silent.append((start, end))
        self._clear = end
        self._first_block, self._last_block = min(self._first_block, start), end


def overlap(text: str, word: str) -> int:
    """Length of the longest end of ``text`` that is an incomplete beginning of ``word``."""
    longest = min(len(word) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(word[:n])), 0)
