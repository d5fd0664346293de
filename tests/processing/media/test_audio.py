"""Sound of any format, rate, channels and type gives the right samples and features; faults are named."""

import base64
import contextlib
import functools
import http.server
import io
import json
import math
import os
import re
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from urllib.parse import quote

import av
import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.processing.media import audio, audio_file, patches, video
from omni_jax.processing.options import MediaOptions

HELLO = Path(audio.__file__).parents[2] / "assets" / "hello.flac"
GOLDEN = Path(__file__).parents[2] / "goldens" / "mel_hello.npz"
RATES = (8_000, 22_050, 44_100, 48_000)
SECONDS, PITCH = 0.5, 1_000  # Hz
CONFIG = audio.FeatureConfig()


def tone(rate, channels):
    """[W, channels] with a tone in the first channel only, so the mean is the tone over the number of channels."""
    samples = np.zeros((round(SECONDS * rate), channels), np.float32)
    samples[:, 0] = 0.8 * np.sin(2 * np.pi * PITCH / rate * np.arange(len(samples)))
    return samples


def as_int16(samples):
    return np.round(samples * 32767).astype(np.int16)


def write_av(path, samples, rate, codec, **names):
    """Encodes [W, channels] by PyAV, in the container that the path names, with a title and similar fields."""
    with av.open(str(path), "w") as container:
        container.metadata.update(names)
        layout = "mono" if samples.shape[1] == 1 else "stereo"
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(as_int16(samples).reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_video(path, *tracks):
    """Writes one black picture, and [W, 1] samples at 16 kHz as tracks of sound."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        sounds = [container.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in tracks]
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for sound, samples in zip(sounds, tracks, strict=True):
            frame = av.AudioFrame.from_ndarray(as_int16(samples).reshape(1, -1), format="s16", layout="mono")
            frame.sample_rate = 16_000
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))


def peak(samples):
    """Frequency in Hz and amplitude of the strongest partial."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(samples.size)))
    return np.argmax(spectrum) * audio.SAMPLE_RATE / samples.size, spectrum.max() * 4 / samples.size


def assert_is_tone(samples, channels):
    """Asserts equality with the tone at 16 kHz, sample by sample, without the ends, where a resampler meets an edge."""
    assert samples.dtype == np.float32
    assert samples.shape == (round(SECONDS * audio.SAMPLE_RATE),)
    expected = tone(audio.SAMPLE_RATE, 1)[:, 0] / channels
    np.testing.assert_allclose(samples[200:-200], expected[200:-200], atol=2e-4)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "FLOAT"), ("flac", "PCM_16"), ("aiff", "PCM_24")],
)
def test_lossless_files_are_read_by_soundfile(tmp_path, suffix, subtype, rate, channels):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(rate, channels), rate, subtype=subtype)
    assert_is_tone(audio.load(path), channels)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "pcm_s16le"), ("m4a", "alac")])  # interleaved, planar
def test_lossless_files_are_read_by_pyav(tmp_path, suffix, codec, rate, channels):
    path = tmp_path / f"tone.{suffix}"
    write_av(path, tone(rate, channels), rate, codec)
    with pytest.raises(soundfile.SoundFileError):
        soundfile.info(path)
    assert_is_tone(audio.load(path), channels)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("suffix", ["ogg", "mp3", "m4a"])
def test_lossy_files_are_read(tmp_path, suffix, rate, channels):
    path = tmp_path / f"tone.{suffix}"
    if suffix == "m4a":
        write_av(path, tone(rate, channels), rate, "aac")
    else:
        soundfile.write(path, tone(rate, channels), rate)
    samples = audio.load(path)
    codec_frame = 2048 / rate  # seconds that an encoder may append at the end
    assert SECONDS <= samples.size / audio.SAMPLE_RATE <= SECONDS + codec_frame
    frequency, amplitude = peak(samples[: round(SECONDS * audio.SAMPLE_RATE)])
    assert frequency == pytest.approx(PITCH, abs=audio.SAMPLE_RATE / samples.size)
    assert amplitude == pytest.approx(0.8 / channels, rel=0.1)


