"""Continuous batching: a fixed number of slots share one decode program, and a finished slot takes the next prompt.

A prompt is prefilled by itself, by the program that answers it alone, and its cache is put into a slot. So a reply
depends only on its own prompt, options and seed, whatever is decoded beside it.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from omni_jax.buckets import first_slots, more_slots
from omni_jax.decoding.sampling import Sampling, SamplingRows
from omni_jax.decoding.text import CALL_STEPS, DecodeState, LanguageModel, decode_steps, prefill
from omni_jax.nn.cache import KVCache
from omni_jax.parallel.multihost import to_host
from omni_jax.parallel.sharding import mesh_of


@dataclass(frozen=True)
class RowOutput:
    """The tokens that a call generated in one row.

    Attributes:
        row: the number of the row.
        tokens: new ids, including the first one of a new prompt.
        logprobs: their log-probabilities.
        hidden_states: the final-normed states at the tokens that the call fed, [n, D]; None unless they were asked for.
    """

    row: int
    tokens: list[int]
    logprobs: list[float]
    hidden_states: np.ndarray | None = None


class Slots:
    """Rows of unfinished replies: ``insert`` a prompt into a free row, ``decode`` them all, ``release`` a finished row.

    The cache is only as long as its current rows need, so that short prompts do not pay for a long one that has ended.
    Its sizes are buckets, and each of them is one decode program.
    """

    def __init__(self, model: LanguageModel, batch: int, *, steps: int = CALL_STEPS // 2):
        """Makes free rows; the cache is allocated by the first ``insert``.

        Args:
            model: the language model.
            batch: rows.
            steps: tokens a call; a row that ends within a call waits for the end of the call.
        """
        if batch < 1 or not 1 <= steps <= CALL_STEPS:
            raise ValueError(
                f"slots, steps: expected at least 1 row and 1 to {CALL_STEPS} tokens a call, got {batch}, {steps}"
            )
        self.model, self.steps = model, steps
        self.state: DecodeState | None = None
        self.options: SamplingRows | None = None
        # Of each row: tokens of its prompt, tokens generated, most that may be, cache slots that it may use so far,
        # candidates of its draws. ``first`` holds the outputs of prefills that no ``decode`` has returned yet.
        self.lengths, self.counts, self.most, self.room, self.candidates = np.zeros((5, batch), int)
        self.taken, self.stopped = np.zeros(batch, bool), np.zeros(batch, bool)
        self.first: dict[int, tuple[Array, Array]] = {}

    @property
    def free(self) -> list[int]:
        return np.flatnonzero(~self.taken).tolist()

    def insert(
        self,
        row: int,
        embedded: Any,
        prompt: Int[np.ndarray, "1 T"],
        positions: Num[np.ndarray, "3 1 T"],
        lengths: Int[np.ndarray, "1"],
        sampling: Sampling,
        seed: int,
        most: int,
        *,
        candidates: int,
        hidden_layer: int | None = None,
    ) -> Float[Array, "1 T D"] | None:
        """Prefills a prompt and puts it into a row.

        Args:
            row: a free one.
            embedded: the input of the model's ``prefill`` for ``prompt``.
            prompt: its tokens.
            positions: their rotary coordinates.
            lengths: real tokens of the prompt.
            sampling: how tokens are chosen.
            seed: of the row's draws.
            most: tokens that may be generated.
            candidates: as ``Sampling.candidates`` counts them.
            hidden_layer: number of the model's layers after which the prompt's states are kept; None for none.

        Returns:
            The states that were kept.

        Raises:
            JaxRuntimeError: the device has no memory for it; while ``whole`` is True, the other rows can continue
                without it.
        """
        option = SamplingRows.of([sampling], [seed], [most])
        one, logprobs, hidden = prefill(
            self.model, embedded, jnp.asarray(prompt), jnp.asarray(positions), jnp.asarray(lengths),
            self.model.empty_cache(1, prompt.shape[1]), option, candidates=candidates, hidden_layer=hidden_layer,
        )  # fmt: skip
        jax.block_until_ready((one, logprobs, hidden))  # an error must come before the state of all rows is donated
        if not candidates:  # beside rows that draw, the likeliest token is a draw from one
            option = SamplingRows.of([replace(sampling, do_sample=True, temperature=1.0, top_k=1)], [seed], [most])
        room = first_slots(prompt.shape[1], int(lengths[0]), most)
        if self.state is None:
            cache = self.model.empty_cache(len(self.taken), room)
            self.state, self.options = jax.block_until_ready(_rows_of(one, option, cache))
        self._resize(room)
        self.state, self.options = _insert(self.state, self.options, one, option, np.int32(row))
        self.first[row] = one.tokens, logprobs
        self.lengths[row], self.counts[row], self.most[row], self.candidates[row] = lengths[0], 1, most, candidates
        self.room[row], self.taken[row], self.stopped[row] = room, True, False
        return hidden

    @property
    def whole(self) -> bool:
        """Whether the state still exists: a failed call may have donated and lost it."""
        return not any(leaf.is_deleted() for leaf in jax.tree.leaves((self.state, self.options)))

    def decode(self, *, return_hidden_states: bool = False) -> list[RowOutput]:
        """Generates up to ``steps`` tokens in each row that is taken.

        Args:
            return_hidden_states: whether the states at the tokens fed are returned too.
        """
        assert self.state is not None
        assert self.options is not None
        needed = self.lengths + np.minimum(self.counts + self.steps, self.most)
        for row in np.flatnonzero(self.taken & (needed > self.room)):
            self.room[row] = more_slots(*(int(of[row]) for of in (self.room, self.lengths, self.most)))
        self._resize()
        state = self.state
        if self.stopped.any():
            state, self.stopped = _finish(state, self.stopped), np.zeros_like(self.stopped)
        state, made, logprobs, hidden_states = decode_steps(
            self.model, state, self.options, np.int32(self.steps),
            candidates=int(self.candidates[self.taken].max(initial=0)), return_hidden_states=return_hidden_states,
        )  # fmt: skip
        first, made, logprobs, hidden_states, counts = to_host((self.first, made, logprobs, hidden_states, state.count))
        self.state, self.first, written = state, {}, []
        for row in np.flatnonzero(self.taken).tolist():
            new = slice(0, int(counts[row] - self.counts[row]))
            token, logprob = first.get(row, (np.zeros(0, np.int32), np.zeros(0, np.float32)))
            written.append(
                RowOutput(
                    row,
                    [*token.tolist(), *made[row, new].tolist()],
                    [*logprob.tolist(), *logprobs[row, new].tolist()],
                    None if hidden_states is None else hidden_states[row, new],
                )
            )
        self.counts = np.array(counts, int)
        return written

    def release(self, row: int) -> None:
        """Frees a row, whether or not the device knows that its reply is finished."""
        self.taken[row], self.stopped[row] = False, True

    def _resize(self, least: int = 0) -> None:
        """Grows the cache to the slots that its rows may use; cuts it only if at least half would be unused."""
        assert self.state is not None
        needed, slots = int(self.room[self.taken].max(initial=least)), self.state.cache.slots
        if needed > slots or 0 < 2 * needed <= slots:
            self.state = replace(self.state, cache=jax.block_until_ready(_resized(self.state.cache, slots=needed)))


@partial(jax.jit, donate_argnames=("cache",))
def _rows_of(one: DecodeState, option: SamplingRows, cache: KVCache) -> tuple[DecodeState, SamplingRows]:
    """A batch of finished rows, as many as the cache has, with the shapes of one row."""
    batch = cache.length.shape[0]
    rest = DecodeState(
        cache=cache,
        tokens=jnp.repeat(one.tokens, batch, axis=0),
        positions=jnp.repeat(one.positions, batch, axis=1),
        seen=jnp.repeat(one.seen, batch, axis=0),
        count=jnp.repeat(one.count, batch, axis=0),
        finished=jnp.ones(batch, bool),
    )
    return rest, jax.tree.map(lambda leaf: jnp.repeat(leaf, batch, axis=0), option)


@partial(jax.jit, donate_argnames=("state", "options"))
def _insert(
    state: DecodeState, options: SamplingRows, one: DecodeState, option: SamplingRows, row: Int[Array, ""]
) -> tuple[DecodeState, SamplingRows]:
    """Puts a batch of one into a row; of the row's cache, only the slots that the prompt's cache has are written."""

    def put(whole, own, axis=0):
        at = [jnp.zeros((), jnp.int32)] * whole.ndim
        at[axis] = row
        return jax.lax.dynamic_update_slice(whole, own, at)

    state = DecodeState(
        cache=state.cache.put(one.cache, row).on(mesh_of(state.cache.k)),
        tokens=put(state.tokens, one.tokens),
        positions=put(state.positions, one.positions, 1),
        seen=put(state.seen, one.seen),
        count=put(state.count, one.count),
        finished=put(state.finished, one.finished),
    )
    return state, jax.tree.map(put, options, option)


@partial(jax.jit, donate_argnames=("state",))
def _finish(state: DecodeState, stopped: Bool[Array, "B"]) -> DecodeState:
    return replace(state, finished=state.finished | stopped)


@partial(jax.jit, static_argnames=("slots",))
def _resized(cache: KVCache, slots: int) -> KVCache:
    return (cache.grow(slots) if slots > cache.slots else cache.cut(slots)).on(mesh_of(cache.k))
