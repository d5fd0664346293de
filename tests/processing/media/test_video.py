"""Videos of any container, codec, rate and rotation give the right frames at the right times; faults are named."""

import base64
import io
import math
import struct
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from omni_jax.processing.media import patches, video, video_track
from omni_jax.processing.options import MediaOptions

CONFIG = patches.PatchConfig()
CONTEXT = 65_536
ROWS, COLUMNS = 2, 8  # size of the black and white blocks that encode a picture's number
RATE = 25

H264 = {"codec": "libx264", "options": {"g": "12", "bf": "3"}}
OPEN_GOP = {"codec": "libx264", "options": {"g": "12", "bf": "3", "x264-params": "open-gop=1"}}
REFRESH = {"codec": "libx264", "options": {"g": "25", "bf": "0", "x264-params": "intra-refresh=1"}}
HEVC = {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=12:open-gop=1"}}
MPEG4 = {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}, "bit_rate": 2_000_000}
MPEG2 = {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}, "bit_rate": 2_000_000}
VP9 = {"codec": "libvpx-vp9", "options": {"g": "12", "deadline": "realtime", "cpu-used": "8"}}
LOSSLESS = {"codec": "ffv1", "options": {"g": "12"}}
GIF = {"codec": "gif", "form": "rgb8"}
FILMS = [
    ("mp4", H264), ("mp4", OPEN_GOP), ("mkv", OPEN_GOP), ("ts", OPEN_GOP), ("avi", H264), ("mov", REFRESH), ("ts", REFRESH),
    ("mp4", HEVC), ("mp4", MPEG4), ("avi", MPEG4), ("mpg", MPEG2), ("ts", MPEG2), ("webm", VP9), ("mkv", LOSSLESS),
    ("gif", GIF), ("flv", {"codec": "flv", "options": {"g": "12"}, "bit_rate": 2_000_000}),
    ("avi", {"codec": "mjpeg", "form": "yuvj420p"}),
]  # fmt: skip


