"""The decoder block that thinker, talker, code predictor and code2wav share, and a stack of it.

They differ only in fields of DecoderConfig (q/k norm, biases, rope sections, mixture or dense, layer scale, window).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh
from jaxtyping import Array, Bool, Float, Int, Num

from omni_jax.config import DecoderConfig
from omni_jax.nn.cache import KVCache
from omni_jax.nn.causal_attention import CachedPast, attend_causal
from omni_jax.nn.grouped_matmul import Kernels
from omni_jax.nn.layers import GatedMlp, Init, Linear, RMSNorm, expand_to
from omni_jax.nn.moe import Experts, Router
from omni_jax.nn.rope import CosSin, rotate, rotation
from omni_jax.nn.stack import scan, stack
from omni_jax.parallel.sharding import constrain, mesh_axes, mesh_of

# Tokens of a row that go through the layers at once (chunked prefill). So the activations, above all those of each
# token's experts, do not grow with the prompt.
PREFILL_CHUNK = 4096

# A layer's rotated keys and values of new tokens.
NewEntries = tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]]


def last_of(x: Float[Array, "B T D"], lengths: Int[Array, "B"]) -> Float[Array, "B D"]:
    """The states at each row's last real token."""
    return jnp.take_along_axis(x, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]


class Attention(nnx.Module):
    """Grouped-query attention: projections, optional norms of queries and keys, rope."""

    def __init__(self, init: Init, config: DecoderConfig):
        d, n, k, h, bias = config.width, config.heads, config.kv_heads, config.head_width, config.bias
        self.q = Linear(init, (d,), (n, h), axes=("embed", "heads", "head"), bias=bias)
        self.k = Linear(init, (d,), (k, h), axes=("embed", "kv_heads", "head"), bias=bias)
        self.v = Linear(init, (d,), (k, h), axes=("embed", "kv_heads", "head"), bias=bias)
        self.o = Linear(init, (n, h), (d,), axes=("heads", "head", "embed"))
        self.q_norm = RMSNorm(init, h, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(init, h, eps=config.norm_eps) if config.qk_norm else None
        self.window = config.window

    def __call__(
        self, x: Float[Array, "B T D"], cos_sin: CosSin, past: CachedPast | None
    ) -> tuple[Float[Array, "B T D"], NewEntries]:
        """Attends to the new tokens and to the layer's cache.

        Args:
            x: states of the new tokens.
            cos_sin: rope's (cos, sin).
            past: the layer's cached (k, v, length), or None.

        Returns:
            The output, and the new rotated keys and values.
        """
        mesh = mesh_of(self.q.kernel[...])
        q_BTNH, k_BTKH, v_BTKH = self._spread((self.q(x), self.k(x), self.v(x)), mesh)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTNH, k_BTKH = self.q_norm(q_BTNH), self.k_norm(k_BTKH)
        q_BTNH, k_BTKH = rotate(q_BTNH, *cos_sin), rotate(k_BTKH, *cos_sin)
        out = attend_causal(q_BTNH, k_BTKH, v_BTKH, past, window=self.window, mesh=mesh)
        return self.o(self._spread((out,), mesh)[0]), (k_BTKH, v_BTKH)

    def _spread(self, arrays: Sequence[Array], mesh: AbstractMesh | None) -> list[Array]:
        """Shards heads over ``model`` where it divides the key heads, else replicates them, as the cache is.

        Without this constraint, the partitioner reshards the cache at every step.
        """
        if mesh is None:
            return list(arrays)
        heads = "heads" if mesh_axes("kv_heads", self.k.kernel.shape[-2], mesh) else None
        return [constrain(x, ("batch", None, heads, None), mesh) for x in arrays]


class Block(nnx.Module):
    """x += attention(norm(x)); x += ffn(norm(x)), each with an optional scale for each channel."""

    def __init__(self, init: Init, config: DecoderConfig):
        self.attention_norm = RMSNorm(init, config.width, eps=config.norm_eps)
        self.attention = Attention(init, config)
        self.ffn_norm = RMSNorm(init, config.width, eps=config.norm_eps)
        if config.experts:
            self.ffn = Router(
                init,
                width=config.width,
                count=config.experts.count,
                per_token=config.experts.per_token,
                normalize=config.experts.normalize,
                shared_ffn_width=config.experts.shared_ffn_width,
            )
        else:
            self.ffn = GatedMlp(init, config.width, config.ffn_width)
        self.attention_scale = init.full((config.width,), (None,), 1.0) if config.layer_scale else None
        self.ffn_scale = init.full((config.width,), (None,), 1.0) if config.layer_scale else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cos_sin: CosSin,
        past: CachedPast | None,
        valid: Bool[Array, "B T"],
        kernels: Kernels | None,
        layer: Int[Array, ""],
    ) -> tuple[Float[Array, "B T D"], NewEntries]:
        y, new = self.attention(self.attention_norm(x), cos_sin, past)
        x = x + (y if self.attention_scale is None else y * expand_to(self.attention_scale[...], y))
        y = self.ffn_norm(x)
        if isinstance(self.ffn, Router):
            assert kernels is not None
            y = self.ffn(y, valid, kernels, layer)
        else:
            y = self.ffn(y)
        return x + (y if self.ffn_scale is None else y * expand_to(self.ffn_scale[...], y)), new


