"""Speech of several rows, generated chunk by chunk in static shapes. Each family has a file of its own for its part."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from omni_jax.buckets import INITIAL_NEW_SLOTS, first_slots, more_slots
from omni_jax.config import OmniConfig
from omni_jax.decoding.frames import FRAMES_PER_CALL, SpeechRows, SpeechState, generate_frames, take_rows
from omni_jax.decoding.sampling import Sampling, SamplingRows
from omni_jax.decoding.text import StepOutput, grow
from omni_jax.models.parts import OmniParts, loaded
from omni_jax.processing.talker_prompt.qwen3_omni import SpeechPrompt

Parts = TypeVar("Parts", bound=OmniParts)

_take = jax.jit(take_rows)


@dataclass(frozen=True)
class SpeechRequest:
    """The inputs of rows' speech: prompts (padding rows too), seeds of the real rows, and sampling options.

    Attributes:
        prompt: of the talker.
        seeds: one a real row.
        talker: sampling options of first codes.
        predictor: sampling options of the other codes.
        make: makes the stream, from the parts, the configuration, this object, the thinker's states and ``streamed``.
        hidden_layer: number of the thinker's layers after which its states at the prompt are needed; None for none.
        return_hidden_states: whether its states at the reply's tokens are needed too.
    """

    prompt: SpeechPrompt
    seeds: tuple[int, ...]
    talker: Sampling
    predictor: Sampling
    make: Callable[..., "SpeechStream[Any]"]
    hidden_layer: int | None = None
    return_hidden_states: bool = False


@dataclass(frozen=True)
class AudioChunk:
    """New sound of a row: codes [Q, y] and the samples [w] that are final."""

    row: int
    codes: Int[np.ndarray, "Q y"]
    samples: Float[np.ndarray, "w"]


class SpeechStream(ABC, Generic[Parts]):
    """Speech of several rows: ``add_text`` adds tokens of replies, ``advance`` returns sound.

    The batch shrinks to the next power of two when half of its rows have finished: they then cost nothing more.

    Attributes:
        codebooks: codes of a frame.
        chunks: frames a call, growing while a stream runs.
    """

    chunks: tuple[int, ...]

    def __init__(
        self,
        parts: Parts,
        config: OmniConfig,
        speech: SpeechRequest,
        states: Float[Array, "B T D"] | None,
        *,
        streamed: bool,
    ):
        """Prefills the talker.

        Args:
            parts: of the model.
            config: of the model.
            speech: prompts, seeds and options.
            states: the thinker's at the prompt's tokens, as ``speech.hidden_layer`` asks; None where none are needed.
            streamed: whether sound comes as early as possible; else in calls as long as memory allows.
        """
        talker, prompt = config.talker, speech.prompt
        assert talker is not None
        self.parts, self.config, self.streamed = parts, config, streamed
        batch = len(prompt.lengths)
        self.seeds = [*speech.seeds, *[0] * (batch - len(speech.seeds))]
        self.text_tokens, self.ended = [list(text_tokens) for text_tokens in prompt.text_tokens], [False] * batch
        # Where each of a row's text tokens stands among all tokens of its reply.
        self.places = [list(range(len(text_tokens))) for text_tokens in prompt.text_tokens]
        # The row of the request in each row of the batch; -1 for none.
        self.rows = np.where(prompt.lengths > 0, np.arange(batch), -1)
        self.lengths, self.counts = prompt.lengths, np.zeros(batch, int)
        self.most = most = self._most(speech.talker.max_new_tokens or INITIAL_NEW_SLOTS)
        self.talker, self.predictor = loaded(parts.talker), parts.code_predictor
        of_predictor, candidates, self.codebooks = None, 0, 1
        if self.predictor is not None:
            self.codebooks = self.predictor.config.codebooks
            draws = [part_seed(seed, 2) for seed in self.seeds]
            of_predictor = SamplingRows.of([speech.predictor] * batch, draws, [0] * batch)
            candidates = speech.predictor.candidates(self.predictor.config.codebook)
        draws = [part_seed(seed, 1) for seed in self.seeds]
        rows = SpeechRows(SamplingRows.of([speech.talker] * batch, draws, [most] * batch), of_predictor)
        self.candidates = speech.talker.candidates(talker.vocabulary), candidates
        self.size = self.chunks[0] if streamed else self.chunks[-1]
        lengths = prompt.lengths if most else np.zeros_like(prompt.lengths)
        slots = first_slots(prompt.tokens.shape[1], int(prompt.lengths.max()), most)
        cache = self.talker.empty_cache(batch, slots)
        self.states = self._prefill(prompt, lengths, states, cache), rows
        self.live = lengths > 0
        # Rows whose sound was cut by its length; and whether rows ended here that the device still computes.
        self.cut: set[int] = set() if most else set(range(len(speech.seeds)))
        self.stale = False

    def add_text(self, row: int, text_tokens: Sequence[int], places: Sequence[int], *, ended: bool) -> None:
        """Adds the tokens of a row's reply that are spoken.

        Args:
            row: of the request.
            text_tokens: the tokens.
            places: their places among all tokens of the reply, ascending.
            ended: whether they are the last.
        """
        self.text_tokens[row] += text_tokens
        self.places[row] += places
        self.ended[row] = ended
        if ended and not self._known(row):  # an empty reply is silent
            self.live &= self.rows != row
            self.cut.discard(row)
            self.stale = True

    @abstractmethod
    def add_hidden_states(self, made: StepOutput) -> None:
        """Takes the thinker's states at tokens of the replies, before ``add_text`` adds the tokens of the same call."""

    @property
    def done(self) -> bool:
        return not self.live.any()

    @property
    def ready(self) -> bool:
        """Whether the tokens for the next chunk are there."""
        rows = [(row, count) for row, count, live in zip(self.rows, self.counts, self.live, strict=True) if live]
        return bool(rows) and all(self.ended[row] or self._known(row) >= count + self.frames for row, count in rows)

    @property
    def frames(self) -> int:
        """New frames of the next chunk."""
        return max(size for size in self.chunks if size <= min(self.size, self._room(len(self.rows))))

    def advance(self) -> list[AudioChunk]:
        """Generates the next chunk of each row that has one."""
        self._shrink()
        frames = self.frames
        numbers = np.asarray(self.counts)[:, None] + np.arange(FRAMES_PER_CALL)
        tokens = [[self._text_token(row, n) for n in own] for row, own in zip(self.rows, numbers, strict=True)]
        text = self._read(np.asarray(tokens, np.int32), numbers.astype(np.int32))
        state, rows = self.states
        if self.stale:
            state, self.stale = replace(state, finished=jax.device_put(~self.live)), False
        needed = self.lengths + np.minimum(self.counts + frames, self.most)
        if needed[self.live].max() > state.cache.slots:
            slots = more_slots(state.cache.slots, int(self.lengths[self.live].max()), self.most)
            state = replace(state, cache=grow(state.cache, slots=slots))
        state, codes = generate_frames(
            self.talker, self.predictor, state, text, rows, np.int32(frames), candidates=self.candidates
        )
        self.states = state, rows
        counts, finished, chunks = self._decode_audio(state, codes, frames)
        self.cut |= set(self.rows[self.live & finished & (counts >= self.most)].tolist())
        self.counts, self.live = counts, self.live & ~finished
        self.size = self.chunks[min(self.chunks.index(self.size) + 1, len(self.chunks) - 1)]
        return chunks

    @abstractmethod
    def _prefill(self, prompt: SpeechPrompt, lengths: np.ndarray, states: Array | None, cache: Any) -> SpeechState:
        """Prefills the talker and returns its state."""

    @abstractmethod
    def _read(self, tokens: Int[np.ndarray, "B n"], numbers: Int[np.ndarray, "B n"]) -> Float[Array, "B n D"]:
        """The talker's input for tokens of the replies; ``numbers`` are theirs among their row's text tokens."""

    @abstractmethod
    def _decode_audio(
        self, state: SpeechState, codes: Int[Array, "B Q n"], frames: int
    ) -> tuple[np.ndarray, np.ndarray, list[AudioChunk]]:
        """Frames generated in all and whether a row is finished, for each row of the batch; and the new sound."""

    def _most(self, tokens: int) -> int:
        """The number of frames that ``tokens`` tokens of the talker make."""
        return tokens

    def _room(self, batch: int) -> int:
        """Frames a call that memory allows."""
        return self.chunks[-1]

    def _known(self, row: int) -> int:
        """The number of a reply's tokens that the talker can read."""
        return len(self.text_tokens[row])

    def _text_token(self, row: int, number: int) -> int:
        """The token that a frame is fed: the reply's tokens, then the mark of their end, then padding."""
        known = self._known(row) if row >= 0 else 0
        if number < known:
            return self.text_tokens[row][number]
        return self.config.tts_eos if number == known else self.config.tts_pad

    def _shrink(self) -> None:
        """Drops finished rows, as many as make the batch a smaller power of two."""
        count = 1 << (int(self.live.sum()) - 1).bit_length()
        if count < len(self.rows):
            self._keep_rows(np.argsort(~self.live, kind="stable")[:count].astype(np.int32))

    def _keep_rows(self, index: Int[np.ndarray, "b"]) -> None:
        self.states = _take(self.states, index)
        self.rows, self.lengths, self.counts = self.rows[index], self.lengths[index], self.counts[index]
        self.live = self.live[index]


def part_seed(seed: int, part: int) -> int:
    """The seed of a part; parts draw independently of each other."""
    return int(np.random.SeedSequence([int(seed) & 0xFFFFFFFF, part]).generate_state(1)[0])
