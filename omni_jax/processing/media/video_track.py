"""The picture track of a video file: the times of its frames, and the decoding of chosen frames."""

import contextlib
import gc
import itertools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

from omni_jax.errors import about
from omni_jax.processing.media import container
from omni_jax.processing.media.container import HOLE, Packets
from omni_jax.processing.media.image import JPEG_SCAN, MAX_JPEG_SCANS, MAX_PIXELS, to_rgb

Progress = Callable[[int, int, str], None]  # (done, total, name)

# Codecs whose keyframes need no earlier frame. In others, such as GIF, a frame may be drawn on any earlier one.
_RANDOM_ACCESS = (
    *("h264", "hevc", "vvc", "vp8", "libvpx", "vp9", "libvpx-vp9", "av1", "libdav1d"),
    *("mpeg1video", "mpeg2video", "mpeg4", "mjpeg", "prores", "dnxhd", "ffv1"),
)
_TEXT_ART = ("ansi", "bintext", "xbin", "idf")  # decoders with which FFmpeg would show a text file, chosen by its name
_NOUN = "a video"
# Limits of what a file's decoding may cost, checked before it begins: pixels of any file, and for each of its bytes. A
# frame that repeats the one before takes 20 bytes, so 200 kB can take a day to decode. Recordings of still screens have
# 10,000 pixels a byte.
_MAX_DECODED = 1 << 32
_DECODED_PER_BYTE = 1 << 15
_LARGE = 1 << 22  # pixels; of frames this large, none is held longer than needed
_DRAWN_PER_BYTE = 1 << 12  # for codecs that are not in _RANDOM_ACCESS: GIFs, which are small
MAX_PACKETS = 1 << 22  # 19 hours at 60 frames a second
# A decoder holds a frame for each of its threads, and up to 16 reference frames. At 8K, a frame with 8 bits at 4:2:0
# has 50 MB, and one with 10 at 4:2:2, the most that cameras write, 133.
_MAX_FRAME_BYTES = 1 << 27
_THREADS_BYTES = 1 << 27
_MAX_THREADS = 16
_BAND = 256  # rows of a frame that are laid on white at a time
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders drop the alpha channel


@dataclass(frozen=True)
class Index:
    """A track's frames in the order of their times, known before they are decoded.

    Attributes:
        times: When each frame is shown, in ticks, ascending: int64 [frames].
        tick: Seconds.
        rate: Frames a second that the file states; 0 if unknown.
        height: Of the first frame, upright.
        width: Of the first frame, upright.
        cut: Whether frames are missing at the end.
        packets: Time of the frame that each packet completes, in the file's order. None where packets do not state it,
            so that all must be decoded.
        keyframes: Packets at which decoding can start: bool [packets]. It always can at the first, whatever is stated.
        origin: When the first frame is shown, in seconds of the clock that the file's tracks share.
        counted: Whether frames have no times and are known by their number instead.
        pixels_per_byte: Pixels that may be decoded for a byte of the file.
        frame_bytes: Bytes of a decoded frame, in the codec's own pixel format.
    """

    times: np.ndarray
    tick: float
    rate: float
    height: int
    width: int
    cut: bool
    packets: np.ndarray | None
    keyframes: np.ndarray
    origin: float
    counted: bool = False
    pixels_per_byte: int = _DECODED_PER_BYTE
    frame_bytes: int = 1


