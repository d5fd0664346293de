"""Videos that would fill memory or take hours are refused before they are decoded."""

import io
import struct
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

from omni_jax.processing.media import video_track
from tests.support.numbered_films import H264, LOSSLESS, MPEG4, RATE, fault, film, load, picture

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
