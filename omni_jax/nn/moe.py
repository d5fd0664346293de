"""Mixture of experts without capacity: every token reaches its experts, even when all choose the same one.

The weights of all layers stay one array, [L * E, ...], addressed by the layer's offset (docs/adr/0002). The matmul is
grouped by expert in the form that suits the platform. On a mesh each device holds some experts of every layer; tokens
are computed on every device or sent to those that hold their experts (``expert_parallel.py``, docs/adr/0009).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from omni_jax.nn import expert_parallel, grouped_matmul
from omni_jax.nn.grouped_matmul import Chosen, Kernels, Weights
from omni_jax.nn.layers import GatedMlp, Init, Linear
from omni_jax.parallel.sharding import mesh_axes, mesh_of


class Experts(nnx.Module):
    """SwiGLU experts of ``layers`` layers. Gate and up are one kernel, gate first."""

    def __init__(self, init: Init, *, layers: int, count: int, width: int, ffn_width: int):
        self.gate_up = init.normal(
            (layers, count, width, 2 * ffn_width), ("expert", "embed", "expert_ffn"), fan_in=width
        )
        self.down = init.normal((layers, count, ffn_width, width), ("expert", "expert_ffn", "embed"), fan_in=ffn_width)

    def kernels(self) -> Kernels:
        """The kernels of all layers, as ``mixture`` takes them."""
        return self.gate_up[...], self.down[...]


class Router(nnx.Module):
    """Chooses the experts of each token. Holds the shared expert where one exists."""

    def __init__(self, init: Init, *, width: int, count: int, per_token: int, normalize: bool, shared_ffn_width: int):
        self.router = Linear(init, (width,), (count,), axes=("embed", None))
        self.shared = GatedMlp(init, width, shared_ffn_width) if shared_ffn_width else None
        self.shared_gate = Linear(init, (width,), (1,), axes=("embed", None)) if shared_ffn_width else None
        self.count, self.per_token, self.normalize = count, per_token, normalize

    def choose(self, x: Float[Array, "T D"]) -> tuple[Chosen, Weights]:
        """Each token's experts and their weights.

        Softmax in float32 over all experts, then the largest, then (if ``normalize``) their share of the sum.
        """
        logits = self.router(x)
        weights, chosen = jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), self.per_token)
        if self.normalize:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        return chosen, weights.astype(logits.dtype)

    def __call__(
        self, x: Float[Array, "B T D"], valid: Bool[Array, "B T"], kernels: Kernels, layer: Int[Array, ""]
    ) -> Float[Array, "B T D"]:
        """The layer's feed-forward: chosen experts, and the shared expert where one exists.

        Args:
            x: activations.
            valid: marks real tokens; padding reaches no expert.
            kernels: those of ``Experts.kernels()``.
            layer: index of the layer.
        """
        flat = x.reshape(-1, x.shape[-1])
        chosen, weights = self.choose(flat)
        chosen = jnp.where(valid.reshape(-1, 1), chosen, self.count)
        y = mixture(flat, chosen, weights, kernels, layer)
        if self.shared is not None and self.shared_gate is not None:
            y = y + jax.nn.sigmoid(self.shared_gate(flat)) * self.shared(flat)
        return y.reshape(x.shape)


def mixture(
    x: Float[Array, "T D"], chosen: Chosen, weights: Weights, kernels: Kernels, layer: Int[Array, ""]
) -> Float[Array, "T D"]:
    """sum_r weights[t, r] * expert[layer, chosen[t, r]](x[t]); an id of E means no expert. Summed in float32."""
    mesh = mesh_of(kernels[0])
    axes = mesh_axes("expert", kernels[0].shape[1], mesh) if mesh is not None else ()
    if mesh is None or not axes:
        return grouped_matmul.mixture(x, chosen, weights, kernels, layer).astype(x.dtype)
    return expert_parallel.mixture(x, chosen, weights, kernels, layer, mesh=mesh, axes=axes).astype(x.dtype)