def read_index(file: BinaryIO, name: str) -> Index:
    """Reads the times of all frames from their packets; only the first frame is decoded.

    Raises:
        ValueError: in one line, when the file is no video, or has no frame that decodes, or too large or too many ones.
    """
    pts, keyframes, whole = [], [], []
    first: Any = None
    with _opened(file, name) as (opened, track, decoder):
        packets = Packets(opened, _NOUN)
        for packet in packets:
            if packet.stream_index == track.index:
                if first is None:
                    first = next(iter(_decoded(decoder, packet) or []), None)
                if len(pts) == MAX_PACKETS:
                    raise ValueError(f"holds more than {MAX_PACKETS} frames; cut it into several files")
                pts.append(packet.pts)
                keyframes.append(packet.is_keyframe)
                whole.append(not (packet.is_discard or packet.is_corrupt))
        if first is None:  # with few pictures, the decoder still holds the first
            first = next(iter(container.decoded(decoder, None) or []), None)
        if first is None:
            raise ValueError(f"no frame decodes; expected a video file, of at most {MAX_PIXELS} pixels a frame")
        frame_bytes = sum(plane.buffer_size for plane in first.planes)
        if frame_bytes > _MAX_FRAME_BYTES:
            raise ValueError(
                f"frames of {frame_bytes / 1e6:.3g} MB ({first.height} x {first.width}, {first.format.name}); expected at most "
                f"{_MAX_FRAME_BYTES / 1e6:.3g}; convert it to 8 bits or to a smaller size"
            )
        form = opened.format.name
        if len(pts) == 1 and (form == "image2" or form.endswith("_pipe")):
            raise ValueError("is a picture; expected a video file; give it as an image")
        told = _are_of_frames(pts, first.pts, reordered=decoder.has_b_frames)
        of_frames = np.array(pts, np.int64) if told else None
        # Frames shown before the first one that decodes need a keyframe that is not in the file.
        shown = np.arange(0) if of_frames is None else np.sort(of_frames[np.array(whole) & (of_frames >= first.pts)])
        tick = float(track.time_base)
        height, width, _ = _upright(first).shape
        return Index(
            times=shown,
            tick=tick,
            rate=float(track.average_rate or 0),
            height=height,
            width=width,
            cut=packets.cut,
            packets=of_frames,
            keyframes=np.array(keyframes) & (decoder.name in _RANDOM_ACCESS),
            origin=float(shown[0] if shown.size else first.pts or 0) * tick,
            pixels_per_byte=_DECODED_PER_BYTE if decoder.name in _RANDOM_ACCESS else _DRAWN_PER_BYTE,
            frame_bytes=frame_bytes,
        )


def _are_of_frames(pts: list[int | None], first: int | None, *, reordered: bool) -> bool:
    """Whether packets' times can be frames' times: all different, and not in storage order if frames are not."""
    known = [time for time in pts if time is not None]
    if first not in known or len(set(known)) < len(pts):
        return False
    if (max(known) - min(known)) * len(known) >= 1 << 62:  # beyond the integers in which frames are chosen
        return False
    return not reordered or any(a > b for a, b in itertools.pairwise(known))


def decode_index(file: BinaryIO, name: str, index: Index, progress: Progress | None) -> Index:
    """The index of a file whose packets do not state the times of all frames: found by decoding every frame.

    Raises:
        ValueError: in one line, when neither frames nor the file state times.
    """
    whole = [(0, len(index.keyframes) - 1)]
    _require_decodable(file, name, index, whole)
    pts: list[Any] = [frame.pts for frame in _frames(file, name, index, whole, _Meter(whole, name, progress))]
    if index.packets is None and (None in pts or any(a >= b for a, b in itertools.pairwise(pts))):
        if not index.rate:
            raise ValueError(f"{name}: its frames have no times and it states no rate; convert it to MP4")
        return replace(index, times=np.arange(len(pts)), tick=1 / index.rate, counted=True)
    # After damage frames may come out of order, twice or without a time; packets' times, if any, are complete.
    times, cut = np.array(sorted({*pts} - {None}), np.int64), index.cut
    if index.packets is not None and times.size:
        after = np.searchsorted(times, index.times)
        near = np.stack([times[np.minimum(after, len(times) - 1)], times[np.maximum(after - 1, 0)]])
        lost = index.times[np.abs(near - index.times).min(axis=0) * index.tick > HOLE]
        if lost.size:
            times, cut = times[times < lost[0]], True
    origin = float(times[0]) * index.tick if times.size else index.origin
    return replace(index, times=times, cut=cut, packets=None, origin=origin)


