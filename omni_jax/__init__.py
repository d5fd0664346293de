"""Qwen's omni models in JAX: they hear, see, read, write and speak, on TPUs, GPUs and CPUs.

The public list is Omni, Reply and Sampling. Second-level names for tools: omni_jax.weights, .checkpoint, .testing.
"""

from omni_jax.decoding.sampling import Sampling
from omni_jax.omni import Omni
from omni_jax.reply import Reply

__all__ = ["Omni", "Reply", "Sampling"]
__version__ = "0.1.0"
