"""Lower bounds of a program's bytes and operations, per chip: weights and caches read once, work spread over all chips.

A bound to compare compiled programs with, not a prediction. For decoders it is counted from the configuration: in a
step, every weight that a token needs is read once, as many experts as the batch can choose, and the full cache. For
encoders and vocoders it is read off the traced functions: products and convolutions, and the bytes of weights, inputs
and results.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from omni_jax.config import DecoderConfig, OmniConfig
from omni_jax.models.parts import OmniParts, loaded


@dataclass(frozen=True)
class Cost:
    """Bytes moved and operations done by one chip."""

    bytes: int
    flops: int


def shard_bytes(leaf: Any) -> int:
    """Bytes of an abstract array on one chip."""
    shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
    return math.prod(shape) * leaf.dtype.itemsize


def bytes_per_device(tree: Any) -> int:
    """Bytes of abstract arrays on one chip."""
    return sum(shard_bytes(leaf) for leaf in jax.tree.leaves(tree))


@dataclass(frozen=True)
class DecoderLowerBound:
    """Lower bounds of a model's decoders; ``parts`` are placed on ``chips`` chips."""

    parts: OmniParts
    config: OmniConfig
    chips: int

    def prefill(self, rows: int, tokens: int) -> Cost:
        """Rows of prompts in one pass; only the last token of each has logits."""
        part, config = self.parts.thinker, self.parts.thinker.decoder.config
        width = row_bytes(part.embedding.table)
        moved = self._weights(part, rows * tokens) + rows * tokens * 2 * (width // self.chips + self._entry(config))
        pairs = rows * tokens * (tokens + 1) // 2
        return Cost(moved, self._flops(part.decoder, rows * tokens, pairs) + self._product(part.head, rows))

    def decode(self, batch: int, cache: Any) -> Cost:
        """One token a row."""
        part = self.parts.thinker
        moved = (
            self._weights(part, batch) + bytes_per_device((cache.k, cache.v)) + batch * row_bytes(part.embedding.table)
        )
        pairs = batch * cache.slots
        return Cost(moved, self._flops(part.decoder, batch, pairs) + self._product(part.head, batch))

    def frame(self, batch: int, cache: Any) -> Cost:
        """A step of the talker; then a predictor pass for each code but the first, the first pass over two embeddings.

        On-chip memory could hold a part of the predictor between its passes; it is too small to be counted on.
        """
        talker = loaded(self.parts.talker)
        moved = self._weights(talker, batch) + bytes_per_device((cache.k, cache.v))
        flops = self._flops(talker.decoder, batch, batch * cache.slots) + self._product(talker.head, batch)
        if projection := getattr(talker, "projection", None):
            moved, flops = moved + bytes_per_device(projection), flops + self._product(projection, batch)
        if predictor := self.parts.code_predictor:
            passes = predictor.config.codebooks - 1
            moved += passes * bytes_per_device((predictor.decoder.layers, predictor.decoder.norm)) + bytes_per_device(
                predictor.heads
            )
            pairs = batch * (passes + 1) * (passes + 2) // 2
            flops += self._flops(predictor.decoder, batch * (passes + 1), pairs)
            flops += self._product(predictor.heads, batch)
        return Cost(moved, flops)

    def _weights(self, part: Any, tokens: int) -> int:
        """Bytes of the weights that every token needs, and of as many experts as the tokens can choose."""
        config, decoder = part.decoder.config, part.decoder
        found = bytes_per_device((decoder.layers, decoder.norm, part.head))
        if config.experts:
            found += (
                bytes_per_device(decoder.experts)
                * min(tokens * config.experts.per_token, config.experts.count)
                // config.experts.count
            )
        return found

    def _entry(self, config: DecoderConfig) -> int:
        """Bytes of a token's keys and values, divided by all chips."""
        return 2 * 2 * config.layers * config.kv_heads * config.head_width // self.chips

    def _flops(self, decoder: Any, tokens: int, pairs: int) -> int:
        """Operations of the decoder; ``pairs`` counts pairs of a query and a key that it attends to."""
        config = decoder.config
        used = size(decoder.layers)
        if config.experts:
            used += size(decoder.experts) * config.experts.per_token // config.experts.count
        attention = 4 * config.layers * config.heads * config.head_width * pairs
        return (2 * used * tokens + attention) // self.chips

    def _product(self, linear: Any, rows: int) -> int:
        return 2 * size(linear) * rows // self.chips


def size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def row_bytes(param: Any) -> int:
    """Bytes of one row of a table."""
    return param.shape[-1] * param.dtype.itemsize


def traced(function: Any, arguments: tuple[Any, ...], chips: int, *, runs: int = 1, kept: Any = None) -> Cost:
    """The lower bound of a function, from its trace.

    Args:
        function: to be traced.
        arguments: abstract ones.
        chips: that share the work.
        runs: iterations of loops whose length is only known at run time.
        kept: state among the arguments that a call replaces: counted as each chip holds it, while other results are
            divided.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments)
    made = sum(out.size * out.dtype.itemsize for out in jaxpr.out_avals)
    made -= sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    return Cost(
        bytes_per_device(arguments) + bytes_per_device(kept) + made // chips, operations(jaxpr.jaxpr, runs) // chips
    )


def operations(jaxpr: Any, runs: int = 1) -> int:
    """Operations of products and convolutions, two for each multiplication; loops by their runs, the largest branch."""
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval, equation.outvars[0].aval
            features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            # With a dilated base, the window meets only some positions.
            total += 2 * out.size * kernel.size // features // math.prod(params["lhs_dilation"])
        elif name == "scan":
            total += params["length"] * operations(params["jaxpr"].jaxpr, runs)
        elif name == "shard_map":
            total += params["mesh"].size * operations(params["jaxpr"], runs)
        elif name == "while":
            total += runs * operations(params["body_jaxpr"].jaxpr, runs)
        elif name == "cond":
            total += max(operations(branch.jaxpr, runs) for branch in params["branches"])
        else:
            total += sum(operations(inner, runs) for inner in _inner(params))
    return total


def _inner(params: Mapping[str, Any]) -> Iterator[Any]:
    """The jaxprs that an equation calls."""
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if hasattr(each, "jaxpr"):
                yield each.jaxpr
            elif hasattr(each, "eqns"):
                yield each
