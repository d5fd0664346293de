"""The key-value cache: rows of slots, each row filled to its own length."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import AbstractMesh
from jaxtyping import Array, Float, Int

from omni_jax.sharding import constrain, zeros

AXES = ("batch", None, "kv_heads", None)


@struct.dataclass
class KVCache:
    """Rotated keys and values of every layer.

    Slots at or past a row's length hold nothing that may be read; a row is written at its own length, so rows of unequal
    prompts need no padding between prompt and answer.
    """

    k: Float[Array, "L B S K H"]
    v: Float[Array, "L B S K H"]
    length: Int[Array, "B"]

    @classmethod
    def empty(
        cls,
        *,
        layers: int,
        batch: int,
        slots: int,
        kv_heads: int,
        head_width: int,
        dtype,
        beside: jax.Array | None = None,
    ) -> "KVCache":
        """Args: ``beside`` is a weight on whose mesh it lies; None for the first device."""
        shape = (layers, batch, slots, kv_heads, head_width)
        return cls(
            k=zeros(shape, dtype, AXES, beside), v=zeros(shape, dtype, AXES, beside), length=jnp.zeros(batch, jnp.int32)
        )

    def on(self, mesh: AbstractMesh | None) -> "KVCache":
        """The same, said to lie as it does: left alone, the partitioner gathers a cache at every step of a loop."""
        return replace(self, k=constrain(self.k, AXES, mesh), v=constrain(self.v, AXES, mesh))

    @property
    def slots(self) -> int:
        return self.k.shape[2]

    def append(self, k: Float[Array, "L B T K H"], v: Float[Array, "L B T K H"], lengths: Int[Array, "B"]) -> "KVCache":
        """Writes T new entries at each row's length, of which the first ``lengths`` count.

        The caller keeps ``length + T <= slots`` for every row: what is written beyond the end is lost.
        """
        batch, new = k.shape[1:3]
        rows, slots = jnp.arange(batch)[:, None], self.length[:, None] + jnp.arange(new)

        def write(cache_LBSKH, new_LBTKH):
            # Not a dynamic update a row, under vmap: a CPU copies the whole cache for that, and a TPU moves the rows in front
            # of the layers and back.
            return cache_LBSKH.at[:, rows, slots].set(
                new_LBTKH.astype(cache_LBSKH.dtype), mode="drop", unique_indices=True
            )

        return KVCache(k=write(self.k, k), v=write(self.v, v), length=self.length + lengths)

    def rows(self, index: Int[Array, "b"]) -> "KVCache":
        """Some rows, in the order of ``index``."""
        return KVCache(k=self.k[:, index], v=self.v[:, index], length=self.length[index])

    def grow(self, slots: int) -> "KVCache":
        """The same entries with room for ``slots``."""
        padding = [(0, 0), (0, 0), (0, slots - self.slots), (0, 0), (0, 0)]
        return KVCache(k=jnp.pad(self.k, padding), v=jnp.pad(self.v, padding), length=self.length)
