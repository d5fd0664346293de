"""A whole conversation against the output of Transformers' Qwen2.5-Omni processor.

Its constructor needs torchvision, so its methods are called one by one, as its own __call__ does: chat template,
placeholders, tokenizer, feature extractor, image processor. Its video processor has no path without torchvision; patches of
videos are ours.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers import WhisperFeatureExtractor
from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.whisper import feature_extraction_whisper

from omni_jax.config import from_hf
from omni_jax.processing.batch import Batch
from omni_jax.processing.media import audio
from omni_jax.processing.media.reader import Reader
from omni_jax.processing.options import MediaOptions
from omni_jax.processing.prompt import load_tokenizer
from omni_jax.processing.request import prepare
from omni_jax.testing import tiny_qwen2_5_config, write_tokenizer
from omni_jax.testing.qwen2_5_omni import preprocessor_qwen2_5
from omni_jax.testing.tokenizer_qwen2_5 import QWEN2_5

HELLO = Path(audio.__file__).parents[2] / "assets" / "hello.flac"
SECONDS = 10  # instead of 300, because their transform is slow
NUMBERS = preprocessor_qwen2_5(tiny_qwen2_5_config()["thinker_config"]) | {"chunk_length": SECONDS}
CONFIG = from_hf(tiny_qwen2_5_config()).thinker


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer"), QWEN2_5))


def processor(tokenizer):
    """The reference's processor without its constructor."""
    names = ("image", "audio", "video", "vision_bos", "vision_eos", "audio_bos", "audio_eos")
    made = object.__new__(Qwen2_5OmniProcessor)
    for name in names:
        setattr(made, f"{name}_token", getattr(tokenizer, f"{name}_token"))
    made.tokenizer = tokenizer
    made.feature_extractor = WhisperFeatureExtractor(**{key: NUMBERS[key] for key in ("feature_size", "chunk_length")})
    made.image_processor = Qwen2VLImageProcessorPil(
        **{key: NUMBERS[key] for key in ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")},
        size={"shortest_edge": NUMBERS["min_pixels"], "longest_edge": NUMBERS["max_pixels"]},
    )
    made.video_processor = SimpleNamespace(merge_size=2, temporal_patch_size=2)
    return made


def theirs(made, conversation, *, images, clips, videos, sound_of):
    """Keywords of the reference's model; ``sound_of``: the clip of each video, None for a silent one."""
    of_sound, sounds = made._process_audio(clips, sampling_rate=16_000, return_attention_mask=True, return_tensors="np")
    of_images = made.image_processor(images=images, return_tensors="np")
    seen = {
        "video_grid_thw": np.array([video.grid for video in videos]),
        "video_second_per_grid": [video.seconds for video in videos],
    }
    options = {"load_audio_from_video": True, "position_id_per_seconds": 25, "seconds_per_chunk": 2.0}
    films = [made.replace_video_token(seen, n, of_sound, sound_of, **options) for n in range(len(videos))]
    runs = {
        made.audio_token: iter([run for n, run in enumerate(sounds) if n not in sound_of]),
        made.image_token: iter([made.replace_image_token(of_images, n) for n in range(len(images))]),
        made.video_token: iter(films),
    }
    text = made.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    parts = text.split("<|")
    for n, part in enumerate(parts):
        name, _, rest = part.partition("|>")
        if f"<|{name}|>" in runs:
            parts[n] = next(runs[f"<|{name}|>"])[2:] + rest
    assert [list(left) for left in runs.values()] == [[], [], []]
    inputs = made.tokenizer(["<|".join(parts)], return_tensors="np")
    of_sound.pop("num_audio_tokens")
    patches = np.concatenate([video.patches for video in videos])
    return {**inputs, **of_sound, **of_images, **seen, "pixel_values_videos": patches, "use_audio_in_video": True}


def test_a_conversation_of_all_media_equals_the_processors(tokenizer, films, monkeypatch):
    """Two clips, two pictures, a film with its sound and one without."""
    monkeypatch.setattr(feature_extraction_whisper, "is_torch_available", lambda: False)
    hello, noise = audio.load(HELLO), np.random.default_rng(0).normal(scale=0.1, size=7961).astype(np.float32)
    pictures = [
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (60, 90 + 40 * n, 3)).astype(np.uint8))
        for n in (0, 1)
    ]
    conversation = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {
            "role": "user",
            "content": [
                {"type": "audio", "audio": hello},
                {"type": "image", "image": pictures[0]},
                {"type": "video", "video": str(films / "sounding.mp4")},
                {"type": "text", "text": "What is this?"},
                {"type": "video", "video": str(films / "silent.mp4"), "use_audio_in_video": False},
                {"type": "audio", "audio": noise},
            ],
        },
        {"role": "assistant", "content": "A film."},
        {"role": "user", "content": [{"type": "image", "image": pictures[1]}, {"type": "text", "text": "And that?"}]},
    ]
    reader, options = Reader.from_hf(NUMBERS, CONFIG), MediaOptions(load_audio_from_video=True)
    ours = prepare([conversation], tokenizer=tokenizer, reader=reader, options=[options])
    made = processor(tokenizer)
    clips = [hello, audio.load(str(films / "sounding.mp4")), noise]
    given = theirs(made, conversation, images=pictures, clips=clips, videos=ours.videos, sound_of=[1, None])
    found = Batch.from_hf(given).located(CONFIG)
    np.testing.assert_array_equal(ours.tokens, found.tokens)
    np.testing.assert_array_equal(ours.positions, found.positions)
    assert given["input_features"].shape == (3, 128, 100 * SECONDS)
    assert [clip.shape for clip in ours.mel] == [clip.shape for clip in found.mel]
    for mine, own in zip(ours.mel, found.mel, strict=True):
        np.testing.assert_allclose(mine, own, rtol=0, atol=1e-5)
    for mine, own in zip(ours.images, found.images, strict=True):
        assert mine.grid == own.grid
        np.testing.assert_allclose(mine.patches, own.patches, rtol=0, atol=2e-6)
    for index in (Batch.audio_index, Batch.visual_index):
        np.testing.assert_array_equal(index(ours, CONFIG), index(found, CONFIG))
