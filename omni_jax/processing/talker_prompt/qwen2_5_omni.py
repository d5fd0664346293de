"""Qwen2.5-Omni's talker prompt: the thinker's whole prompt with its hidden states, then a mark of the voice."""

from collections.abc import Sequence

import numpy as np

from omni_jax.buckets import bucket
from omni_jax.config import OmniConfig, Qwen25TalkerConfig
from omni_jax.processing.batch import Batch
from omni_jax.processing.positions import next_position
from omni_jax.processing.talker_prompt.qwen3_omni import SpeechPrompt


def prepare(
    batch: Batch, marks: Sequence[int], config: OmniConfig, *, text_tokens: Sequence[int] = (), compat: bool = False
) -> SpeechPrompt:
    """The talker's prompts: each token of the thinker's with its hidden state, then the voice's mark.

    A medium's placeholder has no text, only its state. The codec's marks (pad and bos) join the last slot and the first
    decoding step, which also has the first token of the reply.

    Args:
        batch: rows with their real tokens first and their positions, and padding rows without any.
        marks: the mark of each row's speaker, an id in the thinker's vocabulary.
        config: of the whole model.
        text_tokens: tokens of the reply, which stand at the end of the only row.
        compat: no codec marks, and the positions of plain text whatever the prompt holds. Transformers 5.23 speaks like
            this where no row is padded, because it loses the attention mask and, with it, what depends on one.
    """
    talker = config.talker
    assert isinstance(talker, Qwen25TalkerConfig)
    assert batch.positions is not None
    own = batch.lengths - len(text_tokens) * (batch.lengths > 0)
    rows, width = len(own), bucket(int(own.max()) + 1)
    tokens, state_index, codes = (np.full((rows, width), -1, np.int32) for _ in range(3))
    positions = np.zeros((3, rows, width), np.float32)
    media = (config.thinker.audio_token, config.thinker.image_token, config.thinker.video_token)
    for row, length in enumerate(own):
        if not length:
            continue
        text = batch.tokens[row, :length]
        tokens[row, :length] = np.where(np.isin(text, media), -1, text)
        tokens[row, length] = marks[row]
        state_index[row, :length] = np.arange(length)
        codes[row, length] = -1 if compat else talker.codec_pad
        where = batch.positions[:, row, :length]
        positions[:, row, :length] = np.arange(length) if compat else where
        positions[:, row, length] = length if compat else next_position(where)
    lengths = np.where(own > 0, own + 1, 0).astype(np.int32)
    said = [tuple(text_tokens) if row == 0 else () for row in range(rows)]
    return SpeechPrompt(tokens, state_index, codes, positions, lengths, tuple(said))


def with_reply(batch: Batch, text_tokens: Sequence[int]) -> Batch:
    """A batch of one row with its reply's tokens behind the prompt."""
    tokens = np.concatenate([batch.tokens[0][batch.mask[0]], np.asarray(text_tokens, np.int32)])
    return Batch.from_tokens(tokens, None, batch.mel, batch.images, batch.videos)
