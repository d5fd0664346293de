"""Writes mel_hello.npz: log-mel features of the demo's recording by Transformers' WhisperFeatureExtractor.

Its float64 NumPy path is used, whether torch is installed or not: the float32 transform by torch differs
from it by up to 4e-5 on speech. Every third frame is kept, for size. Run: python tests/goldens/make_mel.py
"""

from pathlib import Path
from unittest import mock

import numpy as np
import soundfile
from transformers import WhisperFeatureExtractor
from transformers.models.whisper import feature_extraction_whisper

HERE = Path(__file__).resolve().parent
STEP = 3


def main():
    samples, rate = soundfile.read(HERE.parents[1] / "omni_jax" / "assets" / "hello.flac", dtype="float32")
    extractor = WhisperFeatureExtractor(feature_size=128)
    with mock.patch.object(feature_extraction_whisper, "is_torch_available", return_value=False):
        features = extractor(
            samples,
            sampling_rate=rate,
            padding=True,  # pyright: ignore[reportArgumentType] - to the longest, here itself
            truncation=False,
            return_tensors="np",
        )["input_features"][0]
    np.savez_compressed(HERE / "mel_hello.npz", features=features[:, ::STEP], frames=features.shape[1], step=STEP)


if __name__ == "__main__":
    main()
