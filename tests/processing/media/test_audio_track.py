"""The sound of a video is placed by its time stamps, beside the pictures."""

import math
from fractions import Fraction

import av
import numpy as np
import pytest

from omni_jax.processing.media import audio, audio_file, patches, video
from omni_jax.processing.options import MediaOptions
from tests.support.sounds import as_int16, ticks

# The sound of a video


def write_track(path, starts, *, picture=0.0, samples=None):
    """A video with one second of pictures from a given time, and a second of ticks at each of some times."""
    samples = ticks(len(starts)) if samples is None else samples
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=10)
        pictures.width = pictures.height = 32
        sound = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        packets = []
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            packets += pictures.encode(frame)
        packets += pictures.encode(None)
        for packet in packets:
            packet.pts += round(picture * 10)
            packet.dts += round(picture * 10)
            container.mux(packet)
        for second, start in enumerate(starts):
            for tenth in range(10):  # packets of 100 ms
                first = second * 16_000 + tenth * 1_600
                frame = av.AudioFrame.from_ndarray(
                    as_int16(samples[first : first + 1_600]).T, format="s16", layout="mono"
                )
                frame.sample_rate, frame.pts, frame.time_base = (
                    16_000,
                    round(start * 16_000) + tenth * 1_600,
                    Fraction(1, 16_000),
                )
                container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


def track(path, *, limit=math.inf, **options):
    media = MediaOptions(**options)
    origin = video.load(path, patches.PatchConfig(), MediaOptions(max_pixels=4096), context=4096).origin
    with open(path, "rb") as file:
        return audio.load_track(file, "x", media, origin=origin, limit=limit)


def seconds(samples):
    """The number of the second of ticks in each second, 0 for silence."""
    return [round(float(np.abs(samples[at : at + 16_000]).max()) / 0.05) for at in range(0, samples.size, 16_000)]


@pytest.mark.parametrize(
    ("starts", "picture", "expected"),
    [
        ([0, 1, 2], 0, [1, 2, 3]),
        ([2, 3, 4], 0, [0, 0, 1, 2, 3]),
        ([0, 1, 2], 2, [3]),
        ([0, 1, 2], 1, [2, 3]),
        ([0, 1, 4], 0, [1, 2, 0, 0, 3]),
        ([3, 6], 1, [0, 0, 1, 0, 0, 2]),
    ],
)
def test_sound_is_placed_by_its_time_stamps(tmp_path, starts, picture, expected):
    samples = track(write_track(tmp_path / "a.mkv", starts, picture=picture))
    assert seconds(samples) == expected
    assert samples.size == len(expected) * 16_000


def test_small_gaps_are_not_filled(tmp_path):
    path = write_track(tmp_path / "a.mkv", [0, 1.03, 2.06])
    assert track(path).size == 3 * 16_000 + 960  # 30 ms are not filled, 60 ms are
    assert track(write_track(tmp_path / "b.mkv", [0, 1.001, 2.002])).size == 3 * 16_000


def test_a_part_of_a_videos_sound_is_cut_by_time(tmp_path):
    path = write_track(tmp_path / "a.mkv", [2, 3, 6])
    assert seconds(track(path, video_start=1, video_end=4)) == [0, 1, 2]
    assert seconds(track(path, video_start=3)) == [2, 0, 0, 3]
    way = "; check video_start and video_end, or leave load_audio_from_video .use_audio_in_video. out for it"
    for part, words in (
        ({"video_end": 1}, "0 s to 1 s"), ({"video_start": 4, "video_end": 5.5}, "4 s to 5.5 s"), ({"video_start": 9}, "9 s on"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^x: has no sound from {words}{way}"):
            track(path, **part)
    with pytest.raises(
        ValueError, match=r"^x: at least .* room for 2\.5 s; take a part, by video_start and video_end$"
    ):
        track(path, limit=2.5)


def test_time_stamps_that_go_back_are_continued(tmp_path):
    blocks = [
        audio_file.Block(np.full(16_000, n, np.float32), 16_000, time) for n, time in enumerate([5.0, 6.0, 0.0, 1.0])
    ]
    placed = np.concatenate([block.samples for block in audio_file.placed(blocks, 5.0)])
    np.testing.assert_array_equal(placed, np.arange(4).repeat(16_000))
