"""Weights: Hugging Face safetensors to our tree and back, by a table that reads in both directions.

load(folder, config, dtype=...)           loads parts from a folder in the published layout
voices(folder, config)                    reads the speakers that a checkpoint has in a file beside its weights
save(parts, folder, config_json, ...)     writes parts, or any source of pieces, in the published layout
config_of(folder)                         the configuration of a folder, without parts that have no weights there
published(folder, config, ...)            a folder in the published layout as a source of pieces, and its abstract parts
assemble(source, abstract, ...)           loads a source onto the devices; each process reads its own devices' blocks
"""

from omni_jax.config.speech import Speaker
from omni_jax.weights.layerwise import InMemory, Progress, Published, WeightSource, compare
from omni_jax.weights.published import bindings, config_of, copy_files, float_dtype, load, published, save
from omni_jax.weights.safetensors_writer import ensure_room, write_json
from omni_jax.weights.speakers import voices
from omni_jax.weights.to_devices import Shardings, assemble

__all__ = [
    "InMemory",
    "Progress",
    "Published",
    "Shardings",
    "Speaker",
    "WeightSource",
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
