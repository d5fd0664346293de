"""What the talkers of both families share: a decoder over embeddings, whose head gives the logits of codec ids."""

from flax import nnx
from jaxtyping import Array, Float, Int, Num

from omni_jax.models.decoder import Decoder, last_of
from omni_jax.nn.cache import KVCache
from omni_jax.nn.layers import Linear


class TalkerDecoder(nnx.Module):
    """The base of a talker, which makes ``decoder`` and ``head``."""

    decoder: Decoder
    head: Linear

    def entered(self, x: Float[Array, "B T E"]) -> Float[Array, "B T D"]:
        """The decoder's input."""
        return x

    def logits(self, last: Float[Array, "B D"]) -> Float[Array, "B V"]:
        return self.head(last)

    def extend(
        self,
        x: Float[Array, "B T E"],
        positions: Num[Array, "3 B T"],
        lengths: Int[Array, "B"],
        cache: KVCache,
        *,
        fresh: bool = False,
    ) -> tuple[Float[Array, "B V"], Float[Array, "B D"], KVCache]:
        """Runs a prompt, or one embedding a row: logits and final-normed state at each row's last real position.

        Args:
            x: embeddings.
            positions: rotary coordinates (time, height, width).
            lengths: real positions of each row; 0 leaves a row as it is.
            cache: the rows' earlier keys and values.
            fresh: the cache is empty.
        """
        x, cache, _ = self.decoder.extend(self.entered(x), positions, lengths, cache, fresh=fresh)
        last = last_of(x, lengths)
        return self.logits(last), last, cache
