"""Sound output: files are complete or absent, and streams have a header that players understand."""

import io
import os
import resource
import sys

import numpy as np
import pytest
import soundfile

from omni_jax.cli.sound_file import sound_out

WAVE = np.sin(np.arange(5000) / 7).astype(np.float32)
KINDS = ["wav", "flac"]


def pcm(samples):
    return np.rint(np.clip(samples, -1, 1) * 32767).astype(np.int16)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "A.WAV"])
def test_chunks_are_written_to_one_file(tmp_path, name):
    with sound_out(str(tmp_path / name)) as sound:
        for piece in (WAVE[:1], WAVE[1:1], WAVE[1:4000], WAVE[4000:]):
            sound.write(piece)
        assert sound.seconds == len(WAVE) / 24_000
    info = soundfile.info(tmp_path / name)
    assert (info.format.lower(), info.subtype) == (name[2:].lower(), "PCM_16")
    assert (info.samplerate, info.channels) == (24_000, 1)
    assert (soundfile.read(tmp_path / name, dtype="int16")[0] == pcm(WAVE)).all()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_samples_beyond_full_scale_are_clipped(tmp_path):
    with sound_out(str(tmp_path / "a.wav"), sample_rate=8000) as sound:
        sound.write(np.asarray([-3, -1, 0, 1, 3], np.float32))
    samples, rate = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert (samples.tolist(), rate) == ([-32767, -32767, 0, 32767, 32767], 8000)


@pytest.mark.parametrize(("kind", "samples"), [("wav", 0), ("flac", 1)])
def test_an_empty_reply_writes_a_file(tmp_path, kind, samples):
    """A flac file then holds one sample, because without samples it would have no header."""
    with sound_out(str(tmp_path / f"a.{kind}")):
        pass
    assert not soundfile.read(tmp_path / f"a.{kind}")[0].any()
    assert soundfile.info(tmp_path / f"a.{kind}").frames == samples


@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_leaves_the_old_file_and_nothing_else(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"old")

    def crash():
        with sound_out(str(path)) as sound:
            sound.write(WAVE)
            assert path.read_bytes() == b"old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        crash()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("reason", [KeyboardInterrupt, BrokenPipeError])
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_file_keeps_the_speech_so_far(tmp_path, kind, reason):
    path = tmp_path / f"a.{kind}"

    def stop(*pieces):
        with sound_out(str(path)) as sound:
            for piece in pieces:
                sound.write(piece)
            raise reason

    with pytest.raises(reason):
        stop()
    assert not list(tmp_path.iterdir())  # nothing was spoken, so there is no file
    with pytest.raises(reason):
        stop(WAVE[:3000], WAVE[3000:])
    assert (soundfile.read(path, dtype="int16")[0] == pcm(WAVE)).all()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_reported(tmp_path, kind):
    noise = np.random.default_rng(0).uniform(-1, 1, 24_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        with sound_out(str(tmp_path / f"a.{kind}")) as sound:
            for _ in range(4):
                sound.write(noise)

    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"a.{kind}: could not be written to its end"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_symbolic_link_is_kept(tmp_path):
    (tmp_path / "there.wav").write_bytes(b"old")
    (tmp_path / "here.wav").symlink_to("there.wav")
    with sound_out(str(tmp_path / "here.wav")) as sound:
        sound.write(WAVE)
    assert (tmp_path / "here.wav").is_symlink()
    assert soundfile.info(tmp_path / "there.wav").frames == len(WAVE)


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "a.mp3": "expected a name that ends in .wav or .flac, or - for standard output",
        "a": "expected a name that ends in .wav or .flac",
        "": "expected a name that ends in .wav or .flac",
        "absent/a.wav": "there is no folder .*absent; make it first",
        "folder.wav": "expected the name of a file to write, got a folder or a device",
        f"{'a' * 250}.wav": "cannot be written there .File name too long.; choose another folder",
    }.items(),
    ids=["mp3", "none", "empty", "absent", "folder", "long"],
)
def test_unwritable_targets_are_refused(tmp_path, name, words):
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(ValueError, match=words) as found, sound_out(str(tmp_path / name)):
        pass
    assert "\n" not in str(found.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.wav"]


def test_a_stream_writes_its_header_and_samples_at_once(capsysbinary):
    with sound_out("-") as sound:
        assert capsysbinary.readouterr().out == b""
        sound.write(WAVE[:10])
        first = capsysbinary.readouterr().out
        assert len(first) == 44 + 20
        sound.write(WAVE[10:])
        rest = capsysbinary.readouterr().out
    assert capsysbinary.readouterr().out == b""
    samples, rate = soundfile.read(io.BytesIO(first + rest), dtype="int16")
    assert rate == 24_000
    assert (samples == pcm(WAVE)).all()


def test_an_empty_stream_writes_a_header(capsysbinary):
    with sound_out("-"):
        pass
    assert soundfile.info(io.BytesIO(capsysbinary.readouterr().out)).frames == 0


def test_a_user_error_writes_nothing_to_the_stream(capsysbinary):
    with pytest.raises(ValueError, match="such"), sound_out("-"):
        raise ValueError("such")
    assert capsysbinary.readouterr().out == b""


def test_a_stream_ends_when_its_player_closes(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        with pytest.raises(BrokenPipeError), sound_out("-") as sound:
            sound.write(WAVE)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), writer)  # closing it flushes the rest


def test_a_terminal_as_standard_output_is_refused(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(ValueError, match="standard output is a terminal; send it to a player"), sound_out("-"):
        pass
