"""Qwen3-Omni's speech: the talker generates one code of a frame and the code predictor the others; a causal vocoder
turns a frame into final samples at once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from omni_jax.config import Qwen3OmniConfig
from omni_jax.decoding.defaults import GenerationConfig
from omni_jax.decoding.frames import FRAMES_PER_CALL, SpeechState, prefill, take_rows
from omni_jax.decoding.text import StepOutput
from omni_jax.models.parts import loaded
from omni_jax.models.qwen3_omni import Qwen3OmniParts
from omni_jax.models.qwen3_omni.code2wav import BATCH_FRAMES, Code2WavState, axes
from omni_jax.parallel.multihost import to_host
from omni_jax.parallel.sharding import zeros
from omni_jax.processing.batch import Batch
from omni_jax.processing.talker_prompt import qwen3_omni
from omni_jax.processing.talker_prompt.qwen3_omni import SpeechPrompt
from omni_jax.speech.stream import AudioChunk, SpeechRequest, SpeechStream
from omni_jax.speech.synthesizer import Synthesizer, check_compat, checked

# New frames of a call. A stream begins with one frame, for an early first sound, and grows to stay ahead of playback.
# Each size is a program of the vocoder.
CHUNKS = (1, 2, 4, 8, 16, FRAMES_PER_CALL)

_take = jax.jit(lambda code2wav, state, index: code2wav.placed(take_rows(state, index)))
_embed_reply = jax.jit(lambda talker, embedding, tokens: talker.text(embedding(tokens)))
_start = jax.jit(lambda code2wav, batch: code2wav.start(batch), static_argnums=1)


@jax.jit
def _prompt(talker, embedding, tokens, codes, state_index, states):
    """Embeddings of the prompts' slots; ``states`` are the thinker's where the prompts have media, else None."""
    if states is None:
        return talker.prompt(embedding(tokens), codes)
    media = jax.vmap(lambda row, at: row[at])(states, state_index)  # what -1 selects is not used
    return talker.prompt(embedding(tokens), codes, media, state_index >= 0)


@partial(jax.jit, static_argnames=("frames",), donate_argnames=("state",))
def samples_of_codes(code2wav, state, codes, before, after, *, frames: int):
    """Samples of a call's frames, of which each row has ``after - before``."""
    return code2wav.step(state, codes[:, :, :frames], after - before)


def _first_state(code2wav: Any, batch: int) -> Code2WavState:
    """The vocoder's state before the first frame, with the layout of a call's result, so that calls share a program."""
    made, table = jax.eval_shape(_start, code2wav, batch), code2wav.embedding.table[...]
    return jax.tree.map(lambda leaf, names: zeros(leaf.shape, leaf.dtype, names, table), made, axes(made))


