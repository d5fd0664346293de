"""Damaged, cut off, foreign and oversized sound is refused in one line, before it fills memory."""

import contextlib
import io
import re
import subprocess
import sys

import av
import numpy as np
import pytest
import soundfile

from omni_jax.processing.media import audio, audio_file
from omni_jax.processing.options import MediaOptions
from tests.support.sounds import HELLO, PART, as_int16, assert_refused, ticks, tone, write_av, write_video


def test_only_faults_within_the_part_count(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_file, "BLOCK_FRAMES", 1_000)
    bad_files(tmp_path)
    middle = np.where(np.arange(16_000) == 8_000, np.nan, 0)
    for source in (middle, tmp_path / "nan.wav"):
        assert audio.load(source, options=MediaOptions(audio_end=0.5)).shape == (8_000,)
        assert_refused(source, r"the first at 0\.500 s", options=MediaOptions(audio_start=0.3))
    cut = audio.load(tmp_path / "cut.flac", options=MediaOptions(audio_end=0.1))  # decoding stops there
    np.testing.assert_array_equal(cut, audio.load(HELLO)[:1_600])


def bad_files(folder):
    """Writes one file a fault; returns (source, pattern) of each, by name."""
    quiet = np.zeros(16_000)
    soundfile.write(folder / "none.wav", quiet[:0], 16_000)
    soundfile.write(folder / "short.wav", quiet[:200], 16_000)
    soundfile.write(folder / "short48.wav", quiet[:597], 48_000)
    soundfile.write(folder / "slow.wav", quiet, 999)
    soundfile.write(folder / "nan.wav", np.where(np.arange(16_000) == 8_000, np.nan, 0), 16_000, subtype="FLOAT")
    soundfile.write(folder / "inf.wav", np.where(np.arange(16_000) == 4_000, np.inf, 0), 16_000, subtype="FLOAT")
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("not sound at all\n" * 100)
    (folder / "bytes.mp3").write_bytes(np.random.default_rng(0).bytes(4096))
    (folder / "cut.flac").write_bytes(HELLO.read_bytes()[:20_000])
    (folder / "headerless.raw").write_bytes(bytes(4096))
    (folder / "folder.wav").mkdir()
    write_video(folder / "video.mp4")
    return {
        "missing.wav": "no such file",
        "folder.wav": "is a folder",
        "empty.wav": r"is empty \(0 bytes\)",
        "none.wav": "holds no samples",
        "short.wav": r"200 samples at 16000 Hz \(12.5 ms\) are too few; expected at least 201 \(12.6 ms\)",
        "short48.wav": r"199 samples at 16000 Hz",
        "slow.wav": "a sample rate of 999 Hz; expected 1000 to 1000000 Hz",
        "nan.wav": r"NaN or infinite samples, the first at 0\.500 s",
        "inf.wav": r"NaN or infinite samples, the first at 0\.250 s",
        "text.wav": "not audio, or damaged",
        "bytes.mp3": "not audio, or damaged",
        "cut.flac": r"its sound is cut off or damaged after 1\.22 s; give the whole file, or audio_end=1\.22 for what there is",
        "headerless.raw": "has no audio track",  # PyAV takes it for pictures because of its name
        "video.mp4": "has no audio track; expected a sound file, or a video with sound",
    }


def test_bad_files_are_named_with_their_fault(tmp_path):
    for name, pattern in bad_files(tmp_path).items():
        path = tmp_path / name
        assert_refused(path, f"^{re.escape(str(path))}: .*{pattern}")
        assert_refused(str(path), f"^message 3, audio 1: .*{pattern}", name="message 3, audio 1")


