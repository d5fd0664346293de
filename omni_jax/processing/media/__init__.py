"""Sound, pictures and videos: found, read and turned into what the encoders take."""

from omni_jax.processing.media.reader import FolderReader, Reader, Visual

__all__ = ["FolderReader", "Reader", "Visual"]
