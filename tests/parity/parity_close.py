"""One measure of agreement for all parity tests: the largest difference, relative to the largest value."""

import numpy as np

# The largest measured error is 2.2e-6, on stacks of two to four layers.
TOLERANCE = 1e-5


def assert_close(ours, theirs, tolerance=TOLERANCE):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert error <= tolerance, f"relative error {error:.2e}, allowed {tolerance:.0e}"
