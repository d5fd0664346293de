"""Sound of any format, rate, channels and type gives the right samples, and a part is cut by time."""

import base64
import functools
import http.server
import io
import math
import os
import threading
from urllib.parse import quote

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.processing.media import audio, audio_file
from omni_jax.processing.options import MediaOptions
from tests.support.sounds import HELLO, PART, PITCH, SECONDS, as_int16, assert_refused, tone, write_av, write_video

RATES = (8_000, 22_050, 44_100, 48_000)


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


@settings(deadline=None, max_examples=50)
@given(rate=st.integers(1_000, 200_000), seconds=st.floats(0.02, 0.2), channels=st.integers(1, 3))
def test_resampling_keeps_the_duration(rate, seconds, channels):
    length = int(seconds * rate)
    samples = audio.load((np.full((channels, length), 0.25), rate))
    assert samples.size == -(-length * 16_000 // rate)
    assert np.isfinite(samples).all()
