"""Qwen2.5-Omni's speech: the talker reads the reply's tokens with the thinker's states at them and generates one code
at a time, 50 a second; a flow turns codes into mel frames, and a vocoder turns these into samples."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from omni_jax.buckets import bucket
from omni_jax.config import Qwen25OmniConfig
from omni_jax.config.speech import Speaker
from omni_jax.decoding.defaults import GenerationConfig
from omni_jax.decoding.frames import SpeechState, prefill
from omni_jax.decoding.text import StepOutput
from omni_jax.models.parts import loaded
from omni_jax.models.qwen2_5_omni import Qwen25OmniParts
from omni_jax.parallel.multihost import to_host
from omni_jax.processing.arrays import is_numeric, to_numpy
from omni_jax.processing.batch import Batch
from omni_jax.processing.conversation import SPOKEN_SYSTEM
from omni_jax.processing.talker_prompt import qwen2_5_omni
from omni_jax.processing.talker_prompt.qwen3_omni import SpeechPrompt
from omni_jax.speech import token2wav
from omni_jax.speech.stream import AudioChunk, SpeechRequest, SpeechStream, part_seed
from omni_jax.speech.synthesizer import Synthesizer, check_compat, checked
from omni_jax.weights.speakers import read_speakers

# Codes a call: two blocks of the flow, 480 ms.
CODES_PER_CALL = 24


@jax.jit
def _prompt(talker, embedding, tokens, codes, state_index, states):
    """Embeddings of the prompts' slots."""
    return talker.text(_embed(embedding, tokens), _pick(states, state_index)) + talker.embedding(codes)


@jax.jit
def _embed_reply(talker, embedding, tokens, states, numbers):
    return talker.text(_embed(embedding, tokens), _pick(states, numbers))


@partial(jax.jit, donate_argnames="states")
def _put(states, fed, at):
    """Writes a call's states behind those that each row has."""
    rows, places = jnp.arange(states.shape[0])[:, None], at[:, None] + jnp.arange(fed.shape[1])[None]
    return states.at[rows, places].set(fed, mode="drop")


_states = jax.jit(lambda states, index: _pick(states, index))


def _embed(embedding, tokens):
    return jnp.where(tokens[..., None] >= 0, embedding(jnp.maximum(tokens, 0)), 0)


def _pick(states, index):
    """States by their index in each row; zeros for -1."""
    taken = jax.vmap(lambda row, at: row[at])(states, jnp.maximum(index, 0))
    return jnp.where(index[..., None] >= 0, taken, 0)


