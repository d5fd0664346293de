"""Layers. They take numbers, never configs, and know no model by name."""
