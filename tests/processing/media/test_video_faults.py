"""Files that are no video, or cut off or damaged, are refused in one line that says what can be read."""

import io
import struct

import av
import numpy as np
import pytest
from PIL import Image

from tests.support.numbered_films import (
    FILMS,
    H264,
    LOSSLESS,
    MPEG4,
    RATE,
    VP9,
    evenly,
    fault,
    film,
    load,
    numbers,
    picture,
)


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
