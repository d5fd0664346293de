"""Host-side processing: media and conversations to arrays. NumPy only, never jax or torch."""

import os

# Without torch, Transformers warns at import that only tokenizers work: here nothing else is needed.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