def test_opus_is_read(tmp_path):
    path = tmp_path / "tone.opus"
    soundfile.write(path, tone(48_000, 1), 48_000, format="OGG", subtype="OPUS")
    samples = audio.load(path)
    assert samples.size == round(SECONDS * audio.SAMPLE_RATE)
    assert peak(samples)[0] == pytest.approx(PITCH, abs=audio.SAMPLE_RATE / samples.size)


@pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("mp4", "aac"), ("webm", "libopus")])
def test_a_title_that_is_not_utf_8_does_not_matter(tmp_path, suffix, codec):
    path = tmp_path / f"tone.{suffix}"
    write_av(path, tone(48_000, 1), 48_000, codec, title="Gr\u00fc\u00dfe")
    content = path.read_bytes()
    latin = content.replace("Gr\u00fc\u00dfe".encode(), b"Gr\xfc\xdfe!!")  # of the same length, in Latin-1
    assert latin != content
    assert peak(audio.load(latin)[:8_000])[0] == pytest.approx(PITCH, abs=2)


@pytest.mark.parametrize("reader", ["_by_soundfile", "track"])
def test_an_internal_type_error_is_not_called_a_damaged_file(monkeypatch, reader):
    def changed(file):
        raise TypeError("open() got an unexpected keyword argument")
        yield

    monkeypatch.setattr(audio_file, reader, changed)
    content = HELLO.read_bytes() if reader == "_by_soundfile" else b"ftyp" * 1000  # which soundfile refuses
    with pytest.raises(TypeError, match="unexpected keyword"):
        audio.load(content)


def test_every_kind_of_path_gives_equal_samples():
    expected = soundfile.read(HELLO, dtype="float32")[0]
    content = HELLO.read_bytes()
    sources = [
        HELLO,
        str(HELLO),
        HELLO.as_uri(),
        content,
        bytearray(content),
        memoryview(content),
        io.BytesIO(content),
        f"data:audio/flac;base64,{base64.b64encode(content).decode()}",
        f"data:audio/flac;base64,{quote(base64.b64encode(content), safe='')}",
        expected,
        (expected, audio.SAMPLE_RATE),
        (expected, np.float32(audio.SAMPLE_RATE)),
    ]
    with open(HELLO, "rb") as file:
        loaded = [audio.load(source) for source in [*sources, file]]
    for samples in loaded:
        np.testing.assert_array_equal(samples, expected)


