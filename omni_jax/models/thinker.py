"""The thinker: embeddings of text with media features at their placeholders, the decoder, logits."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jaxtyping import Array, Float, Int, Num

from omni_jax.config import ThinkerConfig
from omni_jax.models.decoder import Decoder, last_of
from omni_jax.nn.cache import KVCache
from omni_jax.nn.layers import Embedding, Init, Linear


@struct.dataclass
class Embedded:
    """A prompt as the decoder takes it.

    Attributes:
        x: embeddings, with media features at their placeholders.
        deepstack: features that are added to the outputs of the first layers at tokens of images and videos, zeros
            elsewhere; None for prompts without images and videos, which therefore have a program of their own.
    """

    x: Float[Array, "B T D"]
    deepstack: Float[Array, "taps B T D"] | None = None

    def insert_audio(self, features: Float[Array, "M D"], index: Int[Array, "B T"]) -> "Embedded":
        """Puts row ``index`` of the audio features at each token; -1 leaves a token as it is."""
        return replace(self, x=insert_rows(self.x, features, index))

    def insert_visual(
        self, features: Float[Array, "M D"], deepstack: Float[Array, "taps M D"], index: Int[Array, "B T"]
    ) -> "Embedded":
        """Puts row ``index`` of the images' and videos' features and deepstack features at each token; -1 leaves it."""
        below = self.deepstack
        if below is None:
            below = jnp.zeros((deepstack.shape[0], *self.x.shape), self.x.dtype)
        return Embedded(
            insert_rows(self.x, features, index), jax.vmap(insert_rows, (0, 0, None))(below, deepstack, index)
        )


class Thinker(nnx.Module):
    """The text decoder, a mixture of experts in Qwen3-Omni and dense in Qwen2.5-Omni (reference:
    Qwen3OmniMoeThinkerForConditionalGeneration, Qwen2_5OmniThinkerForConditionalGeneration)."""

    def __init__(self, init: Init, config: ThinkerConfig):
        self.embedding = Embedding(init, config.vocabulary, config.decoder.width)
        self.decoder = Decoder(init, config.decoder)
        self.head = Linear(init, (config.decoder.width,), (config.vocabulary,), axes=("embed", "vocab"))
        self.config = config

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return self.embedding(tokens)

    def prompt(self, tokens: Int[Array, "B T"], *, taps: int = 0) -> Embedded:
        """Embeddings of a prompt's tokens, and zeros for the deepstack features of ``taps`` layers (0 for none)."""
        x = self.embed(tokens)
        return Embedded(x, jnp.zeros((taps, *x.shape), x.dtype) if taps else None)

    def logits(
        self, embedded: Embedded, positions: Num[Array, "3 B T"], lengths: Int[Array, "B"]
    ) -> Float[Array, "B T V"]:
        """Logits of whole rows, without a cache. The first ``lengths`` tokens of a row are real."""
        valid = jnp.arange(embedded.x.shape[1])[None] < lengths[:, None]
        return self.head(self.decoder(embedded.x, positions, valid, deepstack=embedded.deepstack)[0])

    def prefill(
        self,
        embedded: Embedded,
        positions: Num[Array, "3 B T"],
        lengths: Int[Array, "B"],
        cache: KVCache,
        *,
        fresh: bool,
        hidden_layer: int | None = None,
    ) -> tuple[Float[Array, "B V"], KVCache, Float[Array, "B T D"] | None]:
        """Logits at each row's last real token, the cache with the tokens added, the states after ``hidden_layer`` layers."""
        x, cache, hidden = self.decoder.extend(
            embedded.x, positions, lengths, cache, fresh=fresh, deepstack=embedded.deepstack, hidden_layer=hidden_layer
        )
        return self.head(last_of(x, lengths)), cache, hidden

    def step(
        self, tokens: Int[Array, "B"], positions: Num[Array, "3 B"], live: Int[Array, "B"], cache: KVCache
    ) -> tuple[Float[Array, "B V"], Float[Array, "B D"], KVCache]:
        """Decodes one token a row: logits, final-normed states, the cache. Rows whose ``live`` is 0 do not change."""
        x, cache, _ = self.decoder.extend(self.embed(tokens[:, None]), positions[:, :, None], live, cache)
        return self.head(x[:, 0]), x[:, 0], cache

    def empty_cache(self, batch: int, slots: int) -> KVCache:
        return self.decoder.empty_cache(batch, slots, self.embedding.table.dtype)


def insert_rows(
    x: Float[Array, "B T D"], features: Float[Array, "M D"], index: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """Puts row ``index`` of the features at each token; -1 leaves the token's own embedding."""
    taken = jnp.take(features, index, axis=0, mode="clip").astype(x.dtype)
    return jnp.where(index[..., None] >= 0, taken, x)
