"""The flow vocoder: codes of whole rows, or codes as they come, to sound. DiT and BigVGAN in their static shapes.

A row is itself in any batch and any padding: what is padded is masked, and noise belongs to a seed and the number of a frame.

A stream is made of overlapping windows of blocks (24 mel frames, 12 codes, 0.24 s): ``BACK`` blocks of context, the new ones,
``AHEAD`` of look-ahead. Each is made as if it were a whole row, at its own positions and from the noise that its frames have
in the whole; of its sound the new blocks' is kept. So the codes are all that a stream remembers, and errors cannot add up.

It is not the whole to the last digit. A direction of the flow hears two blocks back and one ahead, but the 36 directions of
a sampling hear through one another, less with each block. What a window errs by, of the largest sample (random weights of
the usual scale, depth 4 and 22, the worst of two seeds; 5e-7 is what float32 rounds):

    BACK, AHEAD   2, 1   3, 1   2, 2   3, 2   4, 2   3, 3   4, 3
    error         1e-3   1e-3   1e-4   1e-5   1e-5   1e-6   8e-7

So the first sound needs 36 codes, and a tolerance of 1e-4 holds with room. With all kernels half as large again, beyond what
a trained model would be, the chosen 3, 2 err by 6e-5.

Programs, for each power of two of rows: BigVGAN has the four sizes of windows and one for longer rows, the DiT the four and
what whole rows are padded to, eight an octave (they compile in a second, BigVGAN's take twenty).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from omni_jax.buckets import bucket
from omni_jax.models.dit import frame_noise
from omni_jax.processing.arrays import to_numpy
from omni_jax.weights.speakers import Speaker

# Blocks of a window beside its new ones.
BACK, AHEAD = 3, 2
# New blocks a window: a stream begins with one, so that its first sound is early, and grows so that little is made twice.
NEW = (1, 2, 4, 8)
# Blocks of BigVGAN's windows in a row that is longer than a stream's: what overlaps is a ninth.
LONG = 27
# Mel frames of a call, of all rows. At the published size the DiT holds 150 kB for each, BigVGAN 600 kB in its windows.
CALL_FRAMES = 16_384

# Speaker embeddings, reference mel frames and how many each row has of them.
Voices = tuple[Float[np.ndarray, "B D"], Float[np.ndarray, "B A Z"], Int[np.ndarray, "B"]]


@partial(jax.jit, static_argnames=("frames", "bins"))
def _noise(seeds, start, *, frames: int, bins: int):
    return jax.vmap(lambda seed: frame_noise(jax.random.key(seed), frames, bins, start))(seeds)


@jax.jit
def _mel(dit, codes, lengths, voices, noise, start):
    return dit.sample(codes, lengths, *voices, noise, start)


@jax.jit
def _samples(bigvgan, mel, first, end):
    return bigvgan.decode_window(mel, first, end)


def checked(dit: Any, codes: np.ndarray, lengths: Any) -> tuple[Int[np.ndarray, "B Y"], Int[np.ndarray, "B"]]:
    """Codes [B, 1, Y] or [1, Y] as ``decode`` takes them, zero beyond each row's own, and how many these are.

    Raises:
        ValueError: in one line, for codes or lengths that cannot be.
    """
    ids, most = codes[None] if codes.ndim == 2 else codes, dit.config.codes
    if ids.ndim != 3 or ids.shape[1] != 1 or not ids.shape[0] or ids.dtype.kind not in "iu":
        raise ValueError(
            f"codes: expected whole numbers of shape [B, 1, Y] or [1, Y], got {ids.dtype} of shape {list(codes.shape)}"
        )
    rows, _, longest = ids.shape
    counts = np.full(rows, longest) if lengths is None else np.atleast_1d(to_numpy(lengths))
    if counts.shape != (rows,) or counts.dtype.kind not in "iu" or ((counts < 0) | (counts > longest)).any():
        raise ValueError(
            f"lengths: expected a number of codes from 0 to {longest} for each of {rows} rows, got {counts.tolist()}"
        )
    own = np.where(np.arange(longest) < counts[:, None], ids[:, 0], 0)
    if own.size and (own.min() < 0 or own.max() >= most):
        raise ValueError(f"codes: expected ids from 0 to {most - 1}, got {own.min()} to {own.max()}")
    return own, counts


def decode(
    dit: Any,
    bigvgan: Any,
    codes: Int[np.ndarray, "B Y"],
    lengths: Int[np.ndarray, "B"],
    speakers: Sequence[Speaker],
    *,
    seeds: Sequence[int] | None = None,
    noise: Float32[np.ndarray, "B T Z"] | None = None,
) -> Float32[np.ndarray, "B W"]:
    """The waveforms of whole rows, W = Y * samples a code (480); a row is zero beyond its own samples.

    Rows share a call, the longest first, as long as it has at most ``CALL_FRAMES`` mel frames: memory does not grow with the
    batch.

    Args:
        lengths: codes of each row; its own come first.
        speakers: one a row.
        seeds: of each row's noise.
        noise: given in their place, T = Y * mel frames a code.

    Raises:
        ValueError: a row has more codes than the flow's context.
    """
    if (seeds is None) == (noise is None):
        raise ValueError("expected either seeds or noise: where the flow begins")
    return _whole(dit, bigvgan, codes, lengths, _voices(speakers), _seeds(seeds or [0] * len(codes)), noise)


class FlowStream:
    """Sound of rows whose codes come in pieces.

    Rows go in step: those that have not ended have the same number of codes. With ``streamed``, sound comes as soon as it is
    settled; else all of a row's when it ends, made together with the others that end in the same call, as ``decode`` makes it.
    A streamed row may be of any length, for no window is longer than the flow's context.
    """

    def __init__(self, dit: Any, bigvgan: Any, speakers: Sequence[Speaker], seeds: Sequence[int], *, streamed: bool):
        """Args: ``speakers`` and ``seeds`` are one a row of the batch, rows of padding too."""
        self.dit, self.bigvgan, self.streamed = dit, bigvgan, streamed
        self.voices, self.seeds = _voices(speakers), _seeds(seeds)
        self.codes = np.zeros((len(speakers), 0), np.int32)
        self.live = np.ones(len(speakers), bool)
        # Blocks whose sound has been given, and windows that gave it.
        self.done, self.windows = 0, 0
        # The vocoder must not hear a window's sides in what is kept of it.
        sides = -(-bigvgan.reach // dit.config.block_frames)
        self.back, self.ahead = max(BACK, sides), max(AHEAD, sides)
        self.sizes = [
            min(self.back, done) + new + self.ahead
            for done, new in zip(np.cumsum((0, *NEW[:-1])).tolist(), NEW, strict=True)
        ]

    def hear(
        self,
        codes: Int[Array, "B n"],
        before: Int[Array, "B"],
        after: Int[Array, "B"],
        ended: Bool[Array, "B"],
    ) -> list[Float32[np.ndarray, "w"]]:
        """The samples of each row that its new codes settle; all that is left of a row that ended.

        Args:
            codes: ``after - before`` of them are a row's own, and come first.
            before, after: codes of each row without and with these.
            ended: rows that will have no more; they may be named again, and say nothing then.
        """
        codes, before, counts = np.asarray(codes), np.asarray(before), np.asarray(after)
        self.codes = np.concatenate([self.codes, codes[:, : int((counts - before).max())]], axis=1)
        ending, going = self.live & np.asarray(ended), self.live & ~np.asarray(ended)
        self.live = going
        sound = [np.zeros(0, np.float32) for _ in self.live]
        if self.streamed:
            self._windows(sound, counts, ending, going)
        elif ending.any():
            rows = np.flatnonzero(ending)
            for row, samples in zip(rows, self._row_sound(rows, counts), strict=True):
                sound[row] = samples
        return sound

    def take(self, index: Int[np.ndarray, "b"]) -> None:
        """Keeps some rows, in the order of ``index``."""
        self.codes, self.live, self.seeds = self.codes[index], self.live[index], self.seeds[index]
        self.voices = jax.tree.map(lambda leaf: leaf[index], self.voices)

    def _row_sound(self, rows, counts) -> list[Float32[np.ndarray, "w"]]:
        """All sound of some rows."""
        voices = jax.tree.map(lambda leaf: leaf[rows], self.voices)
        codes, lengths = self.codes[rows, : counts[rows].max()], counts[rows]
        sound = _whole(self.dit, self.bigvgan, codes, lengths, voices, self.seeds[rows], None)
        return [samples[: count * _code_samples(self.dit, self.bigvgan)] for samples, count in zip(sound, lengths, strict=True)]