def test_a_url_is_read():
    handler = functools.partial(QuietHandler, directory=HELLO.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/"
            samples = audio.load(url + HELLO.name, options=MediaOptions(allow_private=True))
            assert_refused(url + "none.flac", "404", options=MediaOptions(allow_private=True))
        finally:
            server.shutdown()
            thread.join()
    np.testing.assert_array_equal(samples, audio.load(HELLO))


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_a_file_object_can_be_read_twice():
    with open(HELLO, "rb") as file:
        np.testing.assert_array_equal(audio.load(file), audio.load(file))


def test_the_first_sound_track_of_a_video_is_read(tmp_path):
    write_video(tmp_path / "video.mkv", tone(16_000, 1), np.zeros((8_000, 1)))
    assert_is_tone(audio.load((tmp_path / "video.mkv").read_bytes()), 1)


PART = MediaOptions(audio_start=0.1, audio_end=0.35)


def part_sources(folder):
    """The tone at 44.1 kHz as every kind of source from which a part is cut."""
    samples = tone(44_100, 2)
    soundfile.write(folder / "tone.flac", samples, 44_100)
    write_av(folder / "tone.m4a", samples, 44_100, "alac")
    return [folder / "tone.flac", folder / "tone.m4a", (samples, 44_100)]


@pytest.mark.parametrize("block", [1 << 18, 1_000])
def test_a_part_is_cut_out(tmp_path, monkeypatch, block):
    monkeypatch.setattr(audio_file, "BLOCK_FRAMES", block)
    expected = tone(16_000, 1)[1_600:5_600, 0] / 2
    for source in part_sources(tmp_path):
        samples = audio.load(source, options=PART)
        assert samples.shape == (4_000,)
        np.testing.assert_allclose(samples[200:-200], expected[200:-200], atol=2e-4)
    whole = tone(16_000, 1)
    np.testing.assert_array_equal(audio.load(whole, options=PART), whole[1_600:5_600, 0])


def test_a_part_beyond_the_end_is_refused(tmp_path):
    late, long = MediaOptions(audio_start=0.5), MediaOptions(audio_start=0.4, audio_end=9)
    for source in part_sources(tmp_path):
        assert audio.load(source, options=long).shape == (1_600,)
        assert_refused(source, r"audio_start is 0\.5 s, but the sound ends at 0\.500 s", options=late)
        assert_refused(source, "0 samples .* too few", options=MediaOptions(audio_start=0.2, audio_end=0.2))


def test_only_faults_within_the_part_count(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_file, "BLOCK_FRAMES", 1_000)
    bad_files(tmp_path)
    middle = np.where(np.arange(16_000) == 8_000, np.nan, 0)
    for source in (middle, tmp_path / "nan.wav"):
        assert audio.load(source, options=MediaOptions(audio_end=0.5)).shape == (8_000,)
        assert_refused(source, r"the first at 0\.500 s", options=MediaOptions(audio_start=0.3))
    cut = audio.load(tmp_path / "cut.flac", options=MediaOptions(audio_end=0.1))  # decoding stops there
    np.testing.assert_array_equal(cut, audio.load(HELLO)[:1_600])


@settings(deadline=None, max_examples=50)
@given(start=st.integers(0, 3_000), size=st.integers(201, 2_000), sizes=st.lists(st.integers(0, 700), min_size=1))
def test_a_part_of_any_blocks_has_the_right_samples(start, size, sizes):
    samples = np.arange(sum(sizes), dtype=np.float32)
    blocks = np.split(samples, np.cumsum(sizes)[:-1])
    options = MediaOptions(audio_start=start / 16_000, audio_end=(start + size) / 16_000)
    taken = [audio_file.Block(block, 16_000) for block in blocks]
    part = audio_file.take(taken, options.audio_start, options.audio_end, math.inf, "audio")
    np.testing.assert_array_equal(part.samples, samples[start : start + size])
    # Seconds are a sum of floats; in samples they are whole numbers.
    assert min(samples.size, start + size) <= round(part.seen * 16_000, 6) <= samples.size
    assert not part.fault


def test_a_pipe_is_read():
    end, start = os.pipe()
    with open(start, "wb") as file:
        file.write(HELLO.read_bytes())  # 40 kB: less than a pipe holds
    try:
        assert audio.load(f"/dev/fd/{end}").size == soundfile.info(HELLO).frames
    finally:
        os.close(end)


def test_a_file_url_with_a_space_is_read(tmp_path):
    path = tmp_path / "a b.wav"
    soundfile.write(path, tone(16_000, 1), 16_000)
    assert "%20" in path.as_uri()
    assert_is_tone(audio.load(path.as_uri()), 1)


def test_a_wrong_suffix_does_not_matter(tmp_path):
    path = tmp_path / "tone.mp3"
    soundfile.write(path, tone(16_000, 1), 16_000, format="WAV")
    assert_is_tone(audio.load(path), 1)
    assert_is_tone(audio.load(path.rename(tmp_path / "tone.raw")), 1)


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (np.int8, [-128, 0, 64], [-1, 0, 0.5]),
        (np.uint8, [0, 128, 192], [-1, 0, 0.5]),
        (np.int16, [-32768, 0, 16384], [-1, 0, 0.5]),
        (np.uint16, [0, 32768, 49152], [-1, 0, 0.5]),
        (np.int32, [-(2**31), 0, 2**30], [-1, 0, 0.5]),
        (np.float16, [-1, 0, 0.5], [-1, 0, 0.5]),
        (np.float64, [-3, 0, 0.5], [-3, 0, 0.5]),
    ],
)
def test_samples_of_any_number_type_are_read(dtype, values, expected):
    samples = audio.load(np.tile(np.array(values, dtype), 100))
    np.testing.assert_array_equal(samples, np.tile(np.array(expected, np.float32), 100))


