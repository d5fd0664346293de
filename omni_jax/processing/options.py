"""How media are read: one set of options for a request; a part of a message may override some for itself."""

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np

from omni_jax.errors import cut, listed, shown

FETCH_BYTES, FETCH_SECONDS = 2 << 30, 300.0

# Options that a part of a message may set. Which addresses may be asked, and how long, only the caller decides.
OF_A_PART = (
    "min_pixels", "max_pixels", "resized_height", "resized_width", "fps", "nframes", "min_frames", "max_frames",
    "total_pixels", "video_start", "video_end", "audio_start", "audio_end", "load_audio_from_video", "use_audio_in_video",
    "sample_fps",
)  # fmt: skip
# Older names, and names of only one of the two libraries.
SYNONYMS = {"use_audio_in_video": "load_audio_from_video", "sample_fps": "fps"}
RANGES = (
    ("min_pixels", "max_pixels"),
    ("min_frames", "max_frames"),
    ("video_start", "video_end"),
    ("audio_start", "audio_end"),
)
# Of two that exclude each other, the one given closer to the medium wins.
EXCLUDING = (("fps", "nframes"),)
MAY_BE_ZERO = ("min_pixels", "video_start", "audio_start")
ALWAYS = ("max_bytes", "timeout")  # limits that cannot be None
MOST = 2**63 - 1  # of any number; more is a mistake, and arithmetic fails


