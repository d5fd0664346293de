"""Speech generation over any talker, with or without a code predictor: a prefill, then frames without the host."""

from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Num

from omni_jax.decoding.sampling import SamplingRows, sample
from omni_jax.nn.cache import KVCache

# Most frames of a call, two seconds; a call may make fewer, in the same program.
FRAMES_PER_CALL = 25


class SpeechModel(Protocol):
    """The members of a talker that speech generation needs."""

    embedding: Any
    codes: Any

    def extend(
        self, x: Array, positions: Array, lengths: Array, cache: KVCache, *, fresh: bool = False
    ) -> tuple[Array, Array, KVCache]: ...


@struct.dataclass
class SpeechRows:
    """Sampling options of a frame's first code, and of its others; None where a frame has only one."""

    talker: SamplingRows
    predictor: SamplingRows | None


@struct.dataclass
class SpeechState:
    """All that changes between frames.

    Attributes:
        cache: keys and values of all frames but ``frame``.
        frame: the sum of the embeddings of the last frame's codes, to be fed with the next token of the reply.
        position: where it will be fed, the same on all three rotary axes.
        seen: first codes so far, for the repetition penalty.
        count: frames generated.
        finished: rows that need no more.
    """

    cache: KVCache
    frame: Float[Array, "B D"]
    position: Num[Array, "B"]
    seen: Bool[Array, "B V"]
    count: Int[Array, "B"]
    finished: Bool[Array, "B"]


@partial(jax.jit, static_argnames=("bos", "said"), donate_argnames=("cache",))
def prefill(
    talker: SpeechModel,
    x: Float[Array, "B U D"],
    positions: Num[Array, "3 B U"],
    lengths: Int[Array, "B"],
    cache: KVCache,
    *,
    bos: int,
    said: tuple[int, ...] = (),
) -> SpeechState:
    """Prefills the talker's prompts. Rows of length 0 are padding of the batch, or not spoken, and start finished.

    Args:
        talker: the talker.
        x: embeddings of the prompts.
        positions: their rotary coordinates.
        lengths: real slots of each row.
        cache: an empty one, with room for them.
        bos: the codec id that is fed with the first token of the reply.
        said: codec ids that the repetition penalty covers from the start.
    """
    logits, _, cache = talker.extend(x, positions, lengths, cache, fresh=True)
    batch, vocabulary = logits.shape
    last = jnp.take_along_axis(positions, jnp.maximum(lengths - 1, 0)[None, :, None], axis=2)[:, :, 0]
    return SpeechState(
        cache=cache,
        frame=talker.embedding(jnp.full((batch,), bos)),
        position=jnp.max(last, axis=0) + 1,
        seen=jnp.zeros((batch, vocabulary), bool).at[:, np.asarray(said, int)].set(True),
        count=jnp.zeros(batch, jnp.int32),
        finished=lengths == 0,
    )


@partial(jax.jit, static_argnames=("candidates",), donate_argnames=("state",))
def generate_frames(
    talker: SpeechModel,
    predictor: Any | None,
    state: SpeechState,
    text: Float[Array, "B n D"],
    rows: SpeechRows,
    frames: Int[Array, ""],
    *,
    candidates: tuple[int, int],
) -> tuple[SpeechState, Int[Array, "B Q n"]]:
    """Generates up to ``frames`` (at most n) frames a row; stops early when all rows have finished.

    Args:
        talker: the talker.
        predictor: generates all codes of a frame but the first; None where a frame is one code.
        state: of all rows.
        text: the input of each frame beside the frame before it.
        rows: sampling options.
        frames: most frames a row.
        candidates: of talker and predictor, as ``sample`` takes them.

    Returns:
        The state, and the codes; a row's own come first, as many as its count has grown.
    """
    codebooks = predictor.config.codebooks if predictor is not None else 1
    made = jnp.zeros((text.shape[0], codebooks, text.shape[1]), jnp.int32)

    def run(take, predictor, start, arguments):
        talker, text, rows, frames = arguments
        predictor = take(predictor)

        def more(carry):
            step, state, _ = carry
            return (step < frames) & ~jnp.all(state.finished)

        def make(carry):
            step, state, made = carry
            text_step = jax.lax.dynamic_index_in_dim(text, step, axis=1, keepdims=False)
            state, codes = _frame(talker, predictor, state, text_step, rows, candidates)
            return step + 1, state, jax.lax.dynamic_update_index_in_dim(made, codes, step, axis=2)

        return jax.lax.while_loop(more, make, (jnp.zeros((), jnp.int32), *start))[1:]

    if predictor is None:
        return run(lambda nothing: nothing, None, (state, made), (talker, text, rows, frames))
    forms = {"tpu": partial(run, lambda stacked: stacked), "default": partial(run, lambda stacked: stacked.unstack())}
    return jax.lax.platform_dependent(predictor, (state, made), (talker, text, rows, frames), **forms)


def _frame(
    talker: SpeechModel,
    predictor: Any | None,
    state: SpeechState,
    text_step: Float[Array, "B D"],
    rows: SpeechRows,
    candidates: tuple[int, int],
) -> tuple[SpeechState, Int[Array, "B Q"]]:
    """One frame: the talker's step and the choice of its code, then the predictor's codes."""
    live = (~state.finished).astype(jnp.int32)
    x = (state.frame + text_step)[:, None]
    positions = jnp.broadcast_to(state.position[:, None], (3, *x.shape[:2]))
    logits, last, cache = talker.extend(x, positions, live, state.cache)
    ends = jnp.any(rows.talker.eos[:, :, None] == jnp.arange(logits.shape[1])[None, None], axis=1)
    scores = jnp.where(talker.codes[None] | ends, logits, -jnp.inf)
    first, _ = sample(scores, state.seen, state.count, rows.talker, candidates=candidates[0])
    embedded = talker.embedding(first)

    others, total = jnp.zeros((first.shape[0], 0), jnp.int32), 0
    if predictor is not None:
        of_predictor = rows.predictor
        assert of_predictor is not None

        def choose(logits, number):
            # Each choice in a row uses its own random number.
            draw = state.count * predictor.config.codebooks + number
            return sample(logits, None, draw, of_predictor, candidates=candidates[1])[0]

        others, total = predictor.residual(last, embedded, choose)
    silent = state.finished | jnp.any(first[:, None] == rows.talker.eos, axis=-1)
    count = state.count + ~silent
    column = jnp.where(silent, state.seen.shape[1], first)
    state = replace(
        state,
        cache=cache,
        frame=embedded + total,
        position=state.position + live,
        seen=state.seen.at[jnp.arange(first.shape[0]), column].set(True, mode="drop"),
        count=count,
        finished=silent | (count >= rows.talker.most),
    )
    return state, jnp.where(silent[:, None], 0, jnp.concatenate([first[:, None], others], axis=1))


def take_rows(tree: Any, index: Int[Array, "b"]) -> Any:
    """Some rows of a state or of options, in the order of ``index``."""
    return jax.tree.map(
        lambda leaf: leaf.rows(index) if isinstance(leaf, KVCache) else leaf[index],
        tree,
        is_leaf=lambda node: isinstance(node, KVCache),
    )
