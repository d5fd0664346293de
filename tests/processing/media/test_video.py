"""Videos of any container, codec, rate and source give the right frames at the right times."""

import base64
import io
import math

import av
import numpy as np
import pytest
from PIL import Image

from omni_jax.errors import RetryableError
from omni_jax.processing.media import patches
from tests.support.numbered_films import (
    FILMS,
    H264,
    LOSSLESS,
    MPEG2,
    MPEG4,
    OPEN_GOP,
    RATE,
    REFRESH,
    VP9,
    evenly,
    fault,
    film,
    load,
    numbers,
    picture,
)


def in_turn(path, size):
    """All pictures of a file, decoded one after another by one thread, in the size of a clip's frames."""
    with av.open(str(path)) as container:
        return [
            patches.resize(Image.fromarray(frame.to_ndarray(format="rgb24")), size)
            for frame in container.decode(video=0)
        ]


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
    with pytest.raises(RetryableError, match=r"^x: cannot be read \(the disk is gone\)$"):
        load(Failing(content), name="x")


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