@dataclass(frozen=True, kw_only=True)
class MediaOptions:
    """Options by the names that qwen-omni-utils and Transformers document; None leaves a choice to the checkpoint.

    Attributes:
        min_pixels: lower bound of an image's area, or of a video frame's.
        max_pixels: upper bound of the same.
        resized_height: height wished for instead; rounded to whole merged patches. Goes with resized_width.
        resized_width: width wished for instead; rounded to whole merged patches. Goes with resized_height.
        fps: frames a second to sample from a video; of frames given as arrays, the rate at which they were taken.
        nframes: frames to sample in all, instead of fps.
        min_frames: lower bound of the number of frames.
        max_frames: upper bound of the number of frames.
        total_pixels: bound of all frames of a video together, in pixels of one frame of each pair.
        video_start: start of the part of a video to take, in seconds.
        video_end: end of the part of a video to take, in seconds.
        audio_start: start of the part of a sound to take, in seconds.
        audio_end: end of the part of a sound to take, in seconds.
        load_audio_from_video: whether a video's sound is read too (Transformers' older name is use_audio_in_video).
        max_bytes: bound of a download, in bytes.
        timeout: bound of a download, in seconds.
        allow_private: whether URLs may lead to private, loopback and link-local addresses.
        allow_local: whether media may be named by paths, file:// URLs and URLs of object stores such as gs://.

    Raises:
        ValueError: every impossible value, in one line.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None
    fps: float | None = None
    nframes: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    total_pixels: int | None = None
    video_start: float | None = None
    video_end: float | None = None
    audio_start: float | None = None
    audio_end: float | None = None
    load_audio_from_video: bool = False
    max_bytes: int = FETCH_BYTES
    timeout: float = FETCH_SECONDS
    allow_private: bool = False
    allow_local: bool = True

    def __post_init__(self) -> None:
        faults = [fault for name in KINDS if (fault := _fault(name, name, getattr(self, name)))]
        if faults := faults or self._contradictions():
            raise ValueError(f"media options: {listed(faults)}")

    def _contradictions(self) -> list[str]:
        faults = []
        for low, high in RANGES:
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                faults.append(f"{low} {least} is above {high} {most}")
        if (self.resized_height is None) != (self.resized_width is None):
            faults.append("resized_height and resized_width go together")
        if self.nframes is not None and self.fps is not None:
            faults.append("nframes and fps exclude each other")
        return faults

    @classmethod
    def named(cls, options: Mapping[str, Any]) -> Self:
        """Options from keywords, synonyms included."""
        return cls().override(options)

    def override(self, options: Mapping[str, Any]) -> Self:
        """These options with some replaced; None keeps one, and options that contradict a replaced one are reset."""
        given = {name: _number(name, value) for name, value in options.items() if value is not None}
        # A fault shows the name by which its option was given.
        if faults := [
            fault for name, value in given.items() if (fault := _fault(name, SYNONYMS.get(name, name), value))
        ]:
            raise ValueError(f"media options: {listed(faults)}")
        for other, name in SYNONYMS.items():
            if other in given and given.setdefault(name, given[other]) != given.pop(other):
                raise ValueError(f"media options: {other} and {name} are one option, but differ")
        gone = {
            one: None for pair in EXCLUDING for one, other in (pair, pair[::-1]) if other in given and one not in given
        }
        for low, high in RANGES:
            for one, other in ((low, high), (high, low)):
                if one in given and other not in given and getattr(self, other) is not None:
                    least, most = (
                        (given[one], getattr(self, other)) if one == low else (getattr(self, other), given[one])
                    )
                    gone |= {other: None} if least > most else {}
        return replace(self, **gone, **given)


# The type of each: bool, int (whole numbers) or float (any number).
KINDS = {
    item.name: bool if item.type is bool else int if "int" in str(item.type) else float for item in fields(MediaOptions)
}
NAMES = frozenset((*KINDS, *SYNONYMS))


def per_conversation(
    media: MediaOptions | None,
    options: Mapping[str, Any],
    count: int,
    *,
    base: Sequence[MediaOptions] = (),
) -> tuple[list[MediaOptions], dict[str, Any]]:
    """How the media of each of ``count`` conversations are read, and the rest of ``options``, which are not of media.

    Args:
        media: options for all, instead of ``base``; or None.
        options: keywords, some of which may be media options by name, each for all or a list of one a conversation.
        count: conversations.
        base: what ``options`` override: one for all, or one a conversation; none for the defaults.

    Raises:
        ValueError: impossible values, or a list of another length.
    """
    if media is not None and not isinstance(media, MediaOptions):
        raise ValueError(
            f"media: expected MediaOptions, got {type(media).__name__}; or give options such as max_pixels=..."
        )
    whole = [media or MediaOptions()] if media is not None or not base else list(base)
    rest = dict(options)
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for name in NAMES & options.keys():
        value = rest.pop(name)
        several = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)
        values = value if several else [value] * count
        if len(values) != count:
            raise ValueError(
                f"{name}: expected one, or one for each of the {count} conversations, got {len(values)}; what holds for one "
                "medium alone stands beside it in its message"
            )
        for row, item in zip(rows, values, strict=True):
            row[name] = item
    whole = whole * count if len(whole) == 1 else whole
    return [each.override(row) for each, row in zip(whole, rows, strict=True)], rest


def misspelt(names: Iterable[str]) -> list[str]:
    """Messages for names that are no option but close to one; others may be options of something else."""
    found = [(name, difflib.get_close_matches(name, NAMES, 1, 0.85)) for name in names if name not in NAMES]
    return [f"unknown option {cut(name)}; did you mean {near[0]}?" for name, near in found if near]


def _number(name: str, value: Any) -> Any:
    """The number that a string holds, as in Qwen's own examples ("sample_fps": "1"); other values as they are."""
    kind = KINDS.get(SYNONYMS.get(name, name))
    if not isinstance(value, str) or kind in (None, bool):
        return value
    try:
        return int(value) if value.strip().isdecimal() else float(value)
    except ValueError:
        return value


def _fault(called: str, name: str, value: Any) -> str:
    """What is wrong with the value of an option; empty if nothing."""
    kind, zero = KINDS[name], name in MAY_BE_ZERO
    if kind is bool:
        right, expected = isinstance(value, bool | np.bool_), "True or False"
    elif value is None and name not in ALWAYS:
        return ""
    elif not is_number(value, whole=kind is int):
        right, expected = False, "a whole number" if kind is int else "a number"
    else:
        number: Any = value
        right = 0 <= number <= MOST and (zero or number != 0)
        expected = ("at least 0" if zero else "more than 0") + (f" and at most {MOST}" if number > 0 else "")
    return "" if right else f"{called} is {shown(value)} (expected {expected})"


def is_number(value: Any, *, whole: bool = False) -> bool:
    """Whether a value is a finite number (a whole one if ``whole``); True and False are not."""
    if isinstance(value, bool | np.bool_):
        return False
    return isinstance(value, numbers.Integral) or (
        not whole and isinstance(value, numbers.Real) and math.isfinite(value)
    )