class Qwen25SpeechStream(SpeechStream[Qwen25OmniParts]):
    """The speech of a talker that reads the thinker's states; ``speakers`` are those of the rows."""

    chunks = (CODES_PER_CALL,)

    def __init__(self, *given, speakers: Sequence[Speaker], streamed: bool):
        self.speakers = list(speakers)
        super().__init__(*given, streamed=streamed)
        batch = len(self.rows)
        speakers = [*speakers, *[speakers[0]] * (batch - len(speakers))]
        draws = [noise_seed(seed) for seed in self.seeds]
        # When not streamed, all rows are decoded together after the last has ended.
        self.codes: list[list[np.ndarray]] = [[] for _ in range(batch)]
        self.dit, self.bigvgan = loaded(self.parts.dit), loaded(self.parts.bigvgan)
        self.flow = token2wav.FlowStream(self.dit, self.bigvgan, speakers, draws) if streamed else None

    def add_hidden_states(self, made: StepOutput) -> None:
        if made.hidden_states is None:
            return
        needed = int((self.fed + made.hidden_states.shape[1]).max())
        if needed > self.read.shape[1]:
            self.read = jnp.pad(self.read, [(0, 0), (0, bucket(needed) - self.read.shape[1]), (0, 0)])
        self.read = _put(self.read, made.hidden_states, self.fed.astype(np.int32))
        self.fed = self.fed + made.counts

    def _prefill(self, prompt: SpeechPrompt, lengths: np.ndarray, states: Array | None, cache: Any) -> SpeechState:
        assert states is not None
        talker, config = self.talker, self.talker.config
        x = _prompt(talker, self.parts.thinker.embedding, prompt.tokens, prompt.codes, prompt.state_index, states)
        # States at the tokens of the replies, in the rows of the thinker's batch; the prompt has those of given replies.
        given = np.array([len(text_tokens) for text_tokens in prompt.text_tokens])
        index = np.arange(bucket(int(given.max())))
        self.fed = given
        self.read = _states(states, np.where(index < given[:, None], prompt.lengths[:, None] - 1 + index, -1))
        # The repetition penalty covers the prompt's marks from the start.
        said = (config.codec_mask, config.codec_pad, config.codec_bos)
        marked = bool((prompt.codes >= 0).any())
        return prefill(talker, x, prompt.positions, lengths, cache, bos=config.codec_bos if marked else -1, said=said)

    def _known(self, row: int) -> int:
        # The last token of a reply that was cut by its length was never fed, so it has no state: as in the reference.
        return bisect_left(self.places[row], int(self.fed[row]))

    def _read(self, tokens: Int[np.ndarray, "B n"], numbers: Int[np.ndarray, "B n"]) -> Float[Array, "B n D"]:
        index = np.full(numbers.shape, -1, np.int32)
        for number, row in enumerate(self.rows):
            places = np.asarray(self.places[row][: self._known(row)] if row >= 0 else [], np.int32)
            known = numbers[number] < len(places)
            index[number, known] = places[numbers[number, known]]
        rows = jnp.asarray(np.maximum(self.rows, 0))
        return _embed_reply(self.talker, self.parts.thinker.embedding, tokens, self.read[rows], index)

    def _decode_audio(
        self, state: SpeechState, codes: Int[Array, "B Q n"], frames: int
    ) -> tuple[np.ndarray, np.ndarray, list[AudioChunk]]:
        counts, finished, made = to_host((state.count, state.finished, codes))
        new = [
            made[number, :, : after - before]
            for number, (before, after) in enumerate(zip(self.counts, counts, strict=True))
        ]
        live = np.flatnonzero(self.live)
        if self.flow is not None:
            sound = self.flow.add_codes(made[:, 0], self.counts, counts, finished)
            return counts, finished, [AudioChunk(int(self.rows[n]), new[n], sound[n]) for n in live]
        for number in live:
            self.codes[self.rows[number]].append(new[number])
        return counts, finished, self._whole() if not (self.live & ~finished).any() else []

    def _whole(self) -> list[AudioChunk]:
        """The sound of all rows at once."""
        rows = [row for row, codes in enumerate(self.codes) if sum(part.shape[1] for part in codes)]
        if not rows:
            return []
        codes = [np.concatenate(self.codes[row], axis=1) for row in rows]
        lengths = np.array([part.shape[1] for part in codes])
        padded = np.stack([np.pad(part[0], (0, lengths.max() - part.shape[1])) for part in codes])
        dit, bigvgan = self.dit, self.bigvgan
        speakers, seeds = [self.speakers[row] for row in rows], [noise_seed(self.seeds[row]) for row in rows]
        sound = token2wav.decode(dit, bigvgan, padded, lengths, speakers, seeds=seeds, noise=None)
        ends = lengths * dit.config.repeats * bigvgan.frame_samples
        return [
            AudioChunk(row, part, samples[:end])
            for row, part, samples, end in zip(rows, codes, sound, ends, strict=True)
        ]

    def _keep_rows(self, index: Int[np.ndarray, "b"]) -> None:
        super()._keep_rows(index)
        if self.flow is not None:
            self.flow.keep_rows(index)


