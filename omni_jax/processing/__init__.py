"""Host-side processing: media and conversations to arrays. NumPy only, never jax or torch."""
