"""Random weights in the published layout: the conversion table, run backwards."""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omni_jax import weights
from omni_jax.config import family_of, from_hf
from omni_jax.models import parts
from omni_jax.testing.family import TinyFamily
from omni_jax.testing.qwen3_omni import tiny_config
from omni_jax.testing.tokenizer import readable_ids, write_tokenizer
from omni_jax.weights import write_json
from omni_jax.weights.layerwise import Group, Leaf, leaves
from omni_jax.weights.table import Binding

# Objects of config.json that only speech needs.
SPOKEN = ("talker_config", "code2wav_config", "token2wav_config")


def write_tiny(
    folder: str | Path,
    *,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    speech: bool = True,
    shards: int = 2,
) -> Path:
    """Writes a random checkpoint in the published layout; the same arguments write the same weights on any machine.

    Args:
        folder: created if needed; must not hold weights yet.
        seed: of the weights.
        config: the content of config.json; by default ``tiny_config()``; ``tiny_qwen2_5_config()`` makes a
            Qwen2.5-Omni. Larger ones are written layer by layer, so a checkpoint may be larger than the memory.
        dtype: of the tensors, "float32" or "bfloat16"; those of Qwen2.5-Omni's token2wav are always float32.
        speech: False writes a text-only model, as the Thinking and Captioner releases are.
        shards: files of weights, at most.

    Returns:
        The folder.
    """
    folder = Path(folder)
    config = dict(tiny_config() if config is None else config)
    if not speech:
        config["enable_audio_output"] = False
        for name in [name for name in config if name in SPOKEN or name.startswith("tts_")]:
            del config[name]
    model = from_hf(config)
    speech = model.talker is not None
    abstract = parts.abstract(model, weights.float_dtype(dtype), speech=speech)
    bound, found = weights.bindings(model, abstract), leaves(abstract)
    family: TinyFamily = family_of(model).module("testing").TINY
    drawn, silent = np.dtype(np.float32), family.silent(model.talker) if speech else ()
    source = _Random(dtype=drawn, bindings=bound, leaves=found, seed=seed, silent=silent)
    total = sum(leaf.size for leaf in found.values())
    largest = max(math.prod(binding.shape) * found[path].dtype.itemsize for path, binding in bound.items())
    shard_bytes = -(-total // shards) + largest if shards > 1 else total
    weights.save(source, folder, config, dtype=dtype, speech=speech, shard_bytes=shard_bytes)
    write_tokenizer(folder, family.dialect)
    write_json(folder / "generation_config.json", family.speaking if speech else family.writing)
    write_json(folder / "preprocessor_config.json", family.preprocessor(config["thinker_config"]))
    if speech and family.write_speakers:
        family.write_speakers(folder, model)
    return folder


_SCALES = {
    "scale": (1.0, 0.1),
    "bias": (0.0, 0.05),
    "table": (0.0, 0.5),
    "gamma": (0.3, 0.1),
    "attention_scale": (0.3, 0.1),
    "ffn_scale": (0.3, 0.1),
    "alpha": (0.0, 0.3),
    "beta": (0.0, 0.3),
}


@dataclass(frozen=True, kw_only=True)
class _Random:
    """A source of random weights. Each piece has a seed from its own path and layer, so no piece depends on another.

    Everything is random, norms and biases too, because a constant would hide a mistake; scales keep activations near 1.
    The vocoders' convolutions have half gain, because their sines turn large activations into chaos. The ``silent``
    codec ids have zeros in the talker's head: otherwise greedy speech might end before it began. In the thinker's head,
    ids that do not print have zeros: otherwise greedy text would be invisible.
    """

    bindings: Mapping[str, Binding]
    leaves: Mapping[str, Leaf]
    seed: int
    silent: Sequence[int]
    dtype: np.dtype

    def read(self, group: Group) -> Iterator[tuple[str, np.ndarray]]:
        for path in group.paths:
            key = [self.seed, zlib.crc32(path.encode()), 0 if group.layer is None else group.layer + 1]
            values = np.random.default_rng(key).standard_normal(self.leaves[path].piece, np.float32)
            mean, spread = self._scale(path)
            values *= np.float32(spread)
            values += np.float32(mean)
            if path == "talker.head.kernel":
                values[:, list(self.silent)] = 0
            if path == "thinker.head.kernel":
                values[:, np.setdiff1d(np.arange(values.shape[1]), readable_ids())] = 0
            yield path, values

    def _scale(self, path: str) -> tuple[float, float]:
        """Mean and standard deviation."""
        name = path.rsplit(".", 1)[-1]
        if name in _SCALES:
            return _SCALES[name]
        shape = self.bindings[path].shape
        if path.startswith(("code2wav.", "bigvgan.")) and len(shape) == 3:
            # A transposed convolution is [in, out, width], and two of its taps meet in each sample.
            transposed = path.endswith(".conv.kernel") or path.startswith("bigvgan.upsamples.")
            return 0.0, 0.5 / math.sqrt(2 * shape[0] if transposed else shape[1] * shape[2])
        return 0.0, 1 / math.sqrt(math.prod(shape[1:]))
