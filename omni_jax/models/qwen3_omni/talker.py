"""The talker, which writes the first codec id of each frame of speech, and the code predictor, which writes the others.

Both take embeddings and give logits, teacher-forced or step by step. Prompts, speakers and sampling are decided
elsewhere.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from omni_jax.config import TalkerConfig
from omni_jax.models.decoder import Decoder
from omni_jax.models.talker import TalkerDecoder
from omni_jax.nn.cache import KVCache
from omni_jax.nn.layers import Embedding, Init, Linear
from omni_jax.nn.stack import scan, stack, unstack

# So many ids at the end of the codec vocabulary are no codes; only some of them have a meaning.
SPECIALS = 1024


class Projection(nnx.Module):
    """down(silu(up x)) with biases, from the thinker's width to the talker's."""

    def __init__(self, init: Init, config: TalkerConfig):
        hidden = config.projection_width
        self.up = Linear(init, (config.thinker_width,), (hidden,), axes=("embed", "ffn"), bias=True)
        self.down = Linear(init, (hidden,), (config.decoder.width,), axes=("ffn", "embed"), bias=True)

    def __call__(self, x: Float[Array, "... E"]) -> Float[Array, "... D"]:
        return self.down(jax.nn.silu(self.up(x)))


class Talker(TalkerDecoder):
    """Mixture-of-experts decoder over codec ids (arXiv:2509.17765).

    Attributes:
        text_projection: projects the thinker's embeddings of text.
        hidden_projection: projects the thinker's states at media.
    """

    def __init__(self, init: Init, config: TalkerConfig):
        self.embedding = Embedding(init, config.vocabulary, config.decoder.width)
        self.text_projection = Projection(init, config)
        self.hidden_projection = Projection(init, config)
        self.decoder = Decoder(init, config.decoder)
        self.head = Linear(init, (config.decoder.width,), (config.vocabulary,), axes=("embed", "vocab"))
        self.config = config

    @property
    def codes(self) -> Bool[np.ndarray, "V"]:
        """True for codec ids that are sound. Of the others, only those that end speech may be sampled."""
        return np.arange(self.config.vocabulary) < self.config.vocabulary - SPECIALS

    def text(self, embedded: Float[Array, "*rows E"]) -> Float[Array, "*rows D"]:
        """The talker's input for text, from the thinker's embeddings of it."""
        return self.text_projection(embedded)

    def prompt(
        self,
        embedded: Float[Array, "B U E"],
        codes: Int[Array, "B U"],
        media: Float[Array, "B U E"] | None = None,
        heard: Bool[Array, "B U"] | None = None,
    ) -> Float[Array, "B U D"]:
        """The talker's input for a prompt: projected text, or projected states at media, plus embeddings of codes.

        Args:
            embedded: the thinker's embeddings of the text.
            codes: codec ids, -1 for none.
            media: states of the thinker; None for a prompt of text alone.
            heard: where ``media`` replaces ``embedded``.
        """
        x = self.text_projection(embedded)
        if media is not None and heard is not None:
            x = jnp.where(heard[..., None], self.hidden_projection(media), x)
        return x + jnp.where(codes[..., None] >= 0, self.embedding(jnp.maximum(codes, 0)), 0)

    def empty_cache(self, batch: int, slots: int) -> KVCache:
        return self.decoder.empty_cache(batch, slots, self.embedding.table.dtype)


class CodePredictor(nnx.Module):
    """Dense decoder of the residual codebooks. Each codebook but the first has a table and a head."""

    def __init__(self, init: Init, config: TalkerConfig):
        width, residual = config.predictor.width, config.codebooks - 1
        self.embeddings = stack(init, residual, lambda init: Embedding(init, config.codebook, width))
        self.decoder = Decoder(init, config.predictor)
        self.heads = stack(
            init, residual, lambda init: Linear(init, (width,), (config.codebook,), axes=("embed", "vocab"))
        )
        self.config = config

    def unstack(self) -> "CodePredictor":
        """The same predictor with unstacked layers, for a loop over frames (see ``nn.stack.unstack``)."""
        made = jax.tree.map(lambda leaf: leaf, self)
        made.decoder.layers = unstack(self.decoder.layers)
        return made

    def residual(
        self,
        state: Float[Array, "B D"],
        first: Float[Array, "B D"],
        choose: Callable[[Float[Array, "B V"], Int[Array, ""]], Int[Array, "B"]],
    ) -> tuple[Int[Array, "B {self.config.codebooks}-1"], Float[Array, "B D"]]:
        """The frame's other codes and the sum of their embeddings, for the talker's next input.

        Args:
            state: the talker's final-normed state.
            first: the talker's embedding of the frame's first code.
            choose: samples a code for each row, from the logits and the codebook's number in the frame (1, 2, ...).
        """
        batch, residual = state.shape[0], self.config.codebooks - 1
        cache = self.decoder.empty_cache(batch, residual + 1, first.dtype)

        def run(x, at, cache):
            positions = jnp.broadcast_to((at + jnp.arange(x.shape[1])).astype(jnp.float32), (3, batch, x.shape[1]))
            x, new, _ = self.decoder(x, positions, jnp.ones(x.shape[:2], bool), cache)
            # All rows have the same length, so one update in place writes them all.
            write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=at, axis=3)
            k, v = (jnp.swapaxes(x, 2, 3) for x in new)
            return x[:, -1], KVCache(k=write(cache.k, k), v=write(cache.v, v), length=cache.length + x.shape[1])

        last, cache = run(jnp.stack([state, first], axis=1), 0, cache)

        def frame(carry, layer, index):
            last, cache, total = carry
            embedding, head = layer
            code = choose(head(last), index + 1)
            x = embedding(code)
            # The last code is not fed back: only its embedding is needed.
            last, cache = jax.lax.cond(
                index < residual - 1, lambda: run(x[:, None], index + 2, cache), lambda: (last, cache)
            )
            return (last, cache, total + x), code

        start = (last, cache, jnp.zeros_like(first))
        (_, _, total), codes = scan(frame, start, (self.embeddings, self.heads))
        return jnp.swapaxes(codes, 0, 1), total
