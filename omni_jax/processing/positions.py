"""Rotary coordinates (time, height, width) of the tokens of a prompt: TM-RoPE (arXiv:2503.20215, arXiv:2509.17765).

Text and sound advance all three axes together, one position a token. An image or video spreads its merged patches over
height and width from where it starts, and its frames over time at the rate that sound has, `positions_per_second`. What
follows continues behind its last token. Positions are float32 in both families. The families differ in their clock
(processing/tmrope_clock.py): 0.7 s are 9.1 positions in Qwen3-Omni and 17 in Qwen2.5-Omni, which only has whole ones.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from omni_jax.config import ThinkerConfig
from omni_jax.processing.tmrope_clock import clock

Grid = tuple[int, int, int]

_IMAGE, _VIDEO, _AUDIO, _SOUNDING = 1, 2, 3, 4  # kinds of runs of placeholders; the last: a video mixed with its sound
_EXACT = 1 << 24  # float32 counts whole numbers up to here; beyond, x + 1 may be x


def text_positions(mask: Bool[np.ndarray, "B T"]) -> Float[np.ndarray, "3 B T"]:
    """Coordinates of rows of text and audio: all three count the real tokens, wherever the padding is; padding has 0.

    An audio token takes one position, like a text token: a second has as many audio tokens as positions (13, or 25).
    """
    counted = np.where(mask, np.cumsum(mask, axis=1) - 1, 0).astype(np.float32)
    return np.broadcast_to(counted, (3, *counted.shape)).copy()


def token_positions(
    tokens: Int[np.ndarray, "T"],
    images: Sequence[Grid],
    videos: Sequence[tuple[Grid, float]],
    config: ThinkerConfig,
    start: float = 0.0,
) -> Float[np.ndarray, "3 T"]:
    """Coordinates of one row without padding: those of Transformers' `get_rope_index`, to the last bit.

    A video has sound where audio_start stands directly before its placeholders: its run then mixes video and audio
    placeholders, and each gets the position of its own kind. One row may hold videos with and without sound, for which
    the reference gives wrong positions. Runs without start and end tokens are read too. A run that holds several
    images, or several silent videos, is cut by their grids.

    Args:
        tokens: ids, a media placeholder repeated once for each of its features.
        images: patches of each image (time, height, width), in the order of their placeholders.
        videos: patches of each video, and the seconds from one step of time to the next.
        config: token ids, the merge of patches and positions a second.
        start: position of the first token: `next_position` of the earlier tokens when a conversation continues (to the
            last bit where they ended with a medium; within text behind a fraction, float32 may round once more).

    Raises:
        ValueError: in one line, where grids or seconds are impossible or do not fit the placeholders.
    """
    row = np.asarray(tokens)[None]
    return batch_positions(row, np.ones(row.shape, bool), images, videos, config, start)[:, 0]


def batch_positions(
    tokens: Int[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
    images: Sequence[Grid],
    videos: Sequence[tuple[Grid, float]],
    config: ThinkerConfig,
    start: float | Sequence[float] = 0.0,
) -> Float[np.ndarray, "3 B T"]:
    """`token_positions` of each row's real tokens, wherever the padding is; padding has 0.

    Images and videos are those of the whole batch, row by row; start is one for all rows or one for each. Errors are
    those of `token_positions`, with the number of the row.
    """
    rows = _media(tokens, mask, images, videos, config)
    positions, starts = np.zeros((3, *tokens.shape), np.float32), np.broadcast_to(start, len(rows))
    for number, (runs, real) in enumerate(zip(rows, mask, strict=True)):
        positions[:, number, real] = _positions(tokens[number, real], runs, config, starts[number])
    return positions


def next_position(positions: Float[np.ndarray, "3 T"]) -> float:
    """The position of the next token, on all three axes: one behind the last."""
    return float(positions[:, -1].max() + np.float32(1))


def interleave(grid: Grid, seconds: float, audio_tokens: int, config: ThinkerConfig) -> Int[np.ndarray, "T"]:
    """Placeholders of a video with sound, as they stand between audio_start and audio_end.

    Both are merged by time: the tokens of a frame stand before the first audio token that is not earlier than it. Where
    the configuration has `chunk_seconds`, they alternate in turns of that length: the video's tokens, then the sound's.

    Args:
        grid: the video's patches (time, height, width).
        seconds: seconds from one step of the grid to the next.
        audio_tokens: tokens of its sound, at least 0.
        config: token ids, the merge of patches and positions a second.

    Raises:
        ValueError: in one line, for an impossible grid, seconds or number of audio tokens.
    """
    count = _checked_count("video", grid, seconds, config)
    if audio_tokens < 0:
        raise ValueError(f"video: expected 0 or more audio tokens, got {audio_tokens}")
    own = clock(config)
    # In float64, as the reference's processor merges; its model merges again in float32.
    video = np.repeat(own.times(int(grid[0]), seconds, np.float64), count // grid[0])
    return np.where(own.mix(video, np.arange(audio_tokens)), config.video_token, config.audio_token).astype(np.int32)


class _Run(NamedTuple):
    """A run of placeholders: its kind, first token and the one after the last; of an image or video, its grid."""

    kind: int
    first: int
    stop: int
    grid: Grid = (0, 0, 0)
    seconds: float = 0.0


def _media(
    tokens: Int[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
    images: Sequence[Grid],
    videos: Sequence[tuple[Grid, float]],
    config: ThinkerConfig,
) -> list[list[_Run]]:
    """The runs of each row, cut where one medium ends and the next begins. All faults are found here."""
    # If the grid of an image has several steps, they are one second apart.
    given = {"image": [(grid, 1.0) for grid in images], "video": list(videos)}
    taken = dict.fromkeys(given, 0)
    rows: list[list[_Run]] = []
    for number, real in enumerate(mask):
        row = tokens[number, real]
        rows.append([])
        for run in _runs(row, config):
            if run.kind == _AUDIO:
                rows[-1].append(run)
                continue
            noun = "image" if run.kind == _IMAGE else "video"
            while run.first < run.stop:
                name = f"row {number}: " * (len(mask) > 1) + f"{noun} {taken[noun]}"
                left = int((row[run.first : run.stop] != config.audio_token).sum())
                found = f"found {left} placeholders from token {run.first} on"
                if taken[noun] == len(given[noun]):
                    raise ValueError(f"{name}: {found}, but {noun}s given: {taken[noun]}")
                grid, seconds = given[noun][taken[noun]]
                count = _checked_count(name, grid, seconds, config)
                if count > left or (run.kind == _SOUNDING and count < left):
                    raise ValueError(f"{name}: {found}, expected {count}, one for each merged patch")
                end = run.stop if run.kind == _SOUNDING else run.first + count
                rows[-1].append(run._replace(stop=end, grid=grid, seconds=seconds))
                taken[noun], run = taken[noun] + 1, run._replace(first=end)
    for noun, all_given in given.items():
        if len(all_given) > taken[noun]:
            raise ValueError(f"{noun}s given: {len(all_given)}, but the tokens have placeholders for {taken[noun]}")
    return rows


def _checked_count(name: str, grid: Any, seconds: float, config: ThinkerConfig) -> int:
    """The number of tokens of an image or video; raises ValueError if its grid or seconds are impossible."""
    merge, sides = config.vision_encoder.merge, np.asarray(grid)
    if sides.shape != (3,) or sides.dtype.kind not in "iu" or (sides < 1).any() or (sides[1:] % merge).any():
        raise ValueError(
            f"{name}: expected a grid of patches (time, height, width), whole numbers above 0 with height and width "
            f"multiples of {merge}, got {sides.tolist()}"
        )
    time, height, width = sides.tolist()
    most = _EXACT / config.positions_per_second / time
    if not 0 < float(seconds) < most:  # also false for NaN
        raise ValueError(
            f"{name}: expected the seconds from one step of its grid to the next, above 0 and below {most:.7g}, "
            f"got {float(seconds):.7g}"
        )
    return time * height * width // merge**2


def _runs(tokens: Int[np.ndarray, "T"], config: ThinkerConfig) -> list[_Run]:
    """The runs of placeholders of one kind, from left to right."""
    ids = (config.image_token, config.video_token, config.audio_token)
    kinds = np.select([tokens == token for token in ids], [_IMAGE, _VIDEO, _AUDIO], 0)
    for first, stop in _stretches(kinds > _IMAGE):
        if first and kinds[first] == _VIDEO and tokens[first - 1] == config.audio_start:
            kinds[first:stop] = _SOUNDING
    return [_Run(int(kinds[first]), first, stop) for first, stop in _stretches(kinds)]


def _stretches(values: np.ndarray) -> list[tuple[int, int]]:
    """The maximal stretches of one value other than 0: first index and the one after the last."""
    edges = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]
    return [(first, stop) for first, stop in pairwise(edges) if first < stop and values[first]]


def _positions(
    tokens: Int[np.ndarray, "T"], runs: list[_Run], config: ThinkerConfig, start: float
) -> Float[np.ndarray, "3 T"]:
    """Positions of text and media from left to right. Sums are float32 in the reference's order: an ulp would show."""
    positions, at, after = np.empty((3, len(tokens)), np.float32), 0, np.float32(start)
    marks_at = clock(config).marks
    for run in runs:
        seen, heard = run.kind != _AUDIO, run.kind in (_AUDIO, _SOUNDING)
        marks = [(config.audio_start, config.audio_end)] * heard + [(config.vision_start, config.vision_end)] * seen
        opening = 0
        for mark, _ in marks:  # from the placeholders outwards
            opening += int(run.first - opening > at and tokens[run.first - opening - 1] == mark)
        words = np.arange(run.first - opening - at, dtype=np.float32)
        for steps in (words, marks_at(opening)):
            if steps.size:
                positions[:, at : at + steps.size] = after + steps
                at, after = at + steps.size, after + (steps[-1] + np.float32(1))
        sound = tokens[at : run.stop] == config.audio_token
        own = np.empty((3, sound.size), np.float32)
        own[:, sound] = np.arange(sound.sum())
        if seen:
            own[:, ~sound] = _coordinates(run, config)
        positions[:, at : run.stop] = after + own
        at = run.stop
        # No token of a medium has a higher position than its last. A mix that ends in sound is different: the video's
        # corner may be higher. As in the reference, what follows then goes back to just behind the sound.
        after = np.float32(next_position(positions[:, :at]))
        closing = 0
        for _, mark in marks:
            closing += int(at + closing < len(tokens) and tokens[at + closing] == mark)
        if closing:
            positions[:, at : at + closing] = after + marks_at(closing)
            at += closing
            after = positions[0, at - 1] + np.float32(1)
    positions[:, at:] = after + np.arange(len(tokens) - at, dtype=np.float32)
    return positions


def _coordinates(run: _Run, config: ThinkerConfig) -> Float[np.ndarray, "3 T"]:
    """Coordinates of an image's or video's tokens, relative to its first one."""
    (time, *sides), merge = run.grid, config.vision_encoder.merge
    times = clock(config).times(time, run.seconds, np.float32)
    rows, columns = (np.arange(side // merge, dtype=np.float32) for side in sides)
    return np.stack(np.meshgrid(times, rows, columns, indexing="ij")).reshape(3, -1)
