"""Attention kernels, each for one platform."""