def picture(number, size=(64, 128)):
    """A grey picture with its number in blocks, black for 0: the lowest bit at the top left."""
    bits = (number >> np.arange(ROWS * COLUMNS)) & 1
    blocks = (40 + 170 * bits).astype(np.uint8).reshape(ROWS, COLUMNS)
    grey = blocks.repeat(size[0] // ROWS, axis=0).repeat(size[1] // COLUMNS, axis=1)
    return np.stack([grey] * 3, axis=-1)


def numbers(frames):
    """The numbers that the frames of a clip encode."""
    rows = (np.arange(ROWS) * 2 + 1) * frames.shape[1] // (2 * ROWS)
    columns = (np.arange(COLUMNS) * 2 + 1) * frames.shape[2] // (2 * COLUMNS)
    bits = frames[:, rows][:, :, columns].mean(axis=-1).reshape(len(frames), -1) > 127
    return (bits << np.arange(ROWS * COLUMNS)).sum(axis=1).tolist()


def film(
    path, count=100, *, codec="mpeg4", options=None, bit_rate=None, form="yuv420p", rate=RATE, times=None, make=picture
):
    """Writes a video of numbered pictures, at times in milliseconds where given; returns its path."""
    tick = Fraction(1, rate) if times is None else Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = make(0).shape[:2]
        stream.pix_fmt = form
        stream.codec_context.time_base = tick
        if bit_rate:
            stream.bit_rate = bit_rate
        for number in range(count):
            # By one thread: with several threads some formats get a seam.
            frame = av.VideoFrame.from_ndarray(make(number), format="rgb24").reformat(format=form, threads=1)
            frame.pts, frame.time_base = number if times is None else times[number], tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def load(source, *, context=CONTEXT, name=None, progress=None, **options):
    return video.load(source, CONFIG, MediaOptions(**options), context=context, name=name, progress=progress)


def fault(*args, **options):
    with pytest.raises(ValueError, match=r".") as caught:
        load(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def evenly(total, count, first=0):
    """The frames by Qwen's documented rule: linspace over their numbers, rounded, halves to even."""
    return [first + round(Fraction(step * (total - 1), count - 1)) for step in range(count)]


def in_turn(path, size):
    """All pictures of a file, decoded one after another by one thread, in the size of a clip's frames."""
    with av.open(str(path)) as container:
        return [
            patches.resize(Image.fromarray(frame.to_ndarray(format="rgb24")), size)
            for frame in container.decode(video=0)
        ]


# Which frames


@given(total=st.integers(2, 3000), part=st.floats(0, 1), start=st.integers(-(2**40), 2**40), step=st.integers(1, 2**20))
def test_at_a_constant_rate_frames_equal_linspace(total, part, start, step):
    count = 2 + int(part * (total - 2))
    chosen = video.nearest_frames(start + step * np.arange(total), count)
    assert chosen.tolist() == evenly(total, count)


def test_halves_are_rounded_to_the_even_frame():
    assert video.nearest_frames(np.arange(4), 3).tolist() == [0, 2, 3]
    assert video.nearest_frames(np.arange(6), 3).tolist() == [0, 2, 5]


@given(st.sets(st.integers(-1000, 100_000), min_size=2, max_size=60), st.integers(2, 80))
def test_at_a_variable_rate_frames_are_nearest_in_time(times, count):
    times = np.array(sorted(times))
    chosen = video.nearest_frames(times, count)
    for step, frame in enumerate(chosen):
        wanted = times[0] + Fraction(int(step * (times[-1] - times[0])), count - 1)
        assert abs(times[frame] - wanted) == min(abs(int(time) - wanted) for time in times)


@pytest.mark.parametrize(
    ("total", "rate", "options", "expected"),
    [  # by qwen-omni-utils 0.0.9's smart_nframes
        (300, 30, {}, 20),
        (300, 30000 / 1001, {}, 20),
        (301, 24, {}, 24),
        (12, 30, {}, 4),
        (5, 30, {}, 4),
        (3, 30, {}, 2),
        (2, 30, {}, 2),
        (100_000, 30, {}, 768),
        (300, 30, {"fps": 1}, 10),
        (300, 30, {"fps": 0.1}, 4),
        (300, 30, {"fps": 120}, 300),
        (301, 30, {"fps": 120}, 300),
        (300, 30, {"min_frames": 33}, 34),
        (300, 30, {"max_frames": 9}, 8),
        (30, 30, {"min_frames": 50, "max_frames": 100}, 30),
        (100_000, 30, {"max_frames": 2000}, 2000),
        (300, 30, {"nframes": 7}, 8),
        (300, 30, {"nframes": 5}, 4),
        (300, 30, {"nframes": 300}, 300),
    ],
)
def test_the_number_of_frames_equals_qwen_omni_utils(total, rate, options, expected):
    assert video.frame_count(total, rate, CONFIG, MediaOptions(**options), context=CONTEXT) == expected


@pytest.mark.parametrize(
    ("height", "width", "count", "options", "expected"),
    [  # by qwen-omni-utils 0.0.9's fetch_video
        (1080, 1920, 20, {}, (640, 1152)),
        (1080, 1920, 700, {}, (416, 768)),
        (1080, 1920, 768, {}, (384, 736)),
        (240, 320, 8, {}, (320, 448)),
        (480, 640, 8, {}, (480, 640)),
        (480, 640, 8, {"max_pixels": 200_000}, (384, 512)),
        (1080, 1920, 20, {"max_pixels": 10**7}, (640, 1152)),
        (1080, 1920, 20, {"min_pixels": 10**6}, (768, 1344)),
        (1080, 1920, 100, {"total_pixels": 20_000_000}, (448, 832)),
        (480, 640, 8, {"resized_height": 100, "resized_width": 333}, (96, 320)),
    ],
)
def test_the_frame_size_equals_qwen_omni_utils(height, width, count, options, expected):
    size = video.frame_size(height, width, count, CONFIG, MediaOptions(**options), context=10**6)
    assert size == expected


def test_max_pixels_below_the_minimum_lowers_the_minimum():
    height, width = video.frame_size(480, 640, 8, CONFIG, MediaOptions(max_pixels=50_000), context=CONTEXT)
    assert 40_000 < height * width <= 50_000


@settings(max_examples=300)
@given(
    st.integers(1, 10**6), st.integers(32, 2200), st.floats(0.2, 5), st.sampled_from([256, 1024, 32_768, 65_536, 10**6])
)
def test_by_default_a_video_fits_the_context(total, height, ratio, context):
    count = video.frame_count(total, 30.0, CONFIG, MediaOptions(), context=context)
    height, width = video.frame_size(
        height, max(round(height * ratio), 1), count, CONFIG, MediaOptions(), context=context
    )
    assert count // 2 * height * width // CONFIG.factor**2 <= 0.95 * context


def test_several_videos_share_the_context():
    alone = {"config": CONFIG, "options": MediaOptions(), "context": 40_000}
    for videos in (2, 3, 9):
        shared = {**alone, "context": 40_000 // videos}
        count = video.frame_count(90_000, 25.0, **alone, videos=videos)
        assert count == video.frame_count(90_000, 25.0, **shared)
        assert video.frame_size(480, 640, count, **alone, videos=videos) == video.frame_size(480, 640, count, **shared)
    large = MediaOptions(min_pixels=1_000_000)  # requested frames are returned if they fit the context
    assert np.prod(video.frame_size(480, 640, 70, CONFIG, large, context=40_000, videos=9)) >= 1_000_000


def test_frames_beyond_the_context_are_refused_before_decoding(tmp_path):
    path = film(tmp_path / "a.mp4")
    assert fault(path, nframes=100, min_pixels=3_000_000, name="x") == (
        "x: 100 frames of 1248 x 2464 pixels make 150150 tokens, but the context holds 65536; "
        "take fewer frames (fps, max_frames) or smaller ones (max_pixels)"
    )


# Files


@pytest.mark.parametrize(("suffix", "coding"), FILMS)
def test_files_of_every_format_are_read(tmp_path, suffix, coding):
    path = film(tmp_path / f"film.{suffix}", **coding)
    clip = load(path)
    assert clip.frames.shape == (8, 256, 512, 3)
    assert clip.frames.dtype == np.uint8
    assert numbers(clip.frames) == evenly(100, 8)
    assert clip.interval == pytest.approx(99 / RATE / 7, abs=1e-3 / 7)


@pytest.mark.parametrize(("suffix", "coding"), FILMS)
@pytest.mark.parametrize("span", [(0, 99), (40, 71)])
def test_skipping_packets_changes_no_pixel(tmp_path, suffix, coding, span):
    path = film(tmp_path / f"film.{suffix}", **coding)
    told = []
    part = {"video_start": span[0] / RATE, "video_end": span[1] / RATE}
    clip = load(path, nframes=6, progress=lambda *call: told.append(call), **part)
    if coding is not REFRESH and (suffix, coding) != ("avi", H264):  # these packets carry too little information
        assert told[-1][1] == told[0][1], "all was decoded a second time"
    pictures = in_turn(path, clip.frames.shape[1:3])
    expected = evenly(span[1] - span[0] + 1, 6, span[0])
    np.testing.assert_array_equal(clip.frames, [pictures[number] for number in expected])


@pytest.mark.parametrize(
    ("suffix", "coding"),
    [("mp4", H264), ("mkv", OPEN_GOP), ("mp4", MPEG4), ("ts", MPEG2), ("webm", VP9), ("mkv", LOSSLESS)],
)
def test_no_more_is_decoded_than_needed(tmp_path, suffix, coding):
    told = []
    clip = load(film(tmp_path / f"film.{suffix}", **coding), nframes=2, progress=lambda *call: told.append(call))
    assert numbers(clip.frames) == [0, 99]
    packets = told[-1][1]
    assert packets <= 1 + 2 * 12  # the first frame, and those from the last one's keyframe on


def test_progress_rises_to_its_total(tmp_path):
    told = []
    load(film(tmp_path / "a.mkv", 300, codec="ffv1"), name="film", progress=lambda *call: told.append(call))
    done, totals, names = zip(*told, strict=True)
    assert set(names) == {"film"}
    assert len(set(totals)) == 1
    assert list(done) == sorted(set(done))
    assert done[-1] == totals[0]
    assert 10 < len(done) <= 100


def test_a_variable_rate_is_not_warped(tmp_path):
    times = [*range(0, 1000, 40), *range(1000, 9000, 1000), *range(9000, 10_001, 40)]
    clip = load(film(tmp_path / "a.mkv", len(times), times=times, **H264), nframes=6)
    assert [times[number] for number in numbers(clip.frames)] == [0, 2000, 4000, 6000, 8000, 10_000]
    assert clip.interval == pytest.approx(2.0)


def test_at_a_variable_rate_fps_counts_real_seconds(tmp_path):
    times = [*range(0, 1000, 10), 20_000]
    clip = load(film(tmp_path / "a.mkv", len(times), times=times, **H264))
    assert len(clip.frames) == 2 * math.floor(101 * 20 / 100)
    assert numbers(clip.frames)[:3] == [0, 51, 99]


def test_a_still_stretch_repeats_its_frame(tmp_path):
    clip = load(film(tmp_path / "a.mkv", 8, times=[0, 10, 20, 30, 40, 50, 60, 10_000], **H264), nframes=8)
    assert numbers(clip.frames) == [0, 6, 6, 6, 7, 7, 7, 7]


def test_times_need_not_begin_at_zero(tmp_path):
    times = [50_000 + 40 * number for number in range(50)]
    path = film(tmp_path / "a.mkv", 50, times=times, **OPEN_GOP)
    assert numbers(load(path, nframes=4).frames) == evenly(50, 4)
    assert numbers(load(path, nframes=2, video_start=1, video_end=1.2).frames) == [25, 30]


def cut_from_mpegts(path, start, stop=1.0):
    content = path.read_bytes()
    packets = len(content) // 188
    path.write_bytes(content[188 * int(packets * start) : 188 * int(packets * stop)])
    return path


def test_a_broadcast_joined_midway_begins_at_its_first_complete_picture(tmp_path):
    path = cut_from_mpegts(film(tmp_path / "a.ts", **OPEN_GOP), 0.33)
    pictures = in_turn(path, (256, 512))
    first = numbers(np.array(pictures[:1]))[0]
    assert 0 < first < 60
    told = []
    assert numbers(load(path, progress=lambda *call: told.append(call)).frames) == evenly(100 - first, 4, first)
    assert told[-1][1] < 50, "decoded all"


def test_a_sound_track_that_appears_at_the_end_is_ignored(tmp_path):
    content = film(tmp_path / "a.flv", codec="flv", bit_rate=2_000_000).read_bytes()
    samples = b"\x3e" + bytes(882)  # PCM, 44.1 kHz, 16 bits, mono
    tag = b"\x08" + len(samples).to_bytes(3, "big") + (3960).to_bytes(3, "big") + bytes(4) + samples
    assert numbers(load(content + tag + len(tag).to_bytes(4, "big")).frames) == evenly(100, 8)


def test_pictures_removed_by_an_edit_list_are_not_read(tmp_path):
    whole, part = film(tmp_path / "a.mp4", **H264), tmp_path / "b.mp4"
    with av.open(str(whole)) as source, av.open(str(part), "w") as target:
        track = source.streams.video[0]
        copy = target.add_stream_from_template(track)
        for packet in source.demux(track):
            if packet.dts is not None:
                packet.pts -= int(0.6 / track.time_base)
                packet.dts -= int(0.6 / track.time_base)
                packet.stream = copy
                target.mux(packet)
    told = []
    assert numbers(load(part, nframes=2, progress=lambda *call: told.append(call)).frames) == [15, 99]
    assert told[-1][1] < 30, "decoded all"


def test_a_part_of_a_video_is_read(tmp_path):
    path = film(tmp_path / "a.mkv", 150, rate=30, **H264)  # its times are rounded to milliseconds
    for start, stop in [(1 / 30, 1.0), (1.0, 2.0), (0.1, 1 / 3), (4.0, 99.0)]:
        clip = load(path, fps=30, video_start=start, video_end=stop)
        first, last = round(start * 30), min(round(stop * 30), 149)
        count = (last - first + 1) // 2 * 2
        assert numbers(clip.frames) == evenly(last - first + 1, count, first)
        assert clip.interval == pytest.approx((last - first) / 30 / (count - 1), abs=1e-3)
    assert numbers(load(path, fps=30, video_end=0.5).frames) == list(range(16))
    assert numbers(load(path, fps=30, video_start=4.5).frames) == evenly(15, 14, 135)


@pytest.mark.parametrize(
    "span", [{"video_start": 3.99}, {"video_start": 1.021, "video_end": 1.03}, {"video_start": 40}]
)
def test_a_part_without_frames_is_refused(tmp_path, span):
    stop = span.get("video_end", "inf")
    assert fault(film(tmp_path / "a.mp4"), name="x", **span) == (
        f"x: no frame from {span['video_start']} to {stop} s; its frames are shown from 0 to 3.96 s; "
        "check video_start and video_end, which are in seconds"
    )


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [0, 0]), (2, [0, 1]), (3, [0, 2]), (4, [0, 1, 2, 3]), (5, [0, 1, 3, 4])]
)
@pytest.mark.parametrize("coding", [H264, MPEG4, VP9])
def test_short_files_are_read(tmp_path, count, expected, coding):
    clip = load(film(tmp_path / "a.mkv", count, **coding))
    assert numbers(clip.frames) == expected
    assert clip.interval == pytest.approx((count - 1) / RATE / (len(expected) - 1) if count > 1 else 0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nframes": 11}, "nframes is 11 (rounded to a multiple of 2: 12), of 10 frames there are; expected 2 to 10"),
        ({"nframes": 1}, "nframes is 1 (rounded to a multiple of 2: 0), of 10 frames there are; expected 2 to 10"),
        ({"max_frames": 1, "min_frames": 1}, "max_frames is 1; expected at least 2, the frames of a patch"),
    ],
)
def test_impossible_numbers_of_frames_are_refused(tmp_path, options, words):
    assert words in fault(film(tmp_path / "a.mp4", 10), **options)


