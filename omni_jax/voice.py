"""Voices: rows of speech in the making. Talker, code predictor and vocoder called in their static shapes, chunk by chunk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from omni_jax.buckets import bucket
from omni_jax.config import OmniConfig
from omni_jax.decoding.generate import grow
from omni_jax.decoding.sampling import Sampling, SamplingRows
from omni_jax.decoding.speech import CALL_FRAMES, ROOM, SpeechRows, listen, speak, take_rows
from omni_jax.models.code2wav import BATCH_FRAMES
from omni_jax.processing.arrays import to_numpy
from omni_jax.processing.speech_prompt import SpeechPrompt

# New frames a call: a stream begins with one, so that its first sound is early, and grows so that it stays ahead of its
# listener. Each is a program of the vocoder.
CHUNKS = (1, 2, 4, 8, 16, CALL_FRAMES)

_take = jax.jit(take_rows)
_words = jax.jit(lambda talker, embedding, tokens: talker.text(embedding(tokens)))
_quiet = jax.jit(lambda code2wav, batch: code2wav.start(batch), static_argnums=1)


@jax.jit
def _prompt(talker, embedding, tokens, codes, heard, states):
    """Slots of the prompts; ``states`` of the thinker where there is a medium among them, else None."""
    if states is None:
        return talker.prompt(embedding(tokens), codes)
    media = jax.vmap(lambda row, at: row[at])(states, heard)  # what -1 takes is not used
    return talker.prompt(embedding(tokens), codes, media, heard >= 0)


@partial(jax.jit, static_argnames=("frames",), donate_argnames=("state",))
def _sound(code2wav, state, codes, before, after, *, frames: int):
    """Samples of a call's frames, of which each row has ``after - before``."""
    return code2wav.step(state, codes[:, :, :frames], after - before)


@dataclass(frozen=True)
class Speech:
    """What rows are spoken from, and how: prompts (padding rows too), seeds of the real rows, sampling options."""

    prompt: SpeechPrompt
    seeds: tuple[int, ...]
    talker: Sampling
    predictor: Sampling


@dataclass(frozen=True)
class Chunk:
    """New sound of a row: codes [Q, y] and the samples [w] that they settle."""

    row: int
    codes: Int[np.ndarray, "Q y"]
    samples: Float[np.ndarray, "w"]


