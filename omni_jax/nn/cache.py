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
# Keys and values of all layers, in slots of a cache or new.
Entries = tuple[Float[Array, "L B K _ H"], ...]


@struct.dataclass
class KVCache:
    """Rotated keys and values of every layer.

    Slots at or past a row's length must not be read. A row is written at its own length, so rows of unequal prompts
    need no padding between prompt and answer. The slots are the last axis but one, the layout in which a product reads
    them: a TPU keeps this order in its loops, and a CPU need not transpose.
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
        like: jax.Array | None = None,
    ) -> "KVCache":
        """A cache without entries.

        Args:
            layers: number of layers.
            batch: number of rows.
            slots: slots of each row.
            kv_heads: number of key heads.
            head_width: width of a head.
            dtype: dtype of keys and values.
            like: a weight on whose mesh the cache is placed; None for the first device.
        """
        shape = (layers, batch, kv_heads, slots, head_width)
        return cls(
            k=zeros(shape, dtype, AXES, like), v=zeros(shape, dtype, AXES, like), length=jnp.zeros(batch, jnp.int32)
        )

    def on(self, mesh: AbstractMesh | None) -> "KVCache":
        """This cache with its sharding stated: else the partitioner gathers a cache at every step of a loop."""
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

        The caller ensures ``length + T <= slots`` for every row whose new entries will be read. Any other row keeps its
        older entries; whether those new entries that fit are written depends on the platform (a TPU writes none).
        """
        new = tuple(jnp.swapaxes(x, 2, 3).astype(self.k.dtype) for x in (k, v))
        forms = {"tpu": _write_row_by_row, "default": _write_at_once}
        write = partial(jax.lax.platform_dependent, **forms)
        if mesh is not None:  # each device writes its own rows and heads
            own, rows = spec(AXES, self.k.shape, mesh), spec(("batch",), self.length.shape, mesh)
            specs = {"in_specs": (own, own, rows), "out_specs": own}
            write = jax.shard_map(write, mesh=mesh, check_vma=False, **specs)
        k, v = write((self.k, self.v), new, self.length)
        return KVCache(k=k, v=v, length=self.length + lengths).on(mesh)

    def rows(self, index: Int[Array, "b"]) -> "KVCache":
        """The rows of ``index``, in its order."""
        return KVCache(k=self.k[:, index], v=self.v[:, index], length=self.length[index])

    def put(self, one: "KVCache", row: Int[Array, ""]) -> "KVCache":
        """This cache with one row replaced by the only row of another cache, which has at most as many slots."""
        start = (0, row, 0, 0, 0)
        return KVCache(
            k=jax.lax.dynamic_update_slice(self.k, one.k, start),
            v=jax.lax.dynamic_update_slice(self.v, one.v, start),
            length=jax.lax.dynamic_update_slice(self.length, one.length, (row,)),
        )

    def cut(self, slots: int) -> "KVCache":
        """This cache with its first ``slots`` only. No row may hold more."""
        return replace(self, k=self.k[:, :, :, :slots], v=self.v[:, :, :, :slots])

    def grow(self, slots: int) -> "KVCache":
        """This cache with room for ``slots`` entries a row."""
        padding = [(0, 0), (0, 0), (0, 0), (0, slots - self.slots), (0, 0)]
        return KVCache(k=jnp.pad(self.k, padding), v=jnp.pad(self.v, padding), length=self.length)


def _write_at_once(old: Entries, new: Entries, at: Int[Array, "B"]) -> Entries:
    """One scatter. A dynamic update of each row under vmap would copy the whole cache on a CPU."""
    _, batch, heads, count, _ = new[0].shape
    rows, heads = jnp.arange(batch)[:, None, None], jnp.arange(heads)[:, None]
    slots = at[:, None, None] + jnp.arange(count)[None, None]
    return tuple(
        cache_LBKSH.at[:, rows, heads, slots].set(new_LBKTH, mode="drop", unique_indices=True)
        for cache_LBKSH, new_LBKTH in zip(old, new, strict=True)
    )


def _write_row_by_row(old: Entries, new: Entries, at: Int[Array, "B"]) -> Entries:
    """A loop of updates in place. For a scatter, a TPU transposes the whole cache, rows before layers, and back."""

    def write(row, caches):
        made = []
        for cache_LBKSH, new_LBKTH in zip(caches, new, strict=True):
            value, start = jax.lax.dynamic_slice_in_dim(new_LBKTH, row, 1, axis=1), (0, row, 0, at[row], 0)
            # dynamic_update_slice would move an update that does not fit back to where it does.
            there = jax.lax.dynamic_slice(cache_LBKSH, start, value.shape)
            value = jnp.where(at[row] + value.shape[3] <= cache_LBKSH.shape[3], value, there)
            made.append(jax.lax.dynamic_update_slice(cache_LBKSH, value, start))
        return tuple(made)

    # If the compiler knew that the loop runs once, it would unroll it, and then want another layout of the whole cache.
    rows = jax.lax.optimization_barrier(jnp.int32(new[0].shape[1]))
    return jax.lax.fori_loop(0, rows, write, old)