class Qwen3SpeechStream(SpeechStream[Qwen3OmniParts]):
    """The speech of a talker with a code predictor."""

    chunks = CHUNKS

    def add_hidden_states(self, made: StepOutput) -> None:
        """Does nothing: this talker reads the reply's tokens without the thinker's states."""

    def _prefill(self, prompt: SpeechPrompt, lengths: np.ndarray, states: Array | None, cache: Any) -> SpeechState:
        talker, self.code2wav = self.talker, loaded(self.parts.code2wav)
        self.vocoder_state = _first_state(self.code2wav, len(lengths))
        x = _prompt(
            talker, self.parts.thinker.embedding, prompt.tokens, prompt.codes, prompt.state_index,
            states if prompt.reads_states else None,
        )  # fmt: skip
        return prefill(talker, x, prompt.positions, lengths, cache, bos=talker.config.codec_bos)

    def _read(self, tokens: Int[np.ndarray, "B n"], numbers: Int[np.ndarray, "B n"]) -> Float[Array, "B n D"]:
        return _embed_reply(self.talker, self.parts.thinker.embedding, tokens)

    def _decode_audio(
        self, state: SpeechState, codes: Int[Array, "B Q n"], frames: int
    ) -> tuple[np.ndarray, np.ndarray, list[AudioChunk]]:
        code2wav, before = self.code2wav, self.counts
        self.vocoder_state, sound = samples_of_codes(
            code2wav, self.vocoder_state, codes, before.astype(np.int32), state.count, frames=frames
        )
        counts, finished, made, samples = to_host((state.count, state.finished, codes, sound))
        chunks = []
        for number in np.flatnonzero(self.live & (counts > before)):
            new = counts[number] - before[number]
            # A row's first samples lie before its beginning.
            settled = slice(0 if before[number] else code2wav.lag, new * code2wav.frame_samples)
            chunks.append(AudioChunk(int(self.rows[number]), made[number, :, :new], samples[number, settled]))
        return counts, finished, chunks

    def _most(self, tokens: int) -> int:
        # As in the reference, the token that ends speech counts among its tokens and makes no sound.
        return tokens - 1

    def _room(self, batch: int) -> int:
        return max(1, BATCH_FRAMES // batch)

    def _keep_rows(self, index: Int[np.ndarray, "b"]) -> None:
        super()._keep_rows(index)
        self.vocoder_state = _take(self.code2wav, self.vocoder_state, index)


class Qwen3Synthesizer(Synthesizer[Qwen3OmniConfig, Qwen3OmniParts]):
    """A synthesizer whose speakers are codec ids, from config.json."""

    first, frame_rate = "ethan", 12.5

    @cached_property
    def speakers(self) -> Mapping[str, int]:
        return dict(self.config.talker.speakers) if self.config.talker else {}

    def tokens(self, seconds: float) -> int:
        return super().tokens(seconds) + 1  # the token that ends speech counts too

    def speakable(self, batch: Batch) -> bool:
        # Bare tokens without any turns are answered in text alone.
        rows = zip(batch.tokens, batch.mask, strict=True)
        return any(qwen3_omni.open_turn(row[real], self.config) is not None for row, real in rows)

    def speech(
        self,
        batch: Batch,
        speakers: Sequence[int],
        seeds: tuple[int, ...],
        sampling: GenerationConfig,
        *,
        text_tokens: Sequence[int] | None = None,
        compat: str | None = None,
    ) -> SpeechRequest:
        check_compat(compat)
        prompt = qwen3_omni.prepare(batch, speakers, self.config)
        if text_tokens is not None:
            prompt = replace(prompt, text_tokens=(tuple(text_tokens),))
        hidden_layer = loaded(self.config.talker).accept_layer if prompt.reads_states else None
        return SpeechRequest(prompt, seeds, sampling.talker, sampling.predictor, Qwen3SpeechStream, hidden_layer)

    def decode(self, codes: np.ndarray, lengths: Any, **options: Any) -> Float32[np.ndarray, "B W"]:
        if given := [name for name, value in options.items() if value is not None]:
            raise ValueError(f"{', '.join(given)}: this family's vocoder needs codes alone; leave it out")
        code2wav = loaded(loaded(self.parts).code2wav)
        config = code2wav.config
        return decode(code2wav, *checked(codes, lengths, codebooks=config.codebooks, codebook=config.codebook))


def decode(code2wav: Any, codes: Int[np.ndarray, "B Q Y"], lengths: Int[np.ndarray, "B"]) -> Float[np.ndarray, "B W"]:
    """The waveforms of whole rows of any length; a row is zero beyond its own samples."""
    batch, _, frames = codes.shape
    rows = 1 << (batch - 1).bit_length()
    size = max(chunk for chunk in CHUNKS if chunk <= max(1, BATCH_FRAMES // rows))
    steps = -(-frames // size)
    padded = np.pad(codes, [(0, rows - batch), (0, 0), (0, steps * size - frames)]).astype(np.int32)
    ends = np.pad(lengths, (0, rows - batch))
    state, sound = _first_state(code2wav, rows), []
    for start in range(0, steps * size, size):
        before, after = np.minimum(ends, start).astype(np.int32), np.minimum(ends, start + size).astype(np.int32)
        state, samples = samples_of_codes(
            code2wav, state, padded[:, :, start : start + size], before, after, frames=size
        )
        sound.append(samples)
    joined = np.concatenate([np.zeros((rows, 0), np.float32), *to_host(sound)], axis=1)
    return joined[:batch, code2wav.lag :][:, : code2wav.samples(frames)]


SYNTHESIZER = Qwen3Synthesizer
