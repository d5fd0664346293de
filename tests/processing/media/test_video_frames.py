"""How many frames of a video are taken, which ones, and in what size; and frames given as pictures."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from omni_jax.processing.media import patches, video
from omni_jax.processing.options import MediaOptions
from tests.support.numbered_films import CONFIG, CONTEXT, evenly, fault, film, load, numbers, picture

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