def decode(
    file: BinaryIO, name: str, index: Index, chosen: np.ndarray, progress: Progress | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Decodes chosen frames and as few others as possible, and holds one at a time.

    Args:
        file: The file.
        name: Its name in errors.
        index: Its index.
        chosen: Numbers of frames, ascending, each once.
        progress: Called now and then with the packets decoded, those to decode, and the name.

    Yields:
        Number and pixels, uint8 [h, w, 3], upright, of each chosen frame that is decoded; in odd files, not all are.
    """
    times = index.times[chosen]
    whole = [(0, len(index.keyframes) - 1)]
    parts = whole if index.packets is None else _parts(index.packets, index.keyframes, times)
    _require_decodable(file, name, index, parts)
    wanted: dict[int | None, int] = dict(zip(times.tolist(), chosen.tolist(), strict=True))
    meter = _Meter(parts, name, progress)
    if index.height * index.width > _LARGE:
        gc.collect()  # a container of PyAV is a reference cycle, and the one of the index holds a frame
    orders = itertools.count()  # enumerate would hold each frame while the next is decoded
    for frame in _frames(file, name, index, parts, meter):
        order = next(orders)
        number = wanted.pop(order if index.counted else frame.pts, None)
        shown = [] if number is None else [(number, _upright(frame))]
        del frame  # no reference is left while its pixels are resized, or the next is decoded
        while shown:
            yield shown.pop()
        if not wanted:
            break
    meter.advance(meter.total)


def _parts(packets: np.ndarray, keyframes: np.ndarray, times: np.ndarray) -> list[tuple[int, int]]:
    """First and last packet of each stretch to decode, to get the frames of some times."""
    starts, order = np.flatnonzero(keyframes), np.argsort(packets)
    parts: list[tuple[int, int]] = []
    for time, stop in zip(times, order[np.searchsorted(packets, times, sorter=order)], strict=True):
        # Frames shown before a keyframe but stored behind it (an open GOP) need the keyframe before that one.
        start = max(starts[(starts <= stop) & (packets[starts] <= time)], default=0)
        if parts and start <= parts[-1][1] + 1:
            start, previous = parts.pop()
            stop = max(stop, previous)
        parts.append((int(start), int(stop)))
    return parts


def _require_decodable(file: BinaryIO, name: str, index: Index, parts: list[tuple[int, int]]):
    """Raises ValueError for stretches with so many pixels in so few bytes that decoding them would take hours."""
    frames = sum(stop - start + 1 for start, stop in parts)
    size = file.seek(0, os.SEEK_END)
    most = max(_MAX_DECODED, size * index.pixels_per_byte)
    if frames * index.height * index.width > most:
        raise ValueError(
            f"{name}: {frames} frames of {index.height} x {index.width} pixels would have to be decoded, of {size} bytes; "
            f"expected at most {most / 1e9:.1f} billion pixels; take a part by video_start and video_end, or convert it to a "
            "smaller size"
        )


class _Meter:
    """Reports to a callback how many of some packets are done, a hundred times at most."""

    def __init__(self, parts: list[tuple[int, int]], name: str, progress: Progress | None):
        self.done, self.total = 0, sum(stop - start + 1 for start, stop in parts)
        self.name, self.progress = name, progress

    def advance(self, to: int):
        """Sets the number of packets done, and calls the callback at each hundredth of the total."""
        before, self.done = self.done, to
        if self.progress and to * 100 // self.total > before * 100 // self.total:
            self.progress(to, self.total, self.name)


def _frames(
    file: BinaryIO, name: str, index: Index, parts: list[tuple[int, int]], meter: _Meter
) -> Iterator[av.VideoFrame]:
    """Decodes stretches of packets, each from a keyframe on.

    All packets are read, which costs little; containers seek by times that are not exact.
    """
    with _opened(file, name) as (opened, track, decoder):
        decoder.thread_type = "AUTO"
        decoder.thread_count = max(1, min(os.cpu_count() or 1, _MAX_THREADS, _THREADS_BYTES // index.frame_bytes))
        left = iter(parts)
        start, stop = next(left)
        packets = (packet for packet in Packets(opened, _NOUN) if packet.stream_index == track.index)
        for position, packet in enumerate(packets):
            if position < start:
                continue
            frames = _decoded(decoder, packet) or []
            if position == stop:
                frames += container.decoded(decoder, None) or []
                decoder.flush_buffers()
                start, stop = next(left, (math.inf, math.inf))
            meter.advance(meter.done + 1)
            while frames:
                yield frames.pop(0)  # no reference is left while the next is decoded
            if start == math.inf:
                return


def _decoded(decoder: Any, packet: av.Packet) -> list[Any] | None:
    """The frames that a packet completes; None if it is damaged.

    Raises:
        ValueError: in one line, where decoding the packet would pass over the picture too often.
    """
    # Each scan of a JPEG passes over the whole picture, and takes only 50 bytes of a file.
    if "jpeg" in decoder.name and bytes(packet).count(JPEG_SCAN) > MAX_JPEG_SCANS:
        raise ValueError(f"a frame of more than {MAX_JPEG_SCANS} scans; expected no more; convert it to H.264 in MP4")
    return container.decoded(decoder, packet)


@contextlib.contextmanager
def _opened(file: BinaryIO, name: str) -> Iterator[tuple[Any, Any, Any]]:
    """Opens a file as a container, with its first picture track and a decoder for it; errors begin with the name."""
    bound = {"max_pixels": str(MAX_PIXELS)}
    with about(name), container.opened(file, _NOUN, **bound) as opened:
        track = _picture_track(opened)
        decoder = track.codec_context
        stated = {key.lower(): value for key, value in track.metadata.items()}
        if stated.get("alpha_mode") == "1" and decoder.name in _WITH_ALPHA:
            decoder = av.CodecContext.create(_WITH_ALPHA[decoder.name], "r")
        decoder.options = bound
        yield opened, track, decoder


def _picture_track(opened: Any) -> Any:
    tracks = opened.streams.video
    moving = [track for track in tracks if not track.disposition & Disposition.attached_pic]
    if not moving:
        holds = ["sound"] * bool(opened.streams.audio) + ["a cover picture"] * bool(tracks)
        raise ValueError(f"holds {' and '.join(holds) or 'no pictures'}; expected a video file")
    decoder = moving[0].codec_context
    if decoder is None:
        raise ValueError("its codec cannot be decoded here; convert it to H.264 in MP4")
    if decoder.name in _TEXT_ART:
        raise ValueError("is text; expected a video file")
    return moving[0]


def _on_white(pixels: np.ndarray, alpha: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Blends pixels [h, w, 3] with their alpha [h, w] on white, into ``out`` [h, w, 3].

    In bands, because Pillow's pictures of a whole frame would take several times its size.
    """
    for top in range(0, len(pixels), _BAND):
        rows = slice(top, top + _BAND)
        out[rows] = np.asarray(to_rgb(Image.fromarray(np.dstack([pixels[rows], alpha[rows]]))))
    return out


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """A frame's pixels, uint8 [h, w, 3], on white, turned and mirrored as its file states."""
    # A GIF's pixels are read in place, because a copy at 8K takes 130 MB. Those of an AVI may be stored from the bottom
    # up, which a negative line size shows.
    if frame.format.name == "bgra" and frame.planes[0].line_size > 0:
        plane: Any = frame.planes[0]
        lines = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : 4 * frame.width]
        held = lines.reshape(frame.height, frame.width, 4)
        pixels = _on_white(held[..., 2::-1], held[..., 3], np.empty((*held.shape[:2], 3), np.uint8))
    else:
        pixels = frame.to_ndarray(format="rgb24")
        if any(part.is_alpha for part in frame.format.components):
            # In conversion to rgba, FFmpeg loses the last columns at some widths.
            pixels = _on_white(pixels, frame.to_ndarray(format="gbrap")[..., 3], pixels)
    if (matrix := frame.side_data.get("DISPLAYMATRIX")) is None:
        return pixels
    # A point (x, y) is shown at (a x + c y, b x + d y); other angles are rounded to the nearest right one.
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
