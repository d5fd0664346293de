"""Kernels of attention for one platform each."""