class Voices:
    """Speech of several rows: words come in by ``say``, sound goes out by ``advance``.

    The batch shrinks to the next power of two when half of its rows have finished, and they cost nothing more.
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        config: OmniConfig,
        speech: Speech,
        states: Float[Array, "B T D"] | None,
        *,
        streamed: bool,
    ):
        """Args:
        states: the thinker's at the prompt's tokens, after ``accept_layer`` layers; None where no prompt has media.
        streamed: chunks grow from one frame; else all are as long as memory allows.
        """
        talker, prompt = config.talker, speech.prompt
        assert talker is not None
        self.parts, self.config = parts, config
        batch = len(prompt.lengths)
        seeds = [*speech.seeds, *[0] * (batch - len(speech.seeds))]
        self.words, self.ended = [list(words) for words in prompt.words], [False] * batch
        self.rows = np.where(
            prompt.lengths > 0, np.arange(batch), -1
        )  # which row each row of the batch is; -1 for none
        self.lengths, self.counts = prompt.lengths, np.zeros(batch, int)
        # As in the reference, the token that ends speech is one of its tokens, and the last of them is never heard.
        self.most = most = (speech.talker.max_new_tokens or ROOM) - 1
        rows = SpeechRows(
            talker=SamplingRows.of([speech.talker] * batch, [_seed(seed, 1) for seed in seeds], [most] * batch),
            predictor=SamplingRows.of([speech.predictor] * batch, [_seed(seed, 2) for seed in seeds], [0] * batch),
        )
        self.candidates = speech.talker.candidates(talker.vocabulary), speech.predictor.candidates(talker.codebook)
        self.size = CHUNKS[0] if streamed else CHUNKS[-1]
        slots = bucket(prompt.tokens.shape[1] + ROOM)
        x = _prompt(
            parts["talker"], parts["thinker"].embedding, prompt.tokens, prompt.codes, prompt.heard,
            states if prompt.hears else None,
        )  # fmt: skip
        lengths = prompt.lengths if most else np.zeros_like(prompt.lengths)
        cache = parts["talker"].empty_cache(batch, slots)
        state = listen(parts["talker"], x, prompt.positions, lengths, cache, bos=talker.codec_bos)
        self.states = state, rows, _quiet(parts["code2wav"], batch)
        self.live = lengths > 0
        # Rows whose sound was cut by its length, and rows that the device does not know yet to be silent.
        self.cut: set[int] = set() if most else set(range(len(speech.seeds)))
        self.unheard = False

    def say(self, row: int, words: Sequence[int], *, ended: bool) -> None:
        """Further tokens of a row's reply, and whether they are the last."""
        self.words[row] += words
        self.ended[row] = ended
        if ended and not self.words[row]:  # a reply of nothing is silence
            self.live &= self.rows != row
            self.cut.discard(row)
            self.unheard = True

    @property
    def done(self) -> bool:
        return not self.live.any()

    @property
    def ready(self) -> bool:
        """Whether all words of the next chunk are there."""
        rows = [(row, count) for row, count, live in zip(self.rows, self.counts, self.live, strict=True) if live]
        return bool(rows) and all(self.ended[row] or len(self.words[row]) >= count + self.frames for row, count in rows)

    @property
    def frames(self) -> int:
        """New frames of the next chunk."""
        room = max(1, BATCH_FRAMES // len(self.rows))
        return max(size for size in CHUNKS if size <= min(self.size, room))

    def advance(self) -> list[Chunk]:
        """The next chunk of each row that has one."""
        self._shrink()
        frames, code2wav = self.frames, self.parts["code2wav"]
        at = zip(self.rows, self.counts, strict=True)
        tokens = [[self._word(row, count + n) for n in range(CALL_FRAMES)] for row, count in at]
        words = _words(self.parts["talker"], self.parts["thinker"].embedding, np.asarray(tokens, np.int32))
        state, rows, heard = self.states
        if self.unheard:
            state, self.unheard = replace(state, finished=jax.device_put(~self.live)), False
        needed = self.lengths + np.minimum(self.counts + frames, self.most)
        if needed[self.live].max() > state.cache.slots:
            state = replace(state, cache=grow(state.cache, slots=2 * state.cache.slots))
        state, codes = speak(
            self.parts["talker"], self.parts["code_predictor"], state, words, rows, np.int32(frames),
            candidates=self.candidates,
        )  # fmt: skip
        heard, samples = _sound(code2wav, heard, codes, self.counts.astype(np.int32), state.count, frames=frames)
        counts, finished, codes, samples = jax.device_get((state.count, state.finished, codes, samples))
        chunks = []
        for number in np.flatnonzero(self.live & (counts > self.counts)):
            before, after = self.counts[number], counts[number]
            # A row's first samples lie before its beginning.
            sound = slice(0 if before else code2wav.lag, (after - before) * code2wav.frame_samples)
            chunks.append(Chunk(int(self.rows[number]), codes[number, :, : after - before], samples[number, sound]))
        self.cut |= set(self.rows[self.live & finished & (counts >= self.most)].tolist())
        self.states, self.counts, self.live = (state, rows, heard), counts, self.live & ~finished
        self.size = CHUNKS[min(CHUNKS.index(self.size) + 1, len(CHUNKS) - 1)]
        return chunks

    def _word(self, row: int, number: int) -> int:
        """What a frame is fed: the reply's tokens, then the mark of their end, then nothing more."""
        words = self.words[row] if row >= 0 else ()
        if number < len(words):
            return words[number]
        return self.config.tts_eos if number == len(words) else self.config.tts_pad

    def _shrink(self) -> None:
        """Leaves finished rows behind, as many as makes the batch a smaller power of two."""
        count = 1 << (int(self.live.sum()) - 1).bit_length()
        if count < len(self.rows):
            index = np.argsort(~self.live, kind="stable")[:count].astype(np.int32)
            self.states = _take(self.states, index)
            self.rows, self.lengths, self.counts = self.rows[index], self.lengths[index], self.counts[index]
            self.live = self.live[index]


def checked(code2wav: Any, codes: np.ndarray, lengths: Any) -> tuple[Int[np.ndarray, "B Q Y"], Int[np.ndarray, "B"]]:
    """Codes [B, Q, Y] or [Q, Y] as ``decode`` takes them, zero beyond each row's frames, and these.

    Raises:
        ValueError: in one line, for codes or lengths that cannot be.
    """
    ids, books, book = codes[None] if codes.ndim == 2 else codes, code2wav.config.codebooks, code2wav.config.codebook
    if ids.ndim != 3 or ids.shape[1] != books or not ids.shape[0] or ids.dtype.kind not in "iu":
        raise ValueError(
            f"codes: expected whole numbers of shape [B, {books}, Y] or [{books}, Y], got {ids.dtype} of shape "
            f"{list(codes.shape)}"
        )
    rows, _, most = ids.shape
    frames = np.full(rows, most) if lengths is None else np.atleast_1d(to_numpy(lengths))
    if frames.shape != (rows,) or frames.dtype.kind not in "iu" or ((frames < 0) | (frames > most)).any():
        raise ValueError(
            f"lengths: expected a number of frames from 0 to {most} for each of {rows} rows, got {frames.tolist()}"
        )
    own = np.where(np.arange(most) < frames[:, None, None], ids, 0)
    if ids.size and (own.min() < 0 or own.max() >= book):
        raise ValueError(f"codes: expected ids from 0 to {book - 1}, got {own.min()} to {own.max()}")
    return own, frames


def decode(code2wav: Any, codes: Int[np.ndarray, "B Q Y"], lengths: Int[np.ndarray, "B"]) -> Float[np.ndarray, "B W"]:
    """The waveforms of whole rows, whatever their length; a row is zero beyond its own samples."""
    batch, _, frames = codes.shape
    rows = 1 << (batch - 1).bit_length()
    size = max(chunk for chunk in CHUNKS if chunk <= max(1, BATCH_FRAMES // rows))
    steps = -(-frames // size)
    padded = np.pad(codes, [(0, rows - batch), (0, 0), (0, steps * size - frames)]).astype(np.int32)
    ends = np.pad(lengths, (0, rows - batch))
    heard, sound = _quiet(code2wav, rows), []
    for start in range(0, steps * size, size):
        before, after = np.minimum(ends, start).astype(np.int32), np.minimum(ends, start + size).astype(np.int32)
        heard, samples = _sound(code2wav, heard, padded[:, :, start : start + size], before, after, frames=size)
        sound.append(samples)
    joined = np.concatenate([np.zeros((rows, 0), np.float32), *map(np.asarray, sound)], axis=1)
    return joined[:batch, code2wav.lag :][:, : code2wav.samples(frames)]


def _seed(seed: int, part: int) -> int:
    """Seeds of parts that draw independently of each other."""
    return int(np.random.SeedSequence([int(seed) & 0xFFFFFFFF, part]).generate_state(1)[0])