class Qwen25Synthesizer(Synthesizer[Qwen25OmniConfig, Qwen25OmniParts]):
    """A synthesizer whose speakers have a mark, an embedding and mel frames each, from spk_dict.pt beside the weights."""

    first, frame_rate, system = "chelsie", 50.0, SPOKEN_SYSTEM

    @cached_property
    def speakers(self) -> Mapping[str, Speaker]:
        return read_speakers(self.folder, self.config) if self.config.talker else {}

    def with_reply(self, batch: Batch, text_tokens: Sequence[int]) -> Batch:
        return qwen2_5_omni.with_reply(batch, text_tokens)

    def speech(
        self,
        batch: Batch,
        speakers: Sequence[Speaker],
        seeds: tuple[int, ...],
        sampling: GenerationConfig,
        *,
        text_tokens: Sequence[int] | None = None,
        compat: str | None = None,
    ) -> SpeechRequest:
        check_compat(compat)
        marks = [each.bos_token for each in speakers] + [0] * (len(batch.tokens) - len(speakers))
        prompt = qwen2_5_omni.prepare(
            batch, marks, self.config, text_tokens=text_tokens or (), compat=compat is not None
        )
        flow = loaded(self.config.token2wav).dit
        longest = flow.context // flow.repeats
        if (sampling.talker.max_new_tokens or 0) > longest:
            raise ValueError(
                f"talker_max_new_tokens: expected at most {longest} codes, which the vocoder can hold, got "
                f"{sampling.talker.max_new_tokens}"
            )
        layers = self.config.thinker.decoder.layers
        make = partial(Qwen25SpeechStream, speakers=tuple(speakers))
        return SpeechRequest(
            prompt,
            seeds,
            sampling.talker,
            sampling.predictor,
            make,
            hidden_layer=layers,
            return_hidden_states=text_tokens is None,
        )

    def decode(
        self, codes: np.ndarray, lengths: Any, *, speaker: Any = None, seed: Any = None, noise: Any = None
    ) -> Float32[np.ndarray, "B W"]:
        parts = loaded(self.parts)
        dit, bigvgan = loaded(parts.dit), loaded(parts.bigvgan)
        ids, lengths = checked(codes, lengths, codebooks=1, codebook=dit.config.codes)
        speakers = self.select_speakers(speaker, len(ids))
        if noise is None:
            draws, start = [noise_seed(each) for each in _seeds(seed, len(ids))], None
        elif seed is not None:
            raise ValueError("decode_codes: expected either seed or noise for the flow to begin at, got both; give one")
        else:
            draws, start = None, _noise(noise, alone=codes.ndim == 2)
        return token2wav.decode(dit, bigvgan, ids[:, 0], lengths, speakers, seeds=draws, noise=start)


def noise_seed(seed: int) -> int:
    """The seed of the flow's noise, derived from the seed of a request."""
    return part_seed(seed, 3)


def _seeds(seed: Any, rows: int) -> list[int]:
    """The seed of each row, given as one for all or one a row."""
    given = np.asarray(0 if seed is None else seed, object)
    if given.shape not in ((), (rows,)) or not all(isinstance(each, Integral) for each in given.flat):
        raise ValueError(f"seed: expected one whole number, or one for each of {rows} rows, got {seed!r}")
    return [int(each) for each in np.broadcast_to(given, rows)]


def _noise(noise: Any, *, alone: bool) -> Float32[np.ndarray, "..."]:
    """Given noise as [B, T, Z], to be checked; it may be [T, Z] if the codes are ``alone``."""
    try:
        given = to_numpy(noise)
    except ValueError as error:  # a list of rows of unequal length
        raise ValueError(f"noise: expected an array of numbers, got {type(noise).__name__} ({error})") from None
    if not is_numeric(given):
        raise ValueError(f"noise: expected an array of numbers, got {given.dtype} of shape {list(given.shape)}")
    return np.asarray(given[None] if alone and given.ndim == 2 else given, np.float32)


SYNTHESIZER = Qwen25Synthesizer
