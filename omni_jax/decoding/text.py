"""Autoregressive generation over any module with ``prefill``, ``step`` and ``empty_cache``: a prefill, then calls of n
steps."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Int32, Num

from omni_jax.buckets import first_slots, more_slots
from omni_jax.decoding.sampling import SamplingRows, sample
from omni_jax.nn.cache import KVCache
from omni_jax.parallel.jitted import jitted
from omni_jax.parallel.multihost import to_host

# Most steps of a call; a call may make fewer, in the same program.
CALL_STEPS = 32


class LanguageModel(Protocol):
    """The methods of a model that generation needs."""

    def prefill(
        self, embedded: Any, positions: Array, lengths: Array, cache: KVCache, *, fresh: bool, hidden_layer: int | None
    ) -> tuple[Array, KVCache, Array | None]: ...
    def step(self, tokens: Array, positions: Array, live: Array, cache: KVCache) -> tuple[Array, Array, KVCache]: ...
    def empty_cache(self, batch: int, slots: int) -> KVCache: ...


@struct.dataclass
class DecodeState:
    """All that changes between steps.

    Attributes:
        cache: keys and values of all tokens but ``tokens``.
        tokens: the last token of each row, chosen but not yet fed.
        positions: the rotary coordinates at which it will be fed.
        seen: tokens in prompt and reply, for the repetition penalty.
        count: tokens generated.
        finished: rows that need no more.
    """

    cache: KVCache
    tokens: Int[Array, "B"]
    positions: Num[Array, "3 B"]
    seen: Bool[Array, "B V"]
    count: Int[Array, "B"]
    finished: Bool[Array, "B"]


@dataclass
class StepOutput:
    """Tokens of one call.

    Attributes:
        tokens: ids, [B, n].
        logprobs: their log-probabilities, [B, n].
        counts: how many of them belong to each row.
        prompt_states: the prompt's states, if they are kept; with the first call's tokens only.
        hidden_states: the final-normed states at the tokens that this call fed, as many a row as it generated: the last token of
            the call before, and all but the last of its own. None for the first call, and unless asked for.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    counts: np.ndarray
    prompt_states: Float[Array, "B T D"] | None = None
    hidden_states: Float[Array, "B n D"] | None = None

    def take_prompt_states(self) -> Float[Array, "B T D"] | None:
        """Returns the states and drops this reference to them, so that they live no longer than the caller needs."""
        states, self.prompt_states = self.prompt_states, None
        return states


def _accept(state: DecodeState, tokens: Int[Array, "B"], rows: SamplingRows) -> DecodeState:
    """Appends a chosen token to each unfinished row."""
    live = ~state.finished
    count = state.count + live
    ended = jnp.any(tokens[:, None] == rows.eos, axis=-1) | (count >= rows.most)
    column = jnp.where(live, tokens, state.seen.shape[1])
    return replace(
        state,
        tokens=jnp.where(live, tokens, state.tokens),
        seen=state.seen.at[jnp.arange(tokens.shape[0]), column].set(True, mode="drop"),
        count=count,
        finished=state.finished | ended,
    )


@partial(jitted, static_argnames=("candidates", "fresh", "hidden_layer"), donate_argnames=("cache",))
def prefill(
    model: LanguageModel,
    embedded: Any,
    prompt: Int[Array, "B T"],
    positions: Num[Array, "3 B T"],
    lengths: Int[Array, "B"],
    cache: KVCache,
    rows: SamplingRows,
    *,
    candidates: int,
    fresh: bool = True,
    hidden_layer: int | None = None,
    allowed: Int32[Array, "B V2"] | None = None,
) -> tuple[DecodeState, Float[Array, "B"], Float[Array, "B T D"] | None]:
    """Prefills the prompts and chooses the first token of each row.

    Args:
        model: the language model.
        embedded: the input of the model's ``prefill`` for ``prompt``: its embeddings, media in place.
        prompt: tokens.
        positions: their rotary coordinates.
        lengths: real tokens of each row. Rows of length 0 are padding of the batch and start finished.
        cache: with room for the prompts.
        rows: sampling options.
        candidates: as ``sample`` takes them.
        fresh: whether the cache is empty.
        hidden_layer: number of the model's layers after which the prompt's states are kept; None for none.
        allowed: as ``sample`` takes it, for the first token.

    Returns:
        The state, the log-probability of each row's first token, and the states that were kept.
    """
    batch = prompt.shape[0]
    logits, cache, hidden = model.prefill(embedded, positions, lengths, cache, fresh=fresh, hidden_layer=hidden_layer)
    real = jnp.arange(prompt.shape[1])[None] < lengths[:, None]
    vocabulary = logits.shape[1]
    seen = jnp.zeros((batch, vocabulary), bool)
    seen = seen.at[jnp.arange(batch)[:, None], jnp.where(real, prompt, vocabulary)].set(True, mode="drop")
    count = jnp.zeros(batch, jnp.int32)
    tokens, logprobs = sample(logits, seen, count, rows, candidates=candidates, allowed=allowed)
    # After a prompt all three coordinates continue from the largest one of its last token.
    last = jnp.take_along_axis(positions, jnp.maximum(lengths - 1, 0)[None, :, None], axis=2)[:, :, 0]
    following = jnp.broadcast_to(jnp.max(last, axis=0) + 1, last.shape)
    state = DecodeState(cache=cache, tokens=tokens, positions=following, seen=seen, count=count, finished=lengths == 0)
    return _accept(state, tokens, rows), logprobs, hidden


