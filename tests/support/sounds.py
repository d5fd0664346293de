"""Sounds that the tests write, and those that are refused."""

from pathlib import Path

import av
import numpy as np
import pytest

from omni_jax.errors import UserError
from omni_jax.processing.media import audio
from omni_jax.processing.options import MediaOptions

HELLO = Path(audio.__file__).parents[2] / "assets" / "hello.flac"
SECONDS, PITCH = 0.5, 1_000  # Hz


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


PART = MediaOptions(audio_start=0.1, audio_end=0.35)


def assert_refused(source, pattern, **options):
    with pytest.raises(ValueError, match=pattern) as caught:
        audio.load(source, **options)
    assert type(caught.value) in (ValueError, UserError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Missing data


def ticks(seconds, rate=16_000):
    """A sound with another loudness in each second: [W, 1]."""
    second = np.arange(round(seconds * rate)) // rate
    return (0.05 * (second + 1) * np.sign(np.sin(np.arange(second.size) * 0.2 + 0.1)))[:, None].astype(np.float32)
