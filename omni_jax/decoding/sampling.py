"""Sampling options and the function from logits to tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Int32, UInt32

from omni_jax.errors import cut, shown

STOPS, MOST_IDS = 8, 1 << 12  # most stop ids of a row, and most that may be given
INT32, FLOAT32 = 2**31 - 1, float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen; names and meanings are Transformers'. None takes the checkpoint's generation config.

    Attributes:
        max_new_tokens: upper bound of the reply's length.
        min_new_tokens: lower bound of the reply's length.
        do_sample: draw instead of taking the likeliest; a temperature, top_k or top_p alone means True.
        temperature: divides the logits, above 0. The order is penalty, temperature, top_k, top_p.
        top_k: draw only from this many likeliest tokens (0: from all).
        top_p: draw only from the fewest likeliest tokens whose probabilities add up to it.
        repetition_penalty: divides positive and multiplies negative logits of tokens in the prompt and the reply.
        eos_token_id: ids that end the reply, at most 8.
        stop_strings: texts that end the reply, and are cut off.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_id: int | Sequence[int] | None = None
    stop_strings: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        limits = {
            "max_new_tokens": (1, INT32), "min_new_tokens": (0, INT32), "temperature": (0, FLOAT32), "top_k": (0, INT32),
            "top_p": (0, 1), "repetition_penalty": (0, FLOAT32),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            whole = name.endswith("tokens") or name == "top_k"
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Integral if whole else Real) or value != value:
                raise ValueError(f"{name}: expected a{' whole' if whole else ''} number, got {shown(value)}")
            if name == "temperature" and value == 0 and self.do_sample is False:
                continue
            if value < low or value > high or (not whole and value == 0):
                bounds = (f"at least {low}" if whole else f"above {low}") + f" and at most {high}" * (high < FLOAT32)
                hint = (
                    "; for the likeliest token use do_sample=False (in the shell --greedy)"
                    if name == "temperature"
                    else ""
                )
                raise ValueError(f"{name}: expected a number {bounds}, got {shown(value)}{hint}")
        if not (self.do_sample is None or (isinstance(self.do_sample, int | np.bool_) and self.do_sample in (0, 1))):
            raise ValueError(f"do_sample: expected True or False, got {shown(self.do_sample)}")
        if not all(isinstance(text, str) and text for text in self.stops):
            raise ValueError(f"stop_strings: expected non-empty strings, got {shown(self.stop_strings)}")
        if not all(
            isinstance(token, Integral) and not isinstance(token, bool) and abs(token) <= INT32 for token in self.eos
        ):
            raise ValueError(f"eos_token_id: expected token ids, got {shown(self.eos_token_id)}")
        if len(self.eos) > STOPS:
            raise ValueError(f"eos_token_id: expected at most {STOPS} ids, got {len(self.eos)}")

    @classmethod
    def named(cls, options: Mapping[str, Any], *, prefix: str = "") -> "Sampling":
        """Options from keywords with a prefix, such as ``thinker_temperature``; an unknown name is an error."""
        known = {prefix + field.name for field in fields(cls)}
        for name in options:
            if name not in known:
                raise ValueError(f"unknown option {cut(name)}; expected one of {', '.join(sorted(known))}")
        try:
            return cls(**{name.removeprefix(prefix): value for name, value in options.items()})
        except ValueError as error:
            raise ValueError(f"{prefix}{error}") from None

    def override(self, options: "Sampling") -> "Sampling":
        """These options with those replaced that ``options`` gives.

        A temperature, top_k or top_p among ``options`` asks for sampling, unless ``options`` says otherwise.
        """
        given = {field.name: value for field in fields(self) if (value := getattr(options, field.name)) is not None}
        if self.do_sample is not None and options.samples:
            given["do_sample"] = True
        return replace(self, **given)

    @property
    def samples(self) -> bool | None:
        """Whether these options ask for sampling; None if they say nothing of it."""
        if self.do_sample is not None:
            return bool(self.do_sample)
        return True if any(value is not None for value in (self.temperature, self.top_k, self.top_p)) else None

    @property
    def eos(self) -> tuple[int, ...]:
        value: Any = self.eos_token_id
        if isinstance(value, np.ndarray):
            if value.size > MOST_IDS:  # a broadcast view may be larger than any memory
                raise ValueError(f"eos_token_id: expected token ids, got {shown(value)}")
            value = value.reshape(-1).tolist()
        return () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)

    @property
    def stops(self) -> tuple[str, ...]:
        value: Any = self.stop_strings
        return () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)

    def candidates(self, vocabulary: int) -> int:
        """The number of likeliest tokens that a draw considers: 0 when greedy; else a power of two, for few programs."""
        if not self.do_sample:
            return 0
        top_k = 50 if self.top_k is None else int(self.top_k)
        return vocabulary if not 0 < top_k < vocabulary else min(vocabulary, 1 << (top_k - 1).bit_length())


@struct.dataclass
class SamplingRows:
    """Sampling options as arrays, one row of the batch each, so that a changed number compiles no new program."""

    temperature: Float[Array, "B"]
    top_k: Int[Array, "B"]
    top_p: Float[Array, "B"]
    penalty: Float[Array, "B"]
    least: Int[Array, "B"]
    most: Int[Array, "B"]
    eos: Int[Array, "B X"]
    seed: UInt32[Array, "B"]

    @classmethod
    def of(cls, options: Sequence[Sampling], seeds: Sequence[int], most: Sequence[int]) -> "SamplingRows":
        """Options of the rows as arrays; ``most`` is the number of tokens that each row may still generate."""

        def column(values, dtype) -> Any:
            return np.asarray(values, dtype)

        rows = cls(
            temperature=column(
                [1.0 if row.temperature is None else max(row.temperature, 1e-30) for row in options], np.float32
            ),
            top_k=column([50 if row.top_k is None else row.top_k for row in options], np.int32),
            top_p=column([1.0 if row.top_p is None else row.top_p for row in options], np.float32),
            penalty=column([row.repetition_penalty or 1.0 for row in options], np.float32),
            least=column([row.min_new_tokens or 0 for row in options], np.int32),
            most=column(most, np.int32),
            eos=column([(*row.eos, *[-1] * (STOPS - len(row.eos))) for row in options], np.int32),
            seed=column([int(seed) & 0xFFFFFFFF for seed in seeds], np.uint32),
        )
        return jax.device_put(rows)  # all columns in one transfer, for all calls


def sample(
    logits: Float[Array, "B V"],
    seen: Bool[Array, "B V"] | None,
    count: Int[Array, "B"],
    rows: SamplingRows,
    *,
    candidates: int,
    allowed: Int32[Array, "B V2"] | None = None,
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """The next token of each row and its log-probability under the model (before penalty, temperature and cuts).

    Args:
        logits: of each row.
        seen: tokens that the repetition penalty covers; None for no penalty.
        count: tokens that the row has generated; its randomness depends only on this and the row's seed.
        rows: options of each row.
        candidates: 0 for the likeliest token; else the most tokens that a draw chooses from.
        allowed: tokens that may be chosen, a bit each (``grammar.GrammarCompiler.masks``); None for all. Where only an
            end is allowed, the reply ends, even before its shortest length.
    """
    batch, vocabulary = logits.shape
    logits = logits.astype(jnp.float32)
    scores = logits
    if seen is not None:
        penalty = rows.penalty[:, None]
        scores = jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    ends = jnp.where(rows.eos >= 0, rows.eos, vocabulary)
    early = (count < rows.least)[:, None]
    unlimited = scores  # before ends are excluded
    scores = scores.at[jnp.arange(batch)[:, None], ends].add(jnp.where(early, -jnp.inf, 0.0), mode="drop")
    if allowed is not None:
        bits = (allowed[:, :, None] >> jnp.arange(32, dtype=jnp.int32)[None, None]) & 1
        may = bits.reshape(batch, -1)[:, :vocabulary] == 1
        kept = jnp.where(may, scores, -jnp.inf)
        scores = jnp.where(jnp.any(kept > -jnp.inf, axis=-1, keepdims=True), kept, jnp.where(may, unlimited, -jnp.inf))
    tokens = _draw(scores, count, rows, candidates) if candidates else jnp.argmax(scores, axis=-1)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, axis=-1)


def _draw(scores: Float[Array, "B V"], count: Int[Array, "B"], rows: SamplingRows, candidates: int) -> Int[Array, "B"]:
    """Inverts the cumulative distribution at one uniform number a row, so the draw does not depend on array sizes."""
    top, ids = jax.lax.top_k(scores, candidates)
    top = (top - top[:, :1]) / rows.temperature[:, None]  # a temperature near 0 must not turn them into infinities
    rank = jnp.arange(candidates)[None]
    top_k = jnp.where(rows.top_k > 0, rows.top_k, scores.shape[-1])[:, None]
    weights = jax.nn.softmax(jnp.where(rank < top_k, top, -jnp.inf), axis=-1)
    before = jnp.cumsum(weights, axis=-1) - weights
    weights = jnp.where((before < rows.top_p[:, None]) | (rank == 0), weights, 0)
    sums = jnp.cumsum(weights, axis=-1)

    def uniform(seed, step):
        return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), step))

    # u < 1, but u * sum may round up to the sum: the last token of positive weight is the bound.
    last = jnp.sum(weights > 0, axis=-1) - 1
    at = jnp.sum(sums <= jax.vmap(uniform)(rows.seed, count)[:, None] * sums[:, -1:], axis=-1)
    return jnp.take_along_axis(ids, jnp.minimum(at, last)[:, None], axis=-1)[:, 0]