def test_the_smaller_axis_is_channels_and_their_mean_is_taken():
    stereo = tone(16_000, 2)
    assert_is_tone(audio.load(stereo), 2)
    assert_is_tone(audio.load(stereo.T), 2)
    assert_is_tone(audio.load((as_int16(tone(48_000, 3)).T, 48_000)), 3)
    assert_is_tone(audio.load(tone(16_000, 1).T), 1)


def test_the_result_does_not_alias_the_input():
    samples = tone(16_000, 1)[:, 0]
    assert not np.shares_memory(audio.load(samples), samples)


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


def assert_refused(source, pattern, **options):
    with pytest.raises(ValueError, match=pattern) as caught:
        audio.load(source, **options)
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_files_are_named_with_their_fault(tmp_path):
    for name, pattern in bad_files(tmp_path).items():
        path = tmp_path / name
        assert_refused(path, f"^{re.escape(str(path))}: .*{pattern}")
        assert_refused(str(path), f"^message 3, audio 1: .*{pattern}", name="message 3, audio 1")


# Missing data


def ticks(seconds, rate=16_000):
    """A sound with another loudness in each second: [W, 1]."""
    second = np.arange(round(seconds * rate)) // rate
    return (0.05 * (second + 1) * np.sign(np.sin(np.arange(second.size) * 0.2 + 0.1)))[:, None].astype(np.float32)


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


def test_features_of_the_recording_equal_the_golden_ones():
    with np.load(GOLDEN) as golden:
        features = audio.log_mel(audio.load(HELLO), CONFIG)
        assert features.shape == (128, golden["frames"])
        assert features.dtype == np.float32
        assert features.flags.c_contiguous
        np.testing.assert_allclose(features[:, :: golden["step"]], golden["features"], rtol=0, atol=1e-5)


def test_features_of_silence_are_constant():
    np.testing.assert_array_equal(audio.log_mel(np.zeros(800, np.float32), CONFIG), np.full((128, 5), -1.5))


def test_features_do_not_depend_on_the_block_size(monkeypatch):
    samples = audio.load(HELLO)
    whole = audio.log_mel(samples, CONFIG)
    for frames in (1, 7, whole.shape[1] - 1):
        monkeypatch.setattr(audio, "_MEL_FRAMES", frames)
        np.testing.assert_allclose(audio.log_mel(samples, CONFIG), whole, rtol=0, atol=1e-6)


def test_a_reversed_clip_gives_reversed_frames():
    # Frames are centred on samples 0, 160, ...: with one sample more than whole hops, both ends are reflected alike.
    samples = np.random.default_rng(0).standard_normal(160 * 4 + 1).astype(np.float32)
    forwards, backwards = (audio.log_mel(clip, CONFIG)[:, 1:] for clip in (samples, samples[::-1]))
    np.testing.assert_allclose(backwards, forwards[:, ::-1], rtol=0, atol=1e-6)


def test_a_tone_is_in_its_bin():
    # Slaney's scale has 200/3 Hz a mel up to 1 kHz (500 Hz is 7.5 mel), then 27 / ln(6.4) mel a factor of e.
    top = 15 + 27 * np.log(8) / np.log(6.4)
    samples = np.sin(2 * np.pi * 500 / audio.SAMPLE_RATE * np.arange(8_000)).astype(np.float32)
    strongest = audio.log_mel(samples, CONFIG)[:, 5:-5].argmax(axis=0)
    assert np.all(np.abs(strongest - (7.5 / top * 129 - 1)) <= 1)


