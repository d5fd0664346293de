"""Arrays of other libraries as NumPy arrays."""

from typing import Any

import numpy as np

from omni_jax.errors import shown

MOST = 1 << 28  # elements of a range that may become an array


class Finite(tuple):
    """Arrays, or media with arrays, that hold neither NaN nor infinities.

    What makes a ``Finite`` has scanned its arrays, or computed them from finite numbers; they are not scanned again.
    """


def to_numpy(value: Any) -> np.ndarray:
    """A NumPy array of anything array-like; a torch tensor may be on a device, in bfloat16 or require gradients."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    if isinstance(value, range) and len(value) > MOST:
        raise ValueError(f"expected an array, got {shown(value)} of {len(value):,} numbers")
    return np.asarray(value)


def is_numeric(array: np.ndarray) -> bool:
    """Whether an array holds integers or real numbers; NumPy does not count bfloat16 among its own types."""
    return array.dtype.kind in "fiu" or array.dtype.name == "bfloat16"