def lossy(folder):
    """Ten seconds of sound in each kind of file that states its length."""
    rng = np.random.default_rng(0)
    samples = rng.normal(scale=0.1, size=(160_000, 1)).astype(np.float32)
    for suffix in ("wav", "aiff", "flac", "mp3"):
        soundfile.write(folder / f"a.{suffix}", samples, 16_000)
    write_av(folder / "a.mkv", samples, 16_000, "aac")
    write_av(folder / "a.webm", samples, 48_000, "libopus")
    with av.open(str(folder / "a.m4a"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(as_int16(samples).T, format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return sorted(folder.glob("a.*"))


def test_a_truncated_file_reports_how_far_it_goes(tmp_path):
    paths = lossy(tmp_path)
    assert len(paths) == 7
    for path in paths:
        content = path.read_bytes()
        whole = audio.load(content)
        part = content[: len(content) // 2]
        message = assert_refused(part, "x: its sound is cut off or damaged after ", name="x")
        told = float(message.split("audio_end=")[1].split()[0])
        assert message.endswith(f" s; give the whole file, or audio_end={told:g} for what there is")
        assert 0.3 < told * 16_000 / whole.size < 0.6
        assert audio.load(part, options=MediaOptions(audio_end=told)).size == round(told * 16_000)
        assert_refused(part, f"audio_end={told:g} ", options=MediaOptions(audio_end=told + 1))


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x7FFF_FFFF, 0])
def test_a_wav_written_into_a_pipe_states_no_length(tmp_path, size):
    soundfile.write(tmp_path / "a.wav", ticks(3), 16_000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = size.to_bytes(4, "little")
    content[4:8] = (0xFFFF_FFFF).to_bytes(4, "little")
    if size:
        assert audio.load(bytes(content)).size == 48_000
    else:
        assert_refused(bytes(content), "holds no samples")


def test_an_mp3_whose_length_is_guessed_is_read_to_its_end(tmp_path):
    """The average of the first frames, which are quiet here, gives a wrong length to libsndfile."""
    loud = np.random.default_rng(0).normal(scale=0.2, size=(160_000, 1))
    for samples in (np.concatenate([loud, loud * 0]), np.concatenate([loud * 0, loud])):
        soundfile.write(tmp_path / "a.mp3", samples, 16_000, bitrate_mode="VARIABLE", compression_level=0.3)
        content = (tmp_path / "a.mp3").read_bytes()
        assert audio.load(content).size == 320_000
        guessed = content.replace(b"Xing", bytes(4)).replace(b"Info", bytes(4))
        assert guessed != content
        assert audio.load(guessed).size == pytest.approx(320_000, abs=4_000)


def test_packets_that_do_not_decode_are_damage(tmp_path):
    write_av(tmp_path / "a.m4a", ticks(10), 16_000, "aac")
    whole = (tmp_path / "a.m4a").read_bytes()
    with av.open(io.BytesIO(whole)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]

    def without(lost):
        content = bytearray(whole)
        for at, size in lost:
            content[at : at + size] = bytes(size)
        return bytes(content)

    middle = len(places) // 2
    said = r"its sound is cut off or damaged after [45]\.\d\d s; give the whole file, or audio_end="
    assert_refused(without(places[middle : middle + 1]), said)
    assert_refused(without(places), r"not audio, or damaged .*nothing of its sound decodes")


def test_sound_beyond_the_context_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(16_000, 1).repeat(40, axis=0), 16_000)  # 20 s
    write_av(tmp_path / "a.mkv", tone(16_000, 1).repeat(40, axis=0), 16_000, "aac")
    for source in (tmp_path / "a.mkv", tmp_path / "a.flac", np.zeros(320_000, np.float32)):
        found = r"at least \d+\.\d s of sound, but the model's context has room for 5\.0 s; take a part, by audio_start"
        assert_refused(source, found, limit=5.0)
        assert audio.load(source, limit=21.0).size >= 320_000
        assert audio.load(source, limit=5.0, options=MediaOptions(audio_start=1, audio_end=6)).size == 80_000


MEASURE = """
import resource, sys
from omni_jax.processing.media import audio
def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
audio.load(sys.argv[1])
before = used()
samples = audio.load(sys.argv[2])
print((used() - before) / samples.nbytes)
"""


def test_decoding_needs_little_more_memory_than_the_samples(tmp_path):
    """Ten minutes at 48 kHz, which are three times the size of the returned samples."""
    for count, name in ((48_000, "short.flac"), (28_800_000, "long.flac")):
        soundfile.write(tmp_path / name, np.zeros(count, np.int16), 48_000)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "short.flac", tmp_path / "long.flac"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(run.stdout) < 1.5


SAMPLES = np.zeros(1_000, np.float32)
BAD_SOURCES = {
    "private": ("http://127.0.0.1/a.wav?key=1", r"^http://127\.0\.0\.1/a\.wav: leads to a private address"),
    "sftp": ("sftp://host/a.wav", "sftp URLs are not fetched"),
    "relative file URL": ("file://a.wav", "host 'a.wav'; expected file:///"),
    "plain data URL": ("data:audio/wav,abc", "without base64"),
    "broken base64": ("data:audio/wav;base64,@@@@", "audio data URL: broken base64"),
    "data URL of text": ("data:audio/wav;base64,aGVsbG8h", "audio data URL: not audio"),
    "no path": ("", "no such file"),
    "NUL": ("a\0.wav", "cannot be opened"),
    "two lines": ("two\nlines.wav", "two lines.wav: no such file"),
    "endless": ("x" * 10_000, r"x\.\.\.x+: cannot be opened"),
    "no bytes": (b"", r"audio \(bytes\): is empty"),
    "bytes": (b"hello" * 100, r"audio \(bytes\): not audio"),
    "text file": (io.StringIO("hello"), "binary mode"),
    "read to its end": (io.BytesIO(b""), r"audio \(BytesIO\): is empty"),
    "None": (None, "expected a path, URL, bytes, binary file, NumPy array or .* got NoneType"),
    "list": ([0.0] * 1_000, "got list"),
    "rate first": ((16_000, SAMPLES), r"expected \(samples, rate\) .* got a tuple of \(int, ndarray\)"),
    "no rate": ((SAMPLES,), r"expected \(samples, rate\)"),
    "text rate": ((SAMPLES, "16000"), "rate a number in Hz, got str"),
    "true rate": ((SAMPLES, True), "rate a number in Hz, got bool"),
    "kHz, a part": ((SAMPLES, 44.1), r"a sample rate of 44\.1 Hz", PART),
    "NaN rate, a part": ((SAMPLES, float("nan")), "a sample rate of nan Hz", PART),
    "kHz": ((SAMPLES, 44.1), r"a sample rate of 44\.1 Hz"),
    "MHz": ((SAMPLES, 2_000_000), "a sample rate of 2000000 Hz"),
    "negative rate": ((SAMPLES, -16_000), "a sample rate of -16000 Hz"),
    "NaN rate": ((SAMPLES, float("nan")), "a sample rate of nan Hz"),
    "no samples": (SAMPLES[:0], "holds no samples"),
    "no frames": (np.zeros((0, 2)), "holds no samples"),
    "scalar": (np.float32(1), r"shape \[\]"),
    "3-D": (np.zeros((2, 3, 1_000)), r"shape \[2, 3, 1000\]; expected \[W\]"),
    "spectrogram": (np.zeros((128, 300)), "128 channels; expected at most 64"),
    "complex": (SAMPLES.astype(complex), "dtype complex128"),
    "object": (SAMPLES.astype(object), "dtype object"),
    "bool": (SAMPLES.astype(bool), "dtype bool"),
    "text": (SAMPLES.astype(str), "dtype <U"),
    "int64": (SAMPLES.astype(np.int64), "dtype int64 have no known range; convert to int16"),
    "NaN": (SAMPLES + np.nan, "NaN or infinite"),
    "-inf": (SAMPLES - np.inf, "NaN or infinite"),
    "beyond float32": (np.full(1_000, 1e300), "NaN or infinite"),
    "opposite infinities": (np.stack([SAMPLES - np.inf, SAMPLES + np.inf]), "NaN or infinite"),
    "short": (SAMPLES[:200], "200 samples .* too few"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_sources_are_refused(case):
    source, pattern, *options = BAD_SOURCES[case]
    message = assert_refused(source, pattern, **({"options": options[0]} if options else {}))
    assert len(message) < 400


def test_a_playlist_opens_no_other_file(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "secret.wav", tone(16_000, 1), 16_000)
    monkeypatch.chdir(tmp_path)
    assert_refused(b"ffconcat version 1.0\nfile secret.wav\n", "not audio")
    assert_refused(b"ffconcat version 1.0\nfile http://127.0.0.1:9/a.wav\n", "not audio")


# --- sound that would fill memory


@pytest.mark.parametrize("shape", [(10**10,), (10**10, 2), (2, 10**10)])
def test_an_array_is_copied_only_as_far_as_the_context(shape):
    endless = np.broadcast_to(np.int16(0), shape)
    with pytest.raises(ValueError, match=r"at least .* s of sound, but the model's context has room for 20.0 s"):
        audio.load(endless, limit=20)
    assert audio.load(endless, limit=20, options=MediaOptions(audio_start=9, audio_end=10)).shape == (16_000,)


def test_a_file_of_very_many_channels_is_refused_before_they_are_decoded():
    file = io.BytesIO()
    soundfile.write(file, np.zeros((400, 65), np.float32), 16_000, format="WAV")
    with pytest.raises(ValueError, match=r"^audio \(bytes\): has 65 channels; expected at most 64$"):
        audio.load(file.getvalue())


def test_time_stamps_years_apart_allocate_no_silence():
    sound = [audio_file.Block(np.ones(100, np.float32), 16_000, time=1e9)]
    part = audio_file.take(audio_file.placed(sound, 0.0), 1e9 - 1, None, 60, "video")
    assert (part.samples.size, part.samples.sum(), part.fault, part.heard) == (16_100, 100, "", True)
    part = audio_file.take(audio_file.placed(sound, 0.0), None, None, 60, "video")
    assert "but the model's context has room for 60.0 s" in part.fault


@pytest.mark.parametrize("name", ["a.aiff", "a.w64", "a.caf", "a.wav"])
def test_a_huge_stated_chunk_size_prints_no_traceback(tmp_path, capfd, name):
    """C libraries seek to the stated end, and print the exceptions of a Python file object."""
    path = tmp_path / name
    soundfile.write(path, np.zeros(4000, np.float32), 16_000, format=name[2:].upper())
    content = path.read_bytes()
    for at in range(0, 100, 4):
        for huge in (b"\x7f" + b"\xff" * 7, b"\xff" * 7 + b"\x7f", b"\xff" * 8):
            path.write_bytes(content[:at] + huge + content[at + 8 :])
            for source in (path, path.read_bytes()):
                with contextlib.suppress(ValueError):
                    audio.load(source)
    assert capfd.readouterr().err == ""