@settings(deadline=None, max_examples=50)
@given(
    samples=arrays.arrays(
        np.float32,
        st.integers(201, 3_000),
        elements=st.floats(-1, 1, width=32),
        fill=st.floats(-1, 1, width=32),
    )
)
def test_any_clip_has_one_frame_a_hop(samples):
    loaded = audio.load(samples)
    np.testing.assert_array_equal(loaded, samples)
    features = audio.log_mel(loaded, CONFIG)
    assert features.shape == (128, samples.size // 160)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert features.max() - features.min() <= 2 + 1e-6
    assert features.min() >= -1.5


@settings(deadline=None, max_examples=50)
@given(rate=st.integers(1_000, 200_000), seconds=st.floats(0.02, 0.2), channels=st.integers(1, 3))
def test_resampling_keeps_the_duration(rate, seconds, channels):
    length = int(seconds * rate)
    samples = audio.load((np.full((channels, length), 0.25), rate))
    assert samples.size == -(-length * 16_000 // rate)
    assert np.isfinite(samples).all()


@pytest.mark.parametrize(
    ("samples", "pattern"),
    [
        (np.zeros((2, 1_000), np.float32), r"expected float samples \[W\], got float32 \[2, 1000\]"),
        (np.zeros(1_000, np.int16), r"got int16 \[1000\]"),
        (np.zeros(200, np.float32), "200 samples .* too few"),
        (np.full(1_000, np.nan, np.float32), "NaN or infinite"),
        (np.full(1_000, 1e300), "NaN or infinite"),
    ],
)
def test_features_of_bad_samples_are_refused(samples, pattern):
    with pytest.raises(ValueError, match=pattern):
        audio.log_mel(samples, CONFIG)


PUBLISHED = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "sampling_rate": 16000,
    "feature_size": 128,
    "n_fft": 400,
    "hop_length": 160,
    "dither": 0.0,
    "padding_value": 0.0,
    "n_samples": 4800000,
    "patch_size": 16,
}


def test_the_published_config_is_read():
    assert audio.FeatureConfig.from_hf(json.loads(json.dumps(PUBLISHED))) == audio.FeatureConfig()
    smaller = audio.FeatureConfig.from_hf(PUBLISHED | {"feature_size": 80, "hop_length": 200})
    assert smaller == audio.FeatureConfig(hop=200, mel_bins=80)
    assert audio.log_mel(np.zeros(1_000, np.float32), smaller).shape == (80, 5)
    assert hash(smaller) != hash(audio.FeatureConfig())


def test_the_shortest_clip_has_one_frame():
    for config in (CONFIG, audio.FeatureConfig(hop=400), audio.FeatureConfig(n_fft=512, hop=1)):
        samples = np.zeros(config.min_samples, np.float32)
        assert audio.log_mel(samples, config).shape[1] == config.min_samples // config.hop >= 1
        with pytest.raises(ValueError, match="too few"):
            audio.log_mel(samples[1:], config)


def test_faults_of_a_config_are_reported_in_one_line():
    broken = {"sampling_rate": 8000, "n_fft": 401, "hop_length": 0, "dither": 0.1}
    expected = (
        "preprocessor_config.json: sampling_rate is 8000 (expected 16000); "
        "n_fft is 401 (expected an even number from 2 to 65536); hop_length is 0 (expected 1 to n_fft); "
        "feature_size is missing; dither is 0.1 (expected 0)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        audio.FeatureConfig.from_hf(broken)
    with pytest.raises(ValueError, match=r"^FeatureConfig: hop_length is 160\.0"):
        audio.FeatureConfig(hop=160.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="feature_size is 201"):
        audio.FeatureConfig(mel_bins=201)


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
