"""Matrix products grouped by expert, out of the stack of all layers' kernels, in the form that suits the platform.

On a TPU ``ragged_dot`` is one grouped kernel; elsewhere it multiplies every row with every expert. A CPU loops over
tiles of rows of one expert, and so reads each needed kernel once, with a plain dot. On a GPU each iteration of such a
loop waits for the host, so the few rows of a step use no loop: each is multiplied with its own expert's kernel, or all
rows with all experts once there are more rows than experts.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Rows of the largest tile: enough to reach a CPU core's peak matrix rate.
TILE = 256
# Bytes of a kernel that a CPU multiplies at once. XLA copies a product's operand out of the stack of experts; a piece
# of this size stays in the L2 cache, so that a kernel crosses main memory once and not three times.
PIECE = 1 << 20
# Tokens up to which a GPU multiplies all tokens with all experts of a layer: up to about here it is bound by reading
# the kernels.
STEP = 256

# Gate and up (F2 = 2 F, gate first), and down: the experts of all layers.
Kernels = tuple[Float[Array, "L E D F2"], Float[Array, "L E F D"]]
# The experts of each token, and their weights.
Chosen = Int[Array, "T R"]
Weights = Float[Array, "T R"]


def mixture(
    x: Float[Array, "T D"], chosen: Chosen, weights: Weights, kernels: Kernels, layer: Int[Array, ""]
) -> Float[Array, "T D"]:
    """sum_r weights[t, r] * expert[layer, chosen[t, r]](x[t]), in float32; an id of E means no expert."""
    # Merging layers and experts into one leading axis is a view.
    count = kernels[0].shape[1]
    flat = (kernel.reshape(-1, *kernel.shape[2:]) for kernel in kernels)
    return _grouped(x, chosen, weights, *flat, layer * count, count)


def group(chosen: Int[Array, "T R"], count: int) -> tuple[Int[Array, "T*R"], Int[Array, "{count}"]]:
    """Slots (t * R + r) sorted by expert, and the number of slots of each expert."""
    flat = chosen.reshape(-1)
    return jnp.argsort(flat, stable=True), jnp.bincount(flat, length=count)


def combine(
    y: Float[Array, "slots D"],
    order: Int[Array, "slots"],
    chosen: Int[Array, "T R"],
    weights: Float[Array, "T R"],
    count: int,
) -> Float[Array, "T D"]:
    """Back from expert order to token order, weighted and summed over a token's experts, in float32."""
    return _weighted(y[jnp.argsort(order)], chosen, weights, count)


def _weighted(
    y: Float[Array, "slots D"], chosen: Int[Array, "T R"], weights: Float[Array, "T R"], count: int
) -> Float[Array, "T D"]:
    live = (chosen < count)[..., None]
    by_token = y.reshape(*chosen.shape, y.shape[-1])
    return jnp.sum(jnp.where(live, by_token * weights[..., None], 0), axis=1, dtype=jnp.float32)


def _activate(gate_up: Float[Array, "... F2"]) -> Float[Array, "... F"]:
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return jax.nn.silu(gate) * up


