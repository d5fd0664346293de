"""Qwen3-Omni's talker prompt: the user's turns and the head of the assistant's last turn, as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from omni_jax.buckets import bucket
from omni_jax.config import Qwen3OmniConfig
from omni_jax.processing.batch import Batch
from omni_jax.processing.positions import Grid, batch_positions

# "<|im_start|>", "assistant" and a newline.
HEADER = 3


@dataclass(frozen=True)
class SpeechPrompt:
    """The talker's prompts, real slots first in each row. Each slot is a sum of embeddings, of a text and of a codec id.

    The last slot before speech, with the first token of the reply and codec_bos, is left out: it is the first step.

    Attributes:
        tokens: ids of the thinker's vocabulary, the text of a slot; -1 for none.
        state_index: position in the thinker's prompt of the hidden state that the slot reads as well as its text, or (where
            the talker reads states of media alone) instead of it; -1 for none.
        codes: codec ids; -1 for none.
        positions: rotary coordinates; those of the first step follow them.
        lengths: slots of each row, 0 for a row that is not spoken.
        text_tokens: tokens of the reply that are known already, one tuple a row.
    """

    tokens: Int[np.ndarray, "B U"]
    state_index: Int[np.ndarray, "B U"]
    codes: Int[np.ndarray, "B U"]
    positions: Float[np.ndarray, "3 B U"]
    lengths: Int[np.ndarray, "B"]
    text_tokens: tuple[tuple[int, ...], ...]

    @property
    def reads_states(self) -> bool:
        """Whether the thinker's hidden states are needed."""
        return bool((self.state_index >= 0).any())


def prepare(batch: Batch, speakers: Sequence[int], config: Qwen3OmniConfig) -> SpeechPrompt:
    """The talker's prompts for rows of the thinker's.

    The talker reads the user's turns, media at their own positions, and of the assistant's turns only the last, which
    must be open. System turns and earlier answers are left out, with their media.

    Args:
        batch: rows with their real tokens first (``justified``), and padding rows without any.
        speakers: the codec id of each row's speaker.
        config: token ids of the thinker and the talker.

    Raises:
        ValueError: a row does not end in an open turn of the assistant; one line says what to do.
    """
    talker = config.talker
    assert talker is not None  # callers check first that there is a talker
    specials = (talker.codec_nothink, talker.codec_think_bos, talker.codec_think_eos)
    rows, places, text_tokens, spoken = [], [], [], _user_turns(batch, config)
    for number, (tokens, length) in enumerate(zip(batch.tokens, batch.lengths, strict=True)):
        if not length:
            rows.append(np.zeros((3, 0), np.int32))
            places.append(np.zeros(0, np.int32))
            text_tokens.append(())
            continue
        own = tokens[:length]
        start = open_turn(own, config)
        if start is None:
            raise ValueError(
                f"{f'row {number}: ' * (len(batch.tokens) > 1)}to be spoken, a prompt must end in an open turn of the "
                f'assistant ("<|im_start|>assistant\\n", ids {config.im_start} {config.assistant} and a newline); end it '
                "so, or say return_audio=False"
            )
        users = np.flatnonzero(spoken[number])
        placeholders = (config.thinker.audio_token, config.thinker.image_token, config.thinker.video_token)
        if np.isin(own[start:], placeholders).any():
            raise ValueError(
                f"{f'row {number}: ' * (len(batch.tokens) > 1)}to be spoken, the assistant's open turn must be text, but it "
                "has an image, a video or a sound in it; put that into the user's turn, or say return_audio=False"
            )
        media = np.isin(own[users], placeholders)
        tail = [*own[start : start + HEADER], *[config.tts_pad] * 4, config.tts_bos]
        codes = [-1] * HEADER + [*specials, speakers[number], talker.codec_pad]
        text = np.concatenate([own[users], tail])
        state_index = np.concatenate([np.where(media, users, -1), np.full(len(tail), -1)])
        rows.append(np.stack([text, state_index, np.concatenate([np.full(len(users), -1), codes])]).astype(np.int32))
        # For the positions, everything behind the user's turns counts as text.
        places.append(np.concatenate([own[users], np.full(len(tail), config.tts_pad)]))
        text_tokens.append(tuple(own[start + HEADER :].tolist()))
    lengths = np.array([row.shape[1] for row in rows], np.int32)
    width = bucket(int(lengths.max()))
    stacked = np.stack([np.pad(row, [(0, 0), (0, width - row.shape[1])]) for row in rows], axis=1)
    mask = np.arange(width) < lengths[:, None]
    ids = np.zeros((len(rows), width), np.int32)
    ids[mask] = np.concatenate(places)
    images = _of_user(batch, [item.grid for item in batch.images], config.thinker.image_token, spoken, config)
    grids = _of_user(batch, [item.grid for item in batch.videos], config.thinker.video_token, spoken, config)
    videos = [(batch.videos[n].grid, batch.videos[n].seconds) for n in grids]
    positions = batch_positions(ids, mask, [batch.images[n].grid for n in images], videos, config.thinker)
    tokens, state_index, codes = stacked
    return SpeechPrompt(
        tokens, np.where(mask, state_index, -1), np.where(mask, codes, -1), positions, lengths, tuple(text_tokens)
    )


def open_turn(tokens: Int[np.ndarray, "T"], config: Qwen3OmniConfig) -> int | None:
    """Where the assistant's open turn begins at the end of a prompt; None if there is none: it cannot be spoken."""
    starts = np.flatnonzero(tokens == config.im_start)
    start = int(starts[-1]) if len(starts) else len(tokens)
    opened = len(tokens) >= start + HEADER and tokens[start + 1] == config.assistant
    return start if opened and config.im_end not in tokens[start:] else None


def _user_turns(batch: Batch, config: Qwen3OmniConfig) -> Bool[np.ndarray, "B T"]:
    """Which tokens stand in a turn of the user, its marks included."""
    starts = (batch.tokens == config.im_start) & batch.mask
    after = np.pad(batch.tokens[:, 1:], [(0, 0), (0, 1)], constant_values=-1)
    # The number of the last start at or before each token, 0 before the first.
    latest = np.maximum.accumulate(np.where(starts, np.arange(starts.shape[1]), -1), axis=1)
    of_user = np.take_along_axis(after == config.user, np.maximum(latest, 0), axis=1)
    return of_user & (latest >= 0) & batch.mask


def _of_user(
    batch: Batch, grids: Sequence[Grid], placeholder: int, spoken: Bool[np.ndarray, "B T"], config: Qwen3OmniConfig
) -> list[int]:
    """The numbers of the media that stand in turns of the user."""
    counts = [int(np.prod(grid)) // config.thinker.vision_encoder.merge**2 for grid in grids]
    inside = spoken[(batch.tokens == placeholder) & batch.mask]
    firsts = np.cumsum([0, *counts[:-1]])[: len(counts)]
    return [number for number, first in enumerate(firsts) if inside[first]]