class Decoder(nnx.Module):
    """A stack of blocks and the final norm. A whole pass, prefill and decode steps share one function."""

    def __init__(self, init: Init, config: DecoderConfig):
        self.layers = stack(init, config.layers, lambda init: Block(init, config))
        experts = config.experts
        self.experts = (
            Experts(init, layers=config.layers, count=experts.count, width=config.width, ffn_width=experts.ffn_width)
            if experts
            else None
        )
        self.norm = RMSNorm(init, config.width, eps=config.norm_eps)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Num[Array, "3 B T"],
        valid: Bool[Array, "B T"],
        cache: KVCache | None = None,
        deepstack: Float[Array, "taps B T D"] | None = None,
        hidden_layer: int | None = None,
    ) -> tuple[
        Float[Array, "B T D"], tuple[Float[Array, "L B T K H"], Float[Array, "L B T K H"]], Float[Array, "B T D"] | None
    ]:
        """Final-normed states, the keys and values of the new tokens, and the states after ``hidden_layer`` layers.

        Args:
            x: embeddings of T new tokens a row, real ones first.
            positions: rotary coordinates (time, height, width).
            valid: which tokens are real.
            cache: the rows' earlier keys and values; None for a whole pass.
            deepstack: features that are added to the outputs of the first layers, one array each; zero at tokens that
                are not of images or videos.
            hidden_layer: return the states after so many layers, before deepstack features are added there; ``layers`` for the
                final-normed ones, None for none.
        """
        config = self.config
        x = constrain(x, ("batch", None, None), mesh_of(self.norm.scale[...]))
        cos_sin = rotation(
            positions,
            head_width=config.head_width,
            theta=config.rope_theta,
            section=config.mrope_section,
            interleaved=config.mrope_interleaved,
            dtype=x.dtype,
        )
        kernels = self.experts.kernels() if self.experts is not None else None

        def body(carry, block, layer, *past):
            x, hidden = carry
            past = (*past, cache.length) if cache is not None else None
            x, new = block(x, cos_sin, past, valid, kernels, layer)
            if hidden_layer is not None:
                hidden = jnp.where(layer == hidden_layer - 1, x, hidden)
            if deepstack is not None:
                taps = deepstack.shape[0]
                x = x + jnp.where(layer < taps, deepstack[jnp.minimum(layer, taps - 1)], 0)
            return (x, hidden), new

        xs = () if cache is None else (cache.k, cache.v)
        (x, hidden), new = scan(body, (x, None if hidden_layer is None else x), self.layers, *xs)
        x = self.norm(x)
        return x, new, x if hidden_layer == config.layers else hidden

    def extend(
        self,
        x: Float[Array, "B T D"],
        positions: Num[Array, "3 B T"],
        lengths: Int[Array, "B"],
        cache: KVCache,
        *,
        fresh: bool = False,
        deepstack: Float[Array, "taps B T D"] | None = None,
        hidden_layer: int | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache, Float[Array, "B T D"] | None]:
        """Runs T new tokens a row, of which the first ``lengths`` count, and appends them to the cache.

        Args:
            x: embeddings of the new tokens.
            positions: rotary coordinates (time, height, width).
            lengths: real tokens of each row.
            cache: the rows' earlier keys and values.
            fresh: the cache is known to be empty, so its slots need not be read.
            deepstack: as in ``__call__``.
            hidden_layer: as in ``__call__``.
        """
        if x.shape[1] > PREFILL_CHUNK:
            return self._extend_in_chunks(x, positions, lengths, cache, deepstack, hidden_layer)
        valid, mesh = jnp.arange(x.shape[1])[None] < lengths[:, None], mesh_of(self.norm.scale[...])
        x, new, hidden = self(x, positions, valid, None if fresh else cache.on(mesh), deepstack, hidden_layer)
        return x, cache.append(*new, lengths, mesh), hidden

    def _extend_in_chunks(
        self,
        x: Float[Array, "B T D"],
        positions: Num[Array, "3 B T"],
        lengths: Int[Array, "B"],
        cache: KVCache,
        deepstack: Float[Array, "taps B T D"] | None,
        hidden_layer: int | None,
    ) -> tuple[Float[Array, "B T D"], KVCache, Float[Array, "B T D"] | None]:
        """``extend`` on one piece of each row at a time: memory does not grow with the prompt's length."""
        batch, new = x.shape[:2]
        count = -(-new // PREFILL_CHUNK)
        size = -(-new // count)
        if cache.slots < count * size:
            raise ValueError(f"cache: expected at least {count * size} slots for {new} tokens, got {cache.slots}")

        def cut(array, axis):
            padding = [(0, 0)] * array.ndim
            padding[axis] = (0, count * size - new)
            pieces = jnp.pad(array, padding).reshape(*array.shape[:axis], count, size, *array.shape[axis + 1 :])
            return jnp.moveaxis(pieces, axis, 0)

        def joined(pieces):
            return jnp.moveaxis(pieces, 0, 1).reshape(batch, count * size, -1)[:, :new]

        def extend(cache, piece):
            number, x, positions, deepstack = piece
            own = jnp.clip(lengths - number * size, 0, size)
            x, cache, hidden = self.extend(x, positions, own, cache, deepstack=deepstack, hidden_layer=hidden_layer)
            return cache, (x, hidden)

        taps = None if deepstack is None else cut(deepstack, 2)
        pieces = (jnp.arange(count), cut(x, 1), cut(positions, 2), taps)
        cache, (x, hidden) = jax.lax.scan(extend, cache, pieces)
        return joined(x), cache, None if hidden is None else joined(hidden)

    def empty_cache(self, batch: int, slots: int, dtype: Any) -> KVCache:
        """A cache for rows of up to ``slots`` tokens."""
        config = self.config
        return KVCache.empty(
            layers=config.layers,
            batch=batch,
            slots=slots,
            kv_heads=config.kv_heads,
            head_width=config.head_width,
            dtype=dtype,
            like=self.norm.scale[...],
        )
