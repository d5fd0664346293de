"""Weights: Hugging Face safetensors to our tree and back, by a table that reads in both directions.

load(folder, config, dtype=...)           parts with the weights of a folder in the published layout
voices(folder, config)                    the voices that a checkpoint has in a file beside its weights
save(parts, folder, config_json, ...)     parts, or any source of pieces, into the published layout
config_of(folder)                         the configuration of a folder, as far as its weights go
published(folder, config, ...)            such a folder as a source of pieces, and the abstract parts that it fills
assemble(source, abstract, ...)           parts on the devices from a folder, each process reading its devices' blocks
"""

from omni_jax.config.speech import Speaker
from omni_jax.weights.layerwise import InMemory, Progress, Published, Source, compare
from omni_jax.weights.published import bindings, config_of, copy_files, float_dtype, load, published, save
from omni_jax.weights.safetensors_writer import ensure_room, write_json
from omni_jax.weights.speakers import voices
from omni_jax.weights.to_devices import Shardings, assemble

__all__ = [
    "InMemory",
    "Progress",
    "Published",
    "Shardings",
    "Source",
    "Speaker",
    "assemble",
    "bindings",
    "compare",
    "config_of",
    "copy_files",
    "ensure_room",
    "float_dtype",
    "load",
    "published",
    "save",
    "voices",
    "write_json",
]