def _ragged(x, chosen, weights, gate_up, down, offset, *, count: int):
    order, sizes = group(chosen, count)
    groups = jax.lax.dynamic_update_slice(jnp.zeros(gate_up.shape[0], jnp.int32), sizes.astype(jnp.int32), (offset,))
    # Where the rows are no multiple of 8, the TPU's compiler lacks a kernel for some numbers of groups.
    rows = x[jnp.pad(order, (0, -len(order) % 8)) // chosen.shape[1]]
    y = jax.lax.ragged_dot(_activate(jax.lax.ragged_dot(rows, gate_up, groups)), down, groups)
    return combine(y[: len(order)], order, chosen, weights, count)


def _each(x, chosen, weights, gate_up, down, offset, *, count: int):
    """Each slot's row times its expert's kernel, as a product and a sum: one pass over the kernel, without a copy."""
    expert = offset + jnp.minimum(chosen.reshape(-1), count - 1)

    def product(rows, kernel):
        return jnp.sum(rows[..., None].astype(jnp.float32) * kernel[expert], axis=1).astype(rows.dtype)

    y = product(_activate(product(jnp.repeat(x, chosen.shape[1], axis=0), gate_up)), down)
    return _weighted(y, chosen, weights, count)


def _all(x, chosen, weights, gate_up, down, offset, *, count: int):
    """All tokens times all experts of the layer; only the chosen experts have a weight."""
    gate_up, down = (jax.lax.dynamic_slice_in_dim(kernel, offset, count) for kernel in (gate_up, down))
    y = jnp.einsum("ETF,EFD->ETD", _activate(jnp.einsum("TD,EDF->ETF", x, gate_up)), down)
    shares = jnp.sum(jax.nn.one_hot(chosen, count, dtype=weights.dtype) * weights[..., None], axis=1)
    return jnp.einsum("ETD,TE->TD", y, shares, preferred_element_type=jnp.float32)


def tile_sizes(slots: int, count: int, tokens: int) -> tuple[int, ...]:
    """Sizes of tiles in rows: four sizes an octave, from a quarter of an expert's mean load to twice the mean.

    So there is little padding, and the largest tile reaches the peak matrix rate. An expert gets at most one slot of
    each token.
    """
    least = min(TILE, 1 << max(0, (slots // (4 * count)).bit_length() - 1))
    ladder = sorted({(step << power) // 4 for power in range(9) for step in (4, 5, 6, 7)})
    top = next((size for size in ladder if size >= min(tokens, 8 * least, TILE)), TILE)
    return tuple(size for size in ladder if least <= size <= top)


def tile_at(i: Int[Array, ""], loads: Int[Array, "E"], sizes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """The i-th tile: its expert, its first slot among the expert's slots, and the index of its size in ``sizes``."""
    tiles = -(-loads // sizes[-1])
    ends = jnp.cumsum(tiles)
    expert = jnp.searchsorted(ends, i, side="right")
    first = (i - ends[expert] + tiles[expert]) * sizes[-1]
    return expert, first, jnp.searchsorted(jnp.asarray(sizes[:-1]), loads[expert] - first)


def pieces(kernel: Float[Array, "E D F"]) -> int:
    """How many equal pieces a kernel's contracted axis is cut into: the fewest of at most PIECE bytes each."""
    rows, columns = kernel.shape[1:]
    least = max(1, -(-rows * columns * kernel.dtype.itemsize // PIECE))
    return next((count for count in range(least, rows + 1) if not rows % count), 1)


def _whole(rows: Float[Array, "T D"], kernel: Float[Array, "E D F"], expert: Int[Array, ""]) -> Float[Array, "T F"]:
    return rows @ jax.lax.dynamic_index_in_dim(kernel, expert, keepdims=False)


def _by_pieces(rows: Float[Array, "T D"], kernel: Float[Array, "E D F"], expert: Int[Array, ""]) -> Float[Array, "T F"]:
    """rows @ kernel[expert], one piece of the contracted axis at a time."""
    count = pieces(kernel)
    if count == 1:
        return _whole(rows, kernel, expert)
    size, columns = kernel.shape[1] // count, kernel.shape[2]

    def add(number, total):
        at = number * size
        piece = jax.lax.dynamic_slice(kernel, (expert, at, 0), (1, size, columns))[0]
        part = jax.lax.dynamic_slice_in_dim(rows, at, size, axis=1)
        return total + jnp.matmul(part, piece, preferred_element_type=jnp.float32)

    return jax.lax.fori_loop(0, count, add, jnp.zeros((len(rows), columns), jnp.float32)).astype(rows.dtype)


def _tiled(x, chosen, weights, gate_up, down, offset, *, count: int, product=_whole):
    slots, per_token = chosen.size, chosen.shape[1]
    sizes = tile_sizes(slots, count, x.shape[0])
    order, loads = group(chosen, count)
    starts = jnp.cumsum(loads) - loads
    padded_order = jnp.pad(order, (0, sizes[-1]))

    def multiply(size: int, expert, row):
        tokens = jax.lax.dynamic_slice(padded_order, (row,), (size,)) // per_token
        hidden = _activate(product(x[tokens], gate_up, offset + expert))
        out = product(hidden, down, offset + expert)
        return jnp.pad(out, [(0, sizes[-1] - size), (0, 0)])

    def tile(i, y):
        expert, first, which = tile_at(i, loads, sizes)
        row = starts[expert] + first
        out = jax.lax.switch(which, [partial(multiply, size) for size in sizes], expert, row)
        # Rows past the expert's last one are written too; the next expert's rows overwrite them. The update stays
        # outside of the branches, which would copy all of y.
        return jax.lax.dynamic_update_slice(y, out, (row, 0))

    tiles = jnp.sum(-(-loads // sizes[-1]))
    y = jax.lax.fori_loop(0, tiles, tile, jnp.zeros((slots + sizes[-1], x.shape[1]), x.dtype))
    return combine(y[:slots], order, chosen, weights, count)


def _by_platform(x, chosen, weights, gate_up, down, offset, count: int):
    on_gpu = _each if chosen.size <= count else _all if len(x) <= STEP else _tiled
    forms = {"tpu": _ragged, "cuda": on_gpu, "rocm": on_gpu, "default": partial(_tiled, product=_by_pieces)}
    forms = {platform: partial(form, count=count) for platform, form in forms.items()}
    return jax.lax.platform_dependent(x, chosen, weights, gate_up, down, offset, **forms)


def _forward(x, chosen, weights, gate_up, down, offset, count: int):
    return _by_platform(x, chosen, weights, gate_up, down, offset, count), (x, chosen, weights, gate_up, down, offset)


def _backward(count, saved, gradient):
    x, chosen, weights, gate_up, down, offset = saved

    def layer(x, weights, gate_up, down):
        own_gate_up = jax.lax.dynamic_slice_in_dim(gate_up, offset, count)
        own_down = jax.lax.dynamic_slice_in_dim(down, offset, count)
        return _ragged(x, chosen, weights, own_gate_up, own_down, jnp.zeros((), jnp.int32), count=count)

    dx, dweights, dgate_up, ddown = jax.vjp(layer, x, weights, gate_up, down)[1](gradient)
    return dx, None, dweights, dgate_up, ddown, None


_grouped = jax.custom_vjp(_by_platform, nondiff_argnums=(6,))
_grouped.defvjp(_forward, _backward)
