"""Qwen's omni models in JAX: they hear, see, read, write and speak, on TPUs, GPUs and CPUs.

The public list is Omni, Reply and Sampling. Second-level names for tools: omni_jax.weights, .checkpoint, .testing.
"""

from omni_jax.decoding.sampling import Sampling
from omni_jax.engine.reply import Reply
from omni_jax.omni import Omni

__all__ = ["Omni", "Reply", "Sampling"]
__version__ = "0.1.0"
