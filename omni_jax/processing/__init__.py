"""Host-side processing: media and conversations to arrays. NumPy only, never jax or torch."""

import os

# Of tokenizers alone, Transformers says at its import that torch is missing: here it is not needed.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
