"""The shell: ``omni-jax`` and its commands."""
