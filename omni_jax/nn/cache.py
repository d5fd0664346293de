"""The key-value cache: rows of slots, each row filled to its own length."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import AbstractMesh
from jaxtyping import Array, Float, Int

from omni_jax.parallel.sharding import constrain, spec, zeros

AXES = ("batch", "kv_heads", None, None)


@struct.dataclass
class KVCache:
    """Rotated keys and values of every layer.

    Slots at or past a row's length hold nothing that may be read; a row is written at its own length, so rows of unequal
    prompts need no padding between prompt and answer. Slots lie next to the last, as a product reads them: a TPU keeps this
    order in its loops, and a CPU has nothing to transpose.
    """

    k: Float[Array, "L B K S H"]
    v: Float[Array, "L B K S H"]
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
        shape = (layers, batch, kv_heads, slots, head_width)
        return cls(
            k=zeros(shape, dtype, AXES, beside), v=zeros(shape, dtype, AXES, beside), length=jnp.zeros(batch, jnp.int32)
        )

    def on(self, mesh: AbstractMesh | None) -> "KVCache":
        """The same, said to lie as it does: left alone, the partitioner gathers a cache at every step of a loop."""
        return replace(self, k=constrain(self.k, AXES, mesh), v=constrain(self.v, AXES, mesh))

    @property
    def slots(self) -> int:
        return self.k.shape[3]

    def append(
        self,
        k: Float[Array, "L B T K H"],
        v: Float[Array, "L B T K H"],
        lengths: Int[Array, "B"],
        mesh: AbstractMesh | None = None,
    ) -> "KVCache":
        """Writes T new entries at each row's length, of which the first ``lengths`` count.

        The caller keeps ``length + T <= slots`` for every row whose new entries are to be read. Of another row the older
        entries stay, and the new ones that would fit are written or not, as the platform has it (not on a TPU).
        """
        new = tuple(jnp.swapaxes(x, 2, 3).astype(self.k.dtype) for x in (k, v))
        forms = {"tpu": _write_row_by_row, "default": _write_at_once}
        write = partial(jax.lax.platform_dependent, **forms)
        if mesh is not None:  # each device its own rows and heads
            own, rows = spec(AXES, self.k.shape, mesh), spec(("batch",), self.length.shape, mesh)
            specs = {"in_specs": (own, own, rows), "out_specs": own}
            write = jax.shard_map(write, mesh=mesh, check_vma=False, **specs)
        k, v = write((self.k, self.v), new, self.length)
        return KVCache(k=k, v=v, length=self.length + lengths).on(mesh)

    def rows(self, index: Int[Array, "b"]) -> "KVCache":
        """Some rows, in the order of ``index``."""
        return KVCache(k=self.k[:, index], v=self.v[:, index], length=self.length[index])

    def put(self, one: "KVCache", row: Int[Array, ""]) -> "KVCache":
        """The same with the only row of another cache, of as many slots or fewer, in place of a row."""
        start = (0, row, 0, 0, 0)
        return KVCache(
            k=jax.lax.dynamic_update_slice(self.k, one.k, start),
            v=jax.lax.dynamic_update_slice(self.v, one.v, start),
            length=jax.lax.dynamic_update_slice(self.length, one.length, (row,)),
        )

    def cut(self, slots: int) -> "KVCache":
        """The first ``slots``; no row holds more."""
        return replace(self, k=self.k[:, :, :, :slots], v=self.v[:, :, :, :slots])

    def grow(self, slots: int) -> "KVCache":
        """The same entries with room for ``slots``."""
        padding = [(0, 0), (0, 0), (0, 0), (0, slots - self.slots), (0, 0)]
        return KVCache(k=jnp.pad(self.k, padding), v=jnp.pad(self.v, padding), length=self.length)


def _write_at_once(old, new, at):
    """One scatter. Not a dynamic update a row, under vmap: a CPU copies the whole cache for that."""
    _, batch, heads, count, _ = new[0].shape
    rows, heads = jnp.arange(batch)[:, None, None], jnp.arange(heads)[:, None]
    slots = at[:, None, None] + jnp.arange(count)
    return tuple(
        cache_LBKSH.at[:, rows, heads, slots].set(new_LBKTH, mode="drop", unique_indices=True)
        for cache_LBKSH, new_LBKTH in zip(old, new, strict=True)
    )


def _write_row_by_row(old, new, at):
    """A loop of updates in place: for a scatter, a TPU moves the rows in front of the layers, and the whole cache back."""

    def write(row, caches):
        made = []
        for cache_LBKSH, new_LBKTH in zip(caches, new, strict=True):
            value, start = jax.lax.dynamic_slice_in_dim(new_LBKTH, row, 1, axis=1), (0, row, 0, at[row], 0)
            # An update that does not fit would be moved back to where it does.
            there = jax.lax.dynamic_slice(cache_LBKSH, start, value.shape)
            value = jnp.where(at[row] + value.shape[3] <= cache_LBKSH.shape[3], value, there)
            made.append(jax.lax.dynamic_update_slice(cache_LBKSH, value, start))
        return tuple(made)

    # A loop that the compiler knows to run once, it takes apart, and then wants the whole cache in another order.
    rows = jax.lax.optimization_barrier(jnp.int32(new[0].shape[1]))
    return jax.lax.fori_loop(0, rows, write, old)