# Pixels


def corners(number):
    """A picture with corners in red, green, blue and white, so that all rotations and mirrorings differ."""
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:32, :64], pixels[:32, 64:], pixels[32:, :64], pixels[32:, 64:] = [*np.diag([255] * 3).tolist(), [255] * 3]
    return pixels


def colours_of_corners(frame):
    height, width = frame.shape[:2]
    quarters = frame[height // 4 :: height // 2, width // 4 :: width // 2].reshape(4, 3) > 127
    names = {(True, False, False): "r", (False, True, False): "g", (False, False, True): "b", (True,) * 3: "w"}
    return "".join(names[tuple(quarter)] for quarter in quarters.tolist())


ONE = 1 << 16
ORIENTATIONS = {
    "upright": ((ONE, 0, 0, ONE), "rgbw"),
    "clockwise": ((0, ONE, -ONE, 0), "brwg"),  # as a phone held upright writes
    "around": ((-ONE, 0, 0, -ONE), "wbgr"),
    "anticlockwise": ((0, -ONE, ONE, 0), "gwrb"),
    "mirrored": ((-ONE, 0, 0, ONE), "grwb"),
    "flipped": ((ONE, 0, 0, -ONE), "bwrg"),
    "transposed": ((0, ONE, ONE, 0), "rbgw"),
    "transversed": ((0, -ONE, -ONE, 0), "wgbr"),
    "tilted a little": ((round(ONE * 0.98), round(ONE * 0.17), -round(ONE * 0.17), round(ONE * 0.98)), "rgbw"),
}


@pytest.mark.parametrize(("matrix", "expected"), ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_rotation_and_mirroring_are_applied(tmp_path, matrix, expected):
    content = bytearray(film(tmp_path / "a.mp4", 4, make=corners, bit_rate=2_000_000).read_bytes())
    at = content.index(b"tkhd") + 44  # version, flags, times and the rest come first
    assert struct.unpack_from(">9i", content, at) == (ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)
    a, b, c, d = matrix
    struct.pack_into(">9i", content, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    frames = load(bytes(content)).frames
    height, width = frames.shape[1:3]
    assert (height > width) == (abs(b) > abs(a))
    assert colours_of_corners(frames[0]) == expected


@pytest.mark.parametrize("form", ["bgra", "bgr24"])
@pytest.mark.parametrize(("height", "expected"), [(-64, "rgbw"), (64, "bwrg")], ids=["top down", "bottom up"])
def test_uncompressed_pictures_are_read_top_down_and_bottom_up(tmp_path, form, height, expected):
    content = bytearray(film(tmp_path / "a.avi", 4, codec="rawvideo", form=form, make=corners).read_bytes())
    at = (
        content.index(b"strf") + 8
    )  # of the stream's BITMAPINFOHEADER; its height is negative where the top row comes first
    assert struct.unpack_from("<Iii", content, at) == (40, 128, -64)
    struct.pack_into("<i", content, at + 8, height)
    frames = load(bytes(content)).frames
    assert [colours_of_corners(frame) for frame in frames] == [expected] * len(frames)


def crimson(number):
    return np.full((36, 66, 3), (200, 20, 60), np.uint8)


@pytest.mark.parametrize(
    ("suffix", "codec", "form"),
    [
        ("mkv", "ffv1", "yuv420p"), ("mkv", "ffv1", "yuv420p10le"), ("mkv", "ffv1", "yuv444p"), ("mkv", "ffv1", "bgra"),
        ("mkv", "ffv1", "yuva420p"), ("mkv", "ffv1", "gbrp10le"), ("avi", "mjpeg", "yuvj420p"), ("mov", "qtrle", "argb"),
        ("mov", "png", "rgb48be"), ("avi", "rawvideo", "bgr24"), ("mkv", "ffv1", "yuv410p"),
    ],
)  # fmt: skip
def test_pixel_formats_are_converted_to_rgb(tmp_path, suffix, codec, form):
    frames = load(film(tmp_path / f"a.{suffix}", 4, codec=codec, form=form, make=crimson)).frames
    np.testing.assert_allclose(
        frames.reshape(-1, 3), np.broadcast_to([[200, 20, 60]], (frames[..., 0].size, 3)), atol=5
    )


def test_grey_pictures_of_odd_size_are_read(tmp_path):
    path = film(
        tmp_path / "a.mkv", 4, codec="ffv1", form="gray", make=lambda number: np.full((17, 33, 3), 99, np.uint8)
    )
    assert set(np.unique(load(path).frames)) == {99}


@pytest.mark.parametrize("space", [1, 6])  # BT.709, BT.601
def test_the_colour_space_of_a_file_is_used(tmp_path, space):
    path = tmp_path / "a.mkv"
    luma = {1: (0.2126, 0.7152, 0.0722), 6: (0.299, 0.587, 0.114)}[space]
    red, green, blue = 0.8, 0.1, 0.25
    bright = np.dot(luma, (red, green, blue))
    planes = (
        16 + 219 * bright,
        128 + 112 * (blue - bright) / (1 - luma[2]),
        128 + 112 * (red - bright) / (1 - luma[0]),
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = space, 1
        values = np.broadcast_to(np.rint(planes).astype(np.uint8)[:, None, None], (3, 64, 64))
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format="yuv444p")
        frame.colorspace, frame.color_range = space, 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    np.testing.assert_allclose(load(path).frames[0, 5, 5] / 255, (red, green, blue), atol=0.012)


def test_pictures_that_change_their_size_are_refused(tmp_path):
    first = film(tmp_path / "a.ts", 30, **MPEG2)
    second = film(tmp_path / "b.ts", 30, make=lambda number: picture(number + 30, (96, 160)), **MPEG2)
    with av.open(str(second)) as source, av.open(str(tmp_path / "c.ts"), "w") as target:
        track = source.streams.video[0]
        copy = target.add_stream_from_template(track)
        for packet in source.demux(track):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts + 108_000, packet.dts + 108_000
                packet.stream = copy
                target.mux(packet)
    content = first.read_bytes() + (tmp_path / "c.ts").read_bytes()
    assert fault(content, nframes=4, name="x") == (
        "x: its frame at 1.56 s is 96 x 160 pixels, but the first is 64 x 128; expected one size; convert it to one, or "
        "cut it into files of one size"
    )
    assert numbers(load(content, nframes=4, video_end=1.1).frames) == evenly(28, 4)


def clear_film(path, codec, form, **options):
    """Four transparent pictures with a red block on the left."""
    pixels = np.zeros((36, 66, 4), np.uint8)
    pixels[:, :32] = 220, 10, 30, 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = 36, 66, form
        stream.metadata["alpha_mode"] = "1"
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format="gbrap", threads=1)
            container.mux(stream.encode(frame.reformat(format=form, threads=1)))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("suffix", "codec", "form"),
    [("mov", "qtrle", "argb"), ("mov", "png", "rgba"), ("mkv", "ffv1", "yuva420p"), ("webm", "libvpx-vp9", "yuva420p")],
)
def test_transparent_pixels_become_white(tmp_path, suffix, codec, form):
    frames = load(clear_film(tmp_path / f"a.{suffix}", codec, form)).frames
    width = frames.shape[2]
    np.testing.assert_allclose(frames[:, :, width // 2 + 20 :], 255, atol=3)
    red = frames[:, :, 20 : width // 2 - 60]
    np.testing.assert_allclose(red, np.broadcast_to([220, 10, 30], red.shape), atol=8)


# Frames given as pictures


def test_arrays_are_read(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 96, 3), np.uint8)
    clip = load(frames, resized_height=64, resized_width=96)
    np.testing.assert_array_equal(clip.frames, frames)
    assert clip.interval == 0.5
    for given_frames in (
        frames.transpose(0, 3, 1, 2),
        frames / 255,
        list(frames),
        tuple(Image.fromarray(frame) for frame in frames),
    ):
        clip = load(given_frames, resized_height=64, resized_width=96, fps=5)
        np.testing.assert_array_equal(clip.frames, frames)
        assert clip.interval == pytest.approx(0.2)
    resized = load(frames).frames
    np.testing.assert_array_equal(resized[2], patches.resize(Image.fromarray(frames[2]), resized.shape[1:3]))


def test_all_given_frames_are_used():
    frames = np.stack([picture(number) for number in range(51)])
    told = []
    clip = load(frames, name="x", progress=lambda *call: told.append(call))
    assert numbers(clip.frames) == [*range(51), 50]
    assert told == [(number + 1, 51, "x") for number in range(51)]
    assert numbers(load(frames[7:8]).frames) == [7, 7]


def test_a_video_path_in_a_list_is_refused(tmp_path):
    path = film(tmp_path / "a.mp4")
    assert fault([str(path)], name="x").endswith("; of a video file, give the path alone, not in a list")


def test_paths_of_pictures_are_read(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        Image.fromarray(picture(number)).save(path)
    assert numbers(load(paths).frames) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([], "x: holds no frames; expected at least one"),
        (np.zeros((0, 8, 8, 3), np.uint8), "x: holds no frames; expected at least one"),
        (np.zeros((8, 8, 3), np.uint8), "x: an array of shape [8, 8, 3]; expected frames [n, h, w, 3]"),
        (
            [np.zeros((8, 9, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)],
            "x: frame 1 is 9 x 8 pixels, but the first is 8 x 9; expected one size; crop or resize them, or give them as images",
        ),
        (
            np.zeros((2, 8, 2000, 3), np.uint8),
            "x: 8 x 2000 pixels (height x width), one side more than 200 times the other; expected at most 200 times; "
            "crop or pad it first",
        ),
        (np.full((2, 8, 8, 3), 7.5), "x, frame 0: float pixels from 7.5 to 7.5; expected 0 to 1"),
        (["missing.png"], "x, frame 0: no such file; expected the path of an image file"),
        (np.zeros((5000, 8, 8, 3), np.uint8), "x: 5000 frames of 384 x 384 pixels make 360000 tokens"),
    ],
)
def test_unusable_frames_are_refused(frames, expected):
    assert fault(frames, name="x").startswith(expected)


# Sources


def test_videos_of_every_source_are_read(tmp_path):
    path = film(tmp_path / "a.mp4", **H264)
    content = path.read_bytes()
    expected = load(path).frames
    url = f"data:video/mp4;base64,{base64.b64encode(content).decode()}"
    for source in (str(path), path.as_uri(), content, memoryview(content), url):
        np.testing.assert_array_equal(load(source).frames, expected)
    for file in (io.BytesIO(content), open(path, "rb")):  # noqa: SIM115 - closed below
        with file:
            np.testing.assert_array_equal(load(file).frames, expected)
            assert not file.closed
            assert file.tell() == 0


class Failing(io.BytesIO):
    def read(self, size=-1):
        if self.tell() > 5000:
            raise OSError("the disk is gone")
        return super().read(size)


def test_a_failing_file_raises_one_line(tmp_path):
    content = film(tmp_path / "a.mkv", **LOSSLESS).read_bytes()
    assert fault(Failing(content), name="x") == "x: not a video, or damaged (the disk is gone)"


def test_errors_of_a_progress_callback_pass_through(tmp_path):
    def closed(*call):
        raise BrokenPipeError("nobody listens")

    for suffix, coding in (("mp4", MPEG4), ("avi", H264)):
        with pytest.raises(BrokenPipeError, match="nobody listens"):
            load(film(tmp_path / f"a.{suffix}", **coding), progress=closed)


def test_the_origin_is_the_time_of_the_first_picture(tmp_path):
    times = [2_000 + 40 * number for number in range(50)]
    path = film(tmp_path / "a.mkv", 50, times=times, **OPEN_GOP)
    assert load(path).origin == load(path, video_start=1).origin == pytest.approx(2.0)
    assert load(film(tmp_path / "a.avi", **H264)).origin == pytest.approx(0.0, abs=0.1)


def test_a_cover_picture_is_not_the_video(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.height = cover.width = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        track = container.add_stream("mpeg4", rate=RATE)
        track.height, track.width, track.bit_rate = 64, 128, 2_000_000
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        for number in range(8):
            container.mux(track.encode(av.VideoFrame.from_ndarray(picture(number))))
        container.mux(track.encode(None))
    assert numbers(load(path).frames) == evenly(8, 4)


def sound(path, cover=None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mp3" if path.suffix == ".mp3" else "aac", rate=44_100, layout="mono")
        picture_track = None
        if cover:
            picture_track = container.add_stream(cover, rate=1)
            picture_track.height = picture_track.width = 64
            picture_track.pix_fmt = "rgb24" if cover == "png" else "yuvj420p"
            picture_track.disposition = av.stream.Disposition.attached_pic
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 44_100), np.int16), format="s16", layout="mono")
        samples.sample_rate = 44_100
        container.mux(stream.encode(samples))
        if picture_track:
            still = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
            container.mux(picture_track.encode(still.reformat(format=picture_track.pix_fmt)))
            container.mux(picture_track.encode(None))
        container.mux(stream.encode(None))
    return path


def write(path, content):
    path.write_bytes(content)
    return path


def no_video(folder):
    """Files that are no video, and the expected errors."""
    first = film(folder / "first.mp4", 10)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\n{first}\n#EXT-X-ENDLIST\n"
    broken = film(folder / "broken.mkv", 10, codec="ffv1").read_bytes().replace(b"V_FFV1", b"V_NONE")
    not_one = "not a video, or damaged (Invalid data found when processing input)"
    Image.fromarray(picture(1)).save(folder / "a.jpg")
    Image.fromarray(picture(1)).save(folder / "a.png")
    stills = [Image.fromarray(picture(number)) for number in range(4)]
    stills[0].save(folder / "still.webp")
    stills[0].save(folder / "moving.webp", save_all=True, append_images=stills[1:], duration=100)
    return [
        (sound(folder / "a.mp3"), "holds sound; expected a video file"),
        (sound(folder / "b.mp3", "png"), "holds sound and a cover picture; expected a video file"),
        (sound(folder / "c.mp4", "mjpeg"), "holds sound and a cover picture; expected a video file"),
        (folder / "a.jpg", "is a picture; expected a video file; give it as an image"),
        (folder / "a.png", "is a picture; expected a video file; give it as an image"),
        (write(folder / "a.txt", b"Some words.\n" * 50), "is text; expected a video file"),
        (write(folder / "a.m3u8", playlist.encode()), not_one),
        (write(folder / "a.ffconcat", f"ffconcat version 1.0\nfile {first}\n".encode()), "not a video, or damaged ("),
        (write(folder / "d.mp4", b""), "is empty (0 bytes); expected a video file"),
        (write(folder / "b.mp4", bytes(range(256)) * 40), "not a video, or damaged ("),
        (write(folder / "c.mkv", broken), "its codec cannot be decoded here; convert it to H.264 in MP4"),
        (folder / "missing.mp4", "no such file; expected the path of a video file"),
        (folder, "is a folder; expected a video file"),
        (folder / "still.webp", "is a picture; expected a video file; give it as an image"),
        (folder / "moving.webp", "is an animated WebP, which FFmpeg cannot read; convert it to MP4 or GIF"),
        (3.5, "expected a path, URL, bytes, binary file, NumPy array or list of frames, got float"),
    ]


def test_files_that_are_no_video_raise_one_line(tmp_path, capfd):
    for source, expected in no_video(tmp_path):
        assert fault(source, name="x").startswith(f"x: {expected}"), source
        if hasattr(source, "is_file") and source.is_file() and source.suffix != ".txt":
            assert fault(source.read_bytes(), name="x").startswith(f"x: {expected}"), source
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("side", [14_000, 60_000])  # FFmpeg itself refuses the second, even to state it
def test_huge_pictures_are_not_decoded(side):
    header = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    image = b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\x00;"
    expected = "x: no frame decodes; expected a video file, of at most 33177600 pixels a frame"
    assert fault(header + image, name="x") == expected


@pytest.mark.parametrize(("suffix", "coding"), [("mkv", H264), ("flv", FILMS[-2][1]), ("webm", VP9), ("avi", MPEG4)])
def test_a_truncated_file_reports_how_far_it_goes(tmp_path, suffix, coding):
    content = film(tmp_path / f"a.{suffix}", **coding).read_bytes()
    part = content[: int(len(content) * 0.6)]
    message = fault(part, name="x")
    told = float(message.split("video_end=")[1].split()[0])
    assert message == (
        f"x: is cut off or damaged after {told:.2f} s; give the whole file, or video_end={told:g} for what there is"
    )
    assert 1 < told < 3
    shown = numbers(load(part, video_end=told, fps=RATE).frames)
    assert 0 <= told * RATE - shown[-1] <= 2
    assert fault(part, video_end=told + 0.5, name="x") == message


def test_a_file_truncated_in_its_first_frame_is_refused(tmp_path):
    content = film(tmp_path / "a.flv", 1, codec="flv").read_bytes()
    assert fault(content[: int(len(content) * 0.8)], name="x") == (
        "x: is cut off or damaged in its first frame; give the whole file"
    )


def test_a_truncated_mp4_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.height, stream.width, stream.bit_rate = 64, 128, 2_000_000
        for number in range(100):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number))))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    assert "is cut off or damaged after 2." in fault(content[: int(len(content) * 0.7)])
    plain = film(tmp_path / "b.mp4").read_bytes()  # its index, which comes last, is lost
    assert fault(plain[: int(len(plain) * 0.7)], name="x").startswith("x: not a video, or damaged (")