@partial(jitted, static_argnames=("candidates", "return_hidden_states"), donate_argnames=("state",))
def decode_steps(
    model: LanguageModel,
    state: DecodeState,
    rows: SamplingRows,
    steps: Int[Array, ""],
    *,
    candidates: int,
    return_hidden_states: bool = False,
    allowed: Int32[Array, "B V2"] | None = None,
) -> tuple[DecodeState, Int[Array, "B n"], Float[Array, "B n"], Float[Array, "B n D"] | None]:
    """Generates up to ``steps`` (at most CALL_STEPS) tokens a row without the host; stops early when all have finished.

    ``allowed`` is as ``sample`` takes it. It holds for one token, so ``steps`` must then be 1.

    Returns:
        The state, the tokens, their log-probabilities and, with ``return_hidden_states``, the model's states at the tokens fed.
    """
    batch = state.tokens.shape[0]

    def more(carry):
        step, state, *_ = carry
        return (step < steps) & ~jnp.all(state.finished)

    def make(carry):
        step, state, made, logprobs, hidden_states = carry
        live = (~state.finished).astype(jnp.int32)
        logits, last, cache = model.step(state.tokens, state.positions, live, state.cache)
        state = replace(state, cache=cache, positions=state.positions + live[None])
        tokens, logprob = sample(logits, state.seen, state.count, rows, candidates=candidates, allowed=allowed)
        made, logprobs = made.at[:, step].set(tokens), logprobs.at[:, step].set(logprob)
        return (
            step + 1,
            _accept(state, tokens, rows),
            made,
            logprobs,
            hidden_states.at[:, step].set(last) if return_hidden_states else None,
        )

    hidden_states = None
    if return_hidden_states:
        last = jax.eval_shape(model.step, state.tokens, state.positions, state.count, state.cache)[1]
        hidden_states = jnp.zeros((batch, CALL_STEPS, last.shape[1]), last.dtype)
    empty = (jnp.zeros((batch, CALL_STEPS), jnp.int32), jnp.zeros((batch, CALL_STEPS), jnp.float32), hidden_states)
    return jax.lax.while_loop(more, make, (jnp.zeros((), jnp.int32), state, *empty))[1:]


@partial(jax.jit, static_argnames=("slots",))
def grow(cache: KVCache, slots: int) -> KVCache:
    """The same cache with room for ``slots``."""
    return cache.grow(slots)


def generate(
    model: Any,
    embedded: Any,
    prompt: Int[np.ndarray, "B T"],
    positions: Num[np.ndarray, "3 B T"],
    lengths: Int[np.ndarray, "B"],
    rows: SamplingRows,
    *,
    candidates: int,
    steps: int = CALL_STEPS,
    hidden_layer: int | None = None,
    return_hidden_states: bool = False,
    masks: Callable[[], Int32[np.ndarray, "B V2"]] | None = None,
) -> Generator[StepOutput, np.ndarray | None, None]:
    """Generates replies to prompts, yielding the tokens of each call; send row flags to finish rows from outside.

    The cache starts with room for 512 new tokens and grows when a call might overrun it, so that a large
    ``max_new_tokens`` costs memory only when it is used. Its sizes are buckets, so that prompts of similar lengths
    share programs. The largest is that of the longest row's prompt and ``max_new_tokens``.

    Args:
        model: the language model.
        embedded: the input of the model's ``prefill`` for ``prompt``.
        prompt: tokens.
        positions: their rotary coordinates.
        lengths: prompt tokens of each row; 0 for a padding row.
        rows: sampling options.
        candidates: as ``sample`` takes them.
        steps: tokens a call.
        hidden_layer: number of the model's layers after which the prompt's states are kept, for the first call's ``StepOutput``.
        return_hidden_states: whether the states at the reply's tokens are returned too.
        masks: called before each token for ``allowed``, when the tokens before it were yielded; a call then makes one
            token. None allows all tokens.
    """
    most = np.asarray(rows.most)
    longest, most_new = int(np.max(lengths)), int(np.max(most, where=lengths > 0, initial=0))
    cache = model.empty_cache(prompt.shape[0], first_slots(prompt.shape[1], longest, most_new))
    first = (jnp.asarray(prompt), jnp.asarray(positions), jnp.asarray(lengths))
    state, logprobs, hidden = prefill(
        model, embedded, *first, cache, rows, candidates=candidates, hidden_layer=hidden_layer,
        allowed=masks and jnp.array(masks()),  # a copy, for the host writes the next ones
    )  # fmt: skip
    del embedded  # not needed again, and large for prompts with many images
    counts, made, logprobs, hidden_states = np.zeros(len(lengths), int), state.tokens[:, None], logprobs[:, None], None
    while True:
        made, logprobs, total, finished = to_host((made, logprobs, state.count, state.finished))
        call = StepOutput(
            tokens=made, logprobs=logprobs, counts=total - counts, prompt_states=hidden, hidden_states=hidden_states
        )
        hidden = hidden_states = None
        stop = yield call
        counts = total
        if stop is not None and np.any(stop & ~finished):
            finished = finished | stop
            state = replace(state, finished=jax.device_put(finished))
        if finished.all():
            return
        now = min(steps, CALL_STEPS) if masks is None else 1
        needed = int(np.max(lengths + np.minimum(counts + now, most), where=~finished, initial=0))
        if needed > state.cache.slots:
            slots = more_slots(state.cache.slots, longest, most_new)
            state = replace(state, cache=grow(state.cache, slots=slots))
        state, made, logprobs, hidden_states = decode_steps(
            model, state, rows, np.int32(now), candidates=candidates, return_hidden_states=return_hidden_states,
            allowed=masks and jnp.array(masks()),  # a copy, for the host writes the next ones
        )  # fmt: skip
