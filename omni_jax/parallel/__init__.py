"""Devices: meshes, slices and hosts, and how arrays are sharded on them. It knows axes, but no parts of a model."""