def test_undecodable_frames_report_how_far_the_file_goes(tmp_path):
    content = bytearray(film(tmp_path / "a.mp4", **VP9).read_bytes())
    with av.open(io.BytesIO(content)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for at, size in places[50:]:
        content[at : at + size] = bytes(size)
    assert fault(bytes(content), name="x").startswith("x: is cut off or damaged after 1.96 s; ")
    assert numbers(load(bytes(content), video_end=1.96, nframes=2).frames) == [0, 49]


def damaged(path, start, stop):
    """A file's bytes in which the packets of some pictures are zero after their beginnings."""
    content = bytearray(path.read_bytes())
    with av.open(io.BytesIO(content)) as container:
        for packet in container.demux(video=0):
            if packet.size and start <= packet.pts * packet.time_base < stop:
                content[packet.pos + 5 : packet.pos + packet.size] = bytes(packet.size - 5)
    return bytes(content)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_damage_in_the_middle_shifts_no_frame(tmp_path, suffix):
    """After the damage the decoder returns a frame out of order, whose time must not be taken for another's."""
    path = film(tmp_path / f"a.{suffix}", codec="libx264", options={"g": "250", "bf": "3"}, rate=10)
    content = damaged(path, 5, 7)
    message = fault(content, name="x")
    assert message.startswith("x: is cut off or damaged after 4.")
    told = float(message.split("video_end=")[1].split()[0])
    clip = load(content, video_end=told, nframes=4)
    shown, wanted = numbers(clip.frames), evenly(round(told * 10) + 1, 4)
    assert shown[:3] == wanted[:3]
    assert wanted[3] - 4 < shown[3] <= wanted[3]  # the last ones lack their reference frames
    assert clip.interval == pytest.approx(told / 3, abs=0.01)


def test_small_damage_keeps_the_times_of_other_frames(tmp_path):
    path = film(tmp_path / "a.mp4", codec="libx264", options={"g": "10", "bf": "3"}, rate=10)
    clip = load(damaged(path, 5, 5.8), nframes=34)
    assert clip.interval == pytest.approx(9.9 / 33)
    shown = np.array(numbers(clip.frames))
    wanted = np.arange(34) * 3
    apart = (wanted < 47) | (wanted > 62)
    assert np.abs(shown - wanted)[apart].max() == 0


def test_an_undecodable_frame_counts_as_dropped(tmp_path):
    content = bytearray(film(tmp_path / "a.mkv", **LOSSLESS).read_bytes())
    with av.open(io.BytesIO(content)) as container:
        at, size = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][99]
    content[at : at + size] = bytes(size)
    assert numbers(load(bytes(content), nframes=2).frames) == [0, 98]


