"""Costs of attention kernels, which are not in the HLO: derived from their names and the shapes of their operands.

Splash attention (``nn/kernels/splash_attention.py``) takes q [.., G, T, H] and k, v [.., S, H]. Each block of queries
of a head reads all keys or, if causal, those up to its own; so keys are read again for each block. The kernel of spans
(``nn/kernels/packed_attention.py``) takes q [N, H, T]. Its spans are only known at run time, so the caller passes the
number of keys that a query is multiplied with (``visited``).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omni_jax.nn.kernels import packed_attention, splash_attention

QUERY_BLOCK = re.compile(r"block_q\W+(\d+)")
FLOATS = ("bf16", "f32")


@dataclass(frozen=True)
class Attention:
    """The cost of a call.

    Attributes:
        flops: its operations.
        keys: indices of the operands that are its keys and values.
        passes: how often it reads each of these.
    """

    flops: int
    keys: tuple[int, ...]
    passes: float


def attention(name: str, rest: str, operands: Sequence[Any], seen: int) -> Attention | None:
    """The cost of a custom call, from its name, its attributes and its operands; None if it is another kernel."""
    arrays = [at for at, array in enumerate(operands) if array.kind in FLOATS]
    if name.startswith(packed_attention.KERNEL):
        query, *keys = arrays[:3]
        return Attention(4 * operands[query].size * seen, tuple(keys), 1)
    if not name.startswith(splash_attention.KERNEL):
        return None
    query, *keys = arrays[:3]
    new, slots = operands[query].shape[-2], operands[keys[0]].shape[-2]
    found = QUERY_BLOCK.search(rest)
    blocks = new // int(found[1]) if found else 1
    # Over a cache, rows have segments, which separate its used slots from the others; all slots are multiplied.
    share = 1 if splash_attention.SEGMENTED in name else (blocks + 1) / (2 * blocks)
    groups = operands[query].size * slots // (new * operands[keys[0]].size)
    return Attention(round(4 * operands[query].size * slots * share), tuple(keys), groups * blocks * share)


def visited(tokens: int, span: int, block: int) -> int:
    """Keys that a query is multiplied with on average, where a packed sequence is cut into spans of one length: all
    keys in the blocks that any query of its block attends to."""
    total = 0
    for start in range(0, tokens, block):
        end = min(tokens, start + block)
        first, last = start // span * span, min(tokens, -(-end // span) * span)
        total += (end - start) * (-(-last // block) - first // block) * block
    return total // tokens
