"""Devices: their meshes, slices and hosts, and how arrays lie on them. It knows axes, and no parts of a model."""