# Memory

MEASURE = """
import resource, sys
from omni_jax.processing.media import video, patches
from omni_jax.processing.options import MediaOptions
def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
video.load(sys.argv[1], patches.PatchConfig(), MediaOptions(nframes=4), context=65536)
before = used()
clip = video.load(sys.argv[2], patches.PatchConfig(), MediaOptions(nframes=40), context=65536)
assert len(clip.frames) == 40
print(used() - before - clip.frames.nbytes)
"""


def test_a_long_file_does_not_fill_memory(tmp_path):
    still = np.zeros((240, 320, 3), np.uint8)
    short = film(tmp_path / "short.avi", 8, make=lambda number: still)
    for suffix, coding in (
        ("mkv", MPEG4),
        ("avi", H264),
    ):  # decoded in part; decoded twice, as its packets tell no times
        long = film(tmp_path / f"long.{suffix}", 1500, make=lambda number: still, **coding)
        run = subprocess.run([sys.executable, "-c", MEASURE, short, long], capture_output=True, text=True, check=True)
        assert run.stderr == ""
        assert int(run.stdout) < 1500 * still.nbytes / 10


# --- videos that would take hours


def gif(side, frames):
    """A GIF with a given number of white frames, 23 bytes each."""
    head = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"!\xf9\x04\0\x0a\0\0\0," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x44\x01\0"
    return head + frame * frames + b";"


