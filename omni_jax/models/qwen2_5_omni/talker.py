"""The talker of Qwen2.5-Omni: it reads the thinker's text and states, and writes 50 codes a second."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from omni_jax.config import Qwen25TalkerConfig
from omni_jax.models.decoder import Decoder
from omni_jax.models.talker import TalkerDecoder
from omni_jax.nn.cache import KVCache
from omni_jax.nn.layers import Embedding, Init, Linear


class Talker(TalkerDecoder):
    """Dense decoder over the sum of two tracks, text and codes (arXiv:2503.20215).

    Both tracks have the thinker's width; their sum is projected to the decoder's. Text and sampling are decided
    elsewhere. Reference: Qwen2_5OmniTalkerForConditionalGeneration.
    """

    def __init__(self, init: Init, config: Qwen25TalkerConfig):
        width = config.decoder.width
        self.table = Embedding(init, config.vocabulary, config.embedding_width)
        self.projection = Linear(init, (config.embedding_width,), (width,), axes=("embed", None), bias=True)
        self.decoder = Decoder(init, config.decoder)
        self.head = Linear(init, (width,), (config.vocabulary,), axes=("embed", "vocab"))
        self.config = config

    @property
    def codes(self) -> Bool[np.ndarray, "V"]:
        """True for codec ids that are sound. Of the others, only those that end speech may be sampled."""
        return np.arange(self.config.vocabulary) < self.config.codes

    def embedding(self, codes: Int[Array, "..."]) -> Float[Array, "... E"]:
        """The track of codes: embeddings of codec ids, zeros for -1."""
        return jnp.where(codes[..., None] >= 0, self.table(jnp.maximum(codes, 0)), 0)

    def text(self, embedded: Float[Array, "*rows E"], states: Float[Array, "*rows E"]) -> Float[Array, "*rows E"]:
        """The track of text: the thinker's embeddings plus its final-normed states.

        Both arguments are zero where they do not exist: embeddings at media, states at special tokens that the thinker
        never read.
        """
        return embedded + states

    def entered(self, x: Float[Array, "B T E"]) -> Float[Array, "B T D"]:
        """The decoder's input for the sum of both tracks."""
        return self.projection(x)

    def logits(self, last: Float[Array, "B D"]) -> Float[Array, "B V"]:
        """In float32, as in the reference."""
        return super().logits(last).astype(jnp.float32)

    def empty_cache(self, batch: int, slots: int) -> KVCache:
        return self.decoder.empty_cache(batch, slots, self.table.table.dtype)
