"""The flow vocoder: from codes to sound, of whole rows or of a stream. Calls DiT and BigVGAN in their static shapes.

A row's sound does not depend on the batch or the padding: padding is masked, and noise depends on a seed and the number
of a frame.

A stream is made of overlapping windows of blocks (24 mel frames, 12 codes, 0.24 s): ``BACK`` blocks of context, the new
ones, ``AHEAD`` of look-ahead. Each window is computed as if it were a whole row, at its own positions and from the
noise that its frames have in the whole row; only the sound of the new blocks is kept. So a stream's only state is its
codes, and errors cannot accumulate.

A stream does not equal the whole row to the last digit. One direction of the flow has a receptive field of two blocks
back and one ahead, but a row takes 36 directions in turn, whose receptive fields add up; the effect shrinks with each
block. Errors of windows relative to the largest sample (random weights of the usual scale, the worse of two seeds;
float32 rounds 7e-7):

    BACK, AHEAD        2, 1   3, 2   4, 2   3, 3   4, 3   4, 4
    error, 4 layers    1e-2   3e-4   3e-4   3e-4   6e-6   4e-6
    error, 22 layers   4e-3   7e-5   7e-5   5e-5   2e-6   2e-6

With 4 and 3 a stream equals the whole row to 1e-4, with a margin for weights whose blocks depend more on each other,
and its first sound needs 48 codes.

Programs, for each power of two of rows: BigVGAN has the four sizes of windows and a fifth for longer rows; the DiT has
the same four and the sizes that whole rows are padded to, eight an octave. (They compile in a second, BigVGAN's in
twenty.)
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Float32, Int, Shaped, UInt32

from omni_jax.buckets import bucket
from omni_jax.config.speech import Speaker
from omni_jax.models.qwen2_5_omni.bigvgan import BigVGAN
from omni_jax.models.qwen2_5_omni.dit import DiT, frame_noise
from omni_jax.parallel.multihost import to_host

# Blocks of a window beside its new ones; more if BigVGAN's receptive field needs it: edges of windows are never heard.
BACK, AHEAD = 4, 3
# New blocks a window: a stream begins with one, for an early first sound, and grows so that little is computed twice.
NEW = (1, 2, 4, 8)
# Blocks of BigVGAN's windows in rows longer than a stream's.
LONG = 27
# Mel frames of a call, over all rows: 41 s of speech. Bounds its memory for any batch; a longer row gets its own call.
MEL_FRAMES_PER_CALL = 4096


@struct.dataclass
class Rows:
    """Each row's speaker, and where its flow begins: at noise from its seed, or at given noise.

    Attributes:
        speaker: speaker embeddings.
        mel: reference mel frames.
        mel_lengths: reference mel frames of each row.
        seeds: of the noise.
        noise: given noise; None to draw it.
    """

    speaker: Float32[np.ndarray, "B D"]
    mel: Float32[np.ndarray, "B A Z"]
    mel_lengths: Int[np.ndarray, "B"]
    seeds: UInt32[np.ndarray, "B"]
    noise: Float32[np.ndarray, "B T Z"] | None = None

    @classmethod
    def of(cls, speakers: Sequence[Speaker], seeds: Sequence[int], noise: Any = None) -> "Rows":
        lengths = np.array([speaker.ref_mel.shape[1] for speaker in speakers], np.int32)
        most = bucket(int(lengths.max()))
        return cls(
            speaker=np.concatenate([speaker.cond for speaker in speakers]),
            mel=np.concatenate([_widened(speaker.ref_mel, most) for speaker in speakers]),
            mel_lengths=lengths,
            seeds=np.array([int(seed) & 0xFFFFFFFF for seed in seeds], np.uint32),
            noise=noise,
        )

    def select(self, index: Int[np.ndarray, "b"]) -> "Rows":
        return jax.tree.map(lambda leaf: leaf[index], self)


@partial(jax.jit, static_argnames=("frames", "bins"))
def _noise(
    seeds: UInt32[Array, "B"], start: Int[Array, ""], *, frames: int, bins: int
) -> Float32[Array, "B {frames} {bins}"]:
    return jax.vmap(lambda seed: frame_noise(jax.random.key(seed), frames, bins, start))(seeds)


@jax.jit
def mel_of_codes(
    dit: DiT,
    codes: Int[Array, "B Y"],
    lengths: Int[Array, "B"],
    speaker: Float[Array, "B D"],
    mel: Float[Array, "B A Z"],
    mel_lengths: Int[Array, "B"],
    noise: Float[Array, "B T Z"],
    start: Int[Array, "B"],
) -> Float32[Array, "B T Z"]:
    return dit.sample(codes, lengths, speaker, mel, mel_lengths, noise, start)


@jax.jit
def samples_of_mel(
    bigvgan: BigVGAN, mel: Float[Array, "B A Z"], first: Int[Array, "B"], end: Int[Array, "B"]
) -> Float32[Array, "B A*{bigvgan.frame_samples}"]:
    return bigvgan.decode_window(mel, first, end)


def decode(
    dit: DiT,
    bigvgan: BigVGAN,
    codes: Int[np.ndarray, "B Y"],
    lengths: Int[np.ndarray, "B"],
    speakers: Sequence[Speaker],
    *,
    seeds: Sequence[int] | None = None,
    noise: Float32[np.ndarray, "..."] | None = None,
) -> Float32[np.ndarray, "B W"]:
    """The waveforms of whole rows, W = Y * samples a code (480); a row is zero beyond its own samples.

    Args:
        dit: makes mel frames of codes.
        bigvgan: makes samples of mel frames.
        codes: a row's own come first.
        lengths: codes of each row.
        speakers: one a row.
        seeds: of each row's noise.
        noise: given instead of seeds, [B, T, Z] with T = Y * mel frames a code.

    Raises:
        ValueError: a row has more codes than the flow's context; seeds and noise, or neither; noise of another shape.
    """
    if (seeds is None) == (noise is None):
        raise ValueError(
            "decode: expected either seeds or noise for the flow to begin at, got both or neither; give one"
        )
    wanted = (len(codes), codes.shape[1] * dit.config.repeats, dit.config.mel_bins)
    if noise is not None and noise.shape != wanted:
        raise ValueError(
            f"noise: expected shape {list(wanted)}, {dit.config.repeats} mel frames a code, got {list(noise.shape)}"
        )
    rows = Rows.of(speakers, [0] * len(codes) if seeds is None else seeds, noise)
    return _whole(dit, bigvgan, codes, lengths, rows)


class FlowStream:
    """Streams the sound of rows whose codes come in pieces, as soon as it is final; a row may be of any length.

    Rows advance together: those that have not ended have the same number of codes.
    """

    def __init__(self, dit: DiT, bigvgan: BigVGAN, speakers: Sequence[Speaker], seeds: Sequence[int]):
        """Starts a stream; ``speakers`` and ``seeds`` are one a row of the batch, padding rows included."""
        self.dit, self.bigvgan = dit, bigvgan
        self.rows = Rows.of(speakers, seeds)
        self.codes = np.zeros((len(speakers), 0), np.int32)
        self.live = np.ones(len(speakers), bool)
        # Blocks whose sound was returned for rows that go on, and the number of windows for them.
        self.done, self.windows = 0, 0

    def add_codes(
        self,
        codes: Int[np.ndarray, "B n"],
        before: Int[np.ndarray, "B"],
        after: Int[np.ndarray, "B"],
        ended: Bool[np.ndarray, "B"],
    ) -> list[Float32[np.ndarray, "_w"]]:
        """Adds codes and returns the samples of each row that became final; for a row that ended, all that are left.

        Args:
            codes: a row's ``after - before`` new ones come first.
            before: codes of each row without these.
            after: codes of each row with these.
            ended: rows that will have no more, padding rows included. They may be named again, and have no samples
                then.
        """
        counts, over = np.asarray(after), np.asarray(ended)
        new = np.asarray(codes)[:, : int((counts - np.asarray(before)).max())]
        self.codes = np.concatenate([self.codes, new], axis=1)
        ending, self.live = self.live & over & (counts > 0), self.live & ~over
        sound = [[np.zeros(0, np.float32)] for _ in counts]
        for row, samples in self._settled(counts, ending):
            sound[row].append(samples)
        return [np.concatenate(parts) for parts in sound]

    def keep_rows(self, index: Int[np.ndarray, "b"]) -> None:
        """Keeps some rows, in the order of ``index``."""
        self.codes, self.live, self.rows = self.codes[index], self.live[index], self.rows.select(index)

    def _settled(
        self, counts: Int[np.ndarray, "B"], ending: Bool[np.ndarray, "B"]
    ) -> Iterator[tuple[int, Float32[np.ndarray, "_w"]]]:
        """Rows and their final samples: for rows that go on, of the windows that are full; for rows that end, all."""
        block, each = _block_codes(self.dit), _code_samples(self.dit, self.bigvgan)
        back, ahead, sizes = _sizes(self.dit, self.bigvgan)
        done, left = self.done, ending
        while True:
            start = max(0, done - back)
            size = sizes[min(self.windows, len(sizes) - 1)]
            due = self.live & (counts >= (start + size) * block)
            if due.any():
                self.done, self.windows = start + size - ahead, self.windows + 1
            elif left.any():  # for rows that end only, a window that holds their rest
                needed = -(-counts[left].max() // block) - start
                size = next((size for size in sizes if size >= needed), sizes[-1])
            else:
                return
            rows = np.flatnonzero(due | left)
            first, settled, end = (at * block for at in (start, start + size - ahead, start + size))
            made = _sound(
                self.dit, self.bigvgan, _widened(self.codes[rows, first:end], end - first),
                np.clip(counts[rows] - first, 0, end - first), self.rows.select(rows), first,
            )  # fmt: skip
            whole = left & (counts <= end)
            for row, samples in zip(rows.tolist(), made, strict=True):
                last = counts[row] if whole[row] else settled
                yield row, samples[(done * block - first) * each : (last - first) * each]
            done, left = start + size - ahead, left & ~whole


def _whole(
    dit: DiT, bigvgan: BigVGAN, codes: Int[np.ndarray, "B Y"], lengths: Int[np.ndarray, "B"], rows: Rows
) -> Float32[np.ndarray, "B W"]:
    """The sound of whole rows. Rows of similar lengths share a call, the longest first."""
    most, block, each = dit.config.context // dit.config.repeats, _block_codes(dit), _code_samples(dit, bigvgan)
    if lengths.max(initial=0) > most:
        raise ValueError(
            f"codes: expected at most {most} of a row, got {lengths.max()}; cut the speech into pieces, or stream it"
        )
    sound = np.zeros((len(codes), codes.shape[1] * each), np.float32)
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    while order.size:
        size = min(most, block * _slots(-(-int(lengths[order[0]]) // block)))
        index, order = np.split(order, [min(len(order), _room(size * dit.config.repeats))])
        made = _sound(dit, bigvgan, _widened(codes[index, :size], size), lengths[index], rows.select(index), 0)
        sound[index, : size * each] = made[:, : sound.shape[1]]
    return sound


def _sound(
    dit: DiT, bigvgan: BigVGAN, codes: Int[np.ndarray, "B Y"], lengths: Int[np.ndarray, "B"], rows: Rows, first: int
) -> Float32[np.ndarray, "B W"]:
    """The sound of pieces of rows, which begin at their code ``first``, as if nothing came before or after them."""
    config, batch, frames = dit.config, len(codes), codes.shape[1] * dit.config.repeats
    made = []
    for part in np.split(np.arange(batch), range(_room(frames), batch, _room(frames))):
        index = np.pad(part, (0, (1 << (len(part) - 1).bit_length()) - len(part)), mode="edge")
        own, counts, start = rows.select(index), lengths[index].astype(np.int32), np.int32(first * config.repeats)
        if own.noise is None:
            noise = _noise(own.seeds, start, frames=frames, bins=config.mel_bins)
        else:
            noise = _widened(own.noise[:, start : start + frames], frames)
        heard = codes[index].astype(np.int32), counts, own.speaker, own.mel, own.mel_lengths
        mel = to_host(mel_of_codes(dit, *heard, noise, np.full(len(index), start)))
        made.append(_waveform(dit, bigvgan, mel, counts * config.repeats)[: len(part)])
    return np.concatenate(made)


def _waveform(
    dit: DiT, bigvgan: BigVGAN, mel: Float32[np.ndarray, "B A Z"], lengths: Int[np.ndarray, "B"]
) -> Float32[np.ndarray, "B A*{bigvgan.frame_samples}"]:
    """BigVGAN over mel frames: in one window if it fits, else in several that overlap by its receptive field."""
    frames, receptive_field, each = mel.shape[1], bigvgan.receptive_field, bigvgan.frame_samples
    sizes = [size * dit.config.block_frames for size in (*_sizes(dit, bigvgan)[2], LONG)]
    size = next((size for size in sizes if size >= frames), sizes[-1])
    side = receptive_field if size < frames else 0
    mel, sound = np.pad(mel, [(0, 0), (side, 0), (0, 0)]), []
    for start in range(0, frames, size - 2 * side):
        window = _widened(mel[:, start : start + size], size)
        samples = samples_of_mel(bigvgan, window, np.full_like(lengths, side - start), lengths + side - start)
        sound.append(to_host(samples)[:, side * each : (size - side) * each])
    return np.concatenate(sound, axis=1)[:, : frames * each]


def _sizes(dit: DiT, bigvgan: BigVGAN) -> tuple[int, int, list[int]]:
    """Blocks of context, blocks of look-ahead, and blocks of each of a stream's windows; the first has no context."""
    sides = -(-bigvgan.receptive_field // dit.config.block_frames)
    back, ahead, done = max(BACK, sides), max(AHEAD, sides), np.cumsum((0, *NEW[:-1])).tolist()
    return back, ahead, [min(back, before) + new + ahead for before, new in zip(done, NEW, strict=True)]


def _slots(blocks: int) -> int:
    """The next of 1, 2, ... 16, 18, ... 32, 36, ...: at most an eighth is padding."""
    step = 1
    while 16 * step < blocks:
        step *= 2
    return -(-blocks // step) * step


def _room(frames: int) -> int:
    """The number of rows of so many frames that share a call, a power of two."""
    return 1 << (max(1, MEL_FRAMES_PER_CALL // frames).bit_length() - 1)


def _block_codes(dit: DiT) -> int:
    return dit.config.block_frames // dit.config.repeats


def _code_samples(dit: DiT, bigvgan: BigVGAN) -> int:
    return dit.config.repeats * bigvgan.frame_samples


def _widened(x: Shaped[np.ndarray, "B _ *rest"], size: int) -> Shaped[np.ndarray, "B {size} *rest"]:
    """The array padded with zeros at the end of its second axis."""
    return np.pad(x, [(0, 0), (0, size - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])