def test_a_small_file_that_takes_hours_is_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(video_track, "_frames", lambda *_: pytest.fail("decodes"))
    said = fault(gif(1000, 5000), name="x")
    assert said.startswith("x: 5000 frames of 1000 x 1000 pixels would have to be decoded, of 115020 bytes;")
    assert "expected at most 4.3 billion pixels; take a part by video_start and video_end" in said


def test_a_part_of_such_a_file_is_read(monkeypatch):
    monkeypatch.setattr(video_track, "_MAX_DECODED", 10 * 64 * 64)
    monkeypatch.setattr(video_track, "_DRAWN_PER_BYTE", 1)
    assert "20 frames of 64 x 64 pixels" in fault(gif(64, 20), name="x")
    assert len(load(gif(64, 20), video_end=0.75).frames) >= 4


def test_a_file_of_more_frames_than_any_video_has_is_refused(monkeypatch):
    monkeypatch.setattr(video_track, "MAX_PACKETS", 7)
    assert fault(gif(64, 8), name="x") == "x: holds more than 7 frames; cut it into several files"


def test_frames_too_large_for_memory_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(video_track, "_MAX_FRAME_BYTES", 100_000)
    small, deep = LOSSLESS, {"codec": "ffv1", "form": "gbrap16le"}  # 12 kB a frame, and 66 kB
    assert load(film(tmp_path / "small.mkv", 4, **small)).frames.size
    assert load(film(tmp_path / "deep.mkv", 4, **deep)).frames.size
    said = fault(film(tmp_path / "large.mkv", 4, **deep, make=lambda number: picture(number, (128, 256))), name="x")
    assert said == (
        "x: frames of 0.262 MB (128 x 256, gbrap16le); expected at most 0.1; convert it to 8 bits or to a smaller size"
    )


