"""Weights, compared leaf by leaf."""

import numpy as np

from omni_jax.models import parts


def same(left, right):
    left, right = parts.leaves(left), parts.leaves(right)
    assert left.keys() == right.keys()
    for path in left:
        assert left[path].dtype == right[path].dtype, path
        np.testing.assert_array_equal(np.asarray(left[path]), np.asarray(right[path]), err_msg=path)
