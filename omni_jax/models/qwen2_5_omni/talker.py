"""The talker of Qwen2.5-Omni: it reads the thinker's words and states beside the codes that it writes, 50 a second."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num

from omni_jax.config import Qwen25TalkerConfig
from omni_jax.models.decoder import Decoder
from omni_jax.nn.cache import KVCache
from omni_jax.nn.layers import Embedding, Init, Linear


class Talker(nnx.Module):
    """Dense decoder over two tracks, a sum of text and codes (arXiv:2503.20215).

    Both tracks have the thinker's width and are projected to the decoder's together. What text is read, and with which
    sampling, is not decided here. Reference: Qwen2_5OmniTalkerForConditionalGeneration.
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
        """Codec ids that stand for sound; of the others, only those that end speech may be chosen."""
        return np.arange(self.config.vocabulary) < self.config.codes

    def embedding(self, codes: Int[Array, "..."]) -> Float[Array, "... E"]:
        """The track of codes; -1 for none."""
        return jnp.where(codes[..., None] >= 0, self.table(jnp.maximum(codes, 0)), 0)

    def text(self, embedded: Float[Array, "B T E"], states: Float[Array, "B T E"]) -> Float[Array, "B T E"]:
        """The track of text, from the thinker's embeddings and final-normed states; zeros where there is no embedding or no
        state (an embedding at a medium; a state at a mark that the thinker never read)."""
        return embedded + states

    def extend(
        self,
        x: Float[Array, "B T E"],
        positions: Num[Array, "3 B T"],
        lengths: Int[Array, "B"],
        cache: KVCache,
        *,
        fresh: bool = False,
    ) -> tuple[Float[Array, "B V"], Float[Array, "B D"], KVCache]:
        """Runs a prompt, or one sum of both tracks a row: float32 logits and final-normed state of each row's last real position.

        Args:
            lengths: how many of the T count; 0 leaves a row as it is.
            fresh: the cache is empty.
        """
        x, cache, _ = self.decoder.extend(self.projection(x), positions, lengths, cache, fresh=fresh)
        last = jnp.take_along_axis(x, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
        return self.head(last).astype(jnp.float32), last, cache

    def empty_cache(self, batch: int, slots: int) -> KVCache:
        return self.decoder.empty_cache(batch, slots, self.table.table.dtype)