def test_a_decoder_has_no_more_threads_than_memory_holds_frames_for(monkeypatch, tmp_path):
    monkeypatch.setattr(video_track.os, "cpu_count", lambda: 64)
    seen = []
    decoded = video_track.container.decoded
    monkeypatch.setattr(
        video_track.container,
        "decoded",
        lambda decoder, packet: seen.append(decoder.thread_count) or decoded(decoder, packet),
    )
    path = film(tmp_path / "x.mp4", 4, **H264)
    load(path)
    assert max(seen) == 16
    monkeypatch.setattr(video_track, "_THREADS_BYTES", 40_000)  # of frames of 12 kB and their padding
    seen.clear()
    load(path)
    assert max(seen) <= 3


def test_a_frame_of_too_many_scans_is_refused():
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = 64, 128, "yuvj420p"
        jpeg = io.BytesIO()
        Image.fromarray(picture(1)).save(jpeg, "jpeg", progressive=True)
        scan = jpeg.getvalue().rfind(b"\xff\xda")
        for number in range(4):
            often = 200 if number == 2 else 1
            packet = av.Packet(jpeg.getvalue()[:scan] + jpeg.getvalue()[scan:-2] * often + b"\xff\xd9")
            packet.pts = packet.dts = number
            packet.stream, packet.is_keyframe = stream, True
            container.mux(packet)
    assert "a frame of more than 100 scans; expected no more; convert it to H.264" in fault(file.getvalue(), name="x")
