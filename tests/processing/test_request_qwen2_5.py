"""Requests of Qwen2.5-Omni: placeholders, start and end tokens, clips padded with silence, and the needs of speech."""

import dataclasses

import numpy as np
import pytest

from omni_jax.config import from_hf
from omni_jax.processing.batch import Batch
from omni_jax.processing.conversation import SPOKEN_SYSTEM, speaks
from omni_jax.processing.conversation import media as list_media
from omni_jax.processing.media import audio, patches, reader
from omni_jax.processing.media.reader import Reader
from omni_jax.processing.options import per_conversation
from omni_jax.processing.positions import interleave
from omni_jax.processing.prompt import load_tokenizer, render
from omni_jax.processing.request import prepare
from omni_jax.testing import tiny_config, tiny_qwen2_5_config, write_tokenizer
from omni_jax.testing.qwen2_5_omni import preprocessor_qwen2_5
from omni_jax.testing.tokenizer_qwen2_5 import QWEN2_5

PUBLISHED = {
    "processor_class": "Qwen2_5OmniProcessor", "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136,
    "max_pixels": 12845056, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "feature_extractor_type": "WhisperFeatureExtractor", "sampling_rate": 16000, "feature_size": 128, "n_fft": 400,
    "hop_length": 160, "chunk_length": 300, "n_samples": 4800000, "nb_max_frames": 30000, "dither": 0.0,
    "padding_side": "right", "padding_value": 0.0, "return_attention_mask": True,
}  # fmt: skip
CONFIG = from_hf(tiny_qwen2_5_config()).thinker
READER = Reader.from_hf(preprocessor_qwen2_5(tiny_qwen2_5_config()["thinker_config"]), CONFIG)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer"), QWEN2_5))


@pytest.fixture(scope="module")
def make(tokenizer):
    def call(*conversations, reader=READER, **options):
        how, template = per_conversation(None, options, len(conversations))
        return prepare(conversations, tokenizer=tokenizer, reader=reader, options=how, template=template)

    return call


def sound(samples, seed=0):
    return np.random.default_rng([seed, samples]).normal(scale=0.1, size=samples).astype(np.float32)


def picture(height=56, width=84, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def user(*parts):
    return [{"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]


# --- settings of the checkpoint's files


def test_the_published_settings_are_read():
    reader = Reader.from_hf(PUBLISHED, CONFIG)
    assert reader.sound == audio.FeatureConfig(pad_seconds=300)
    clip = {"mean": tuple(PUBLISHED["image_mean"]), "std": tuple(PUBLISHED["image_std"])}
    assert reader.patches == patches.PatchConfig(patch=14, min_pixels=3136, max_pixels=12_845_056, **clip)
    assert reader.patches.factor == 28


def test_qwen3_omni_never_pads_clips():
    assert Reader.from_hf(PUBLISHED, from_hf(tiny_config()).thinker).sound == audio.FeatureConfig()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chunk_length": None}, "chunk_length is None .expected a whole number of seconds"),
        ({}, "chunk_length is missing"),
    ],
)
def test_padding_needs_chunk_length(change, said):
    numbers = {**PUBLISHED, **change}
    if not change:
        del numbers["chunk_length"]
    with pytest.raises(ValueError, match=f"^preprocessor_config.json: {said}"):
        Reader.from_hf(numbers, CONFIG)


# --- sound


def test_a_clip_has_ceil_of_n_over_160_frames(make, tokenizer):
    """ceil(n / 160) frames, alone and in a batch; the encoder makes a token of each pair of every other frame."""
    sizes = (7961, 16_000, 321)
    batch = make(user(*({"audio": sound(size)} for size in sizes)))
    frames = [50, 100, 3]
    assert [clip.shape for clip in batch.mel] == [(128, n) for n in frames]
    runs = tokenizer.decode(batch.tokens[0]).split("<|audio_bos|>")[1:]
    assert [run.count("<|AUDIO|>") for run in runs] == [12, 25, 1]
    assert all(run.startswith("<|AUDIO|>") for run in runs)
    for size, clip in zip(sizes, batch.mel, strict=True):
        np.testing.assert_array_equal(make(user({"audio": sound(size)})).mel[0], clip)
    np.testing.assert_array_equal(batch.positions[:, 0], np.tile(np.arange(batch.tokens.shape[1]), (3, 1)))
    assert batch.audio_index(CONFIG).max() == 12 + 25 + 1 - 1


def test_sound_over_five_minutes_is_not_cut(make):
    """The reference's processor cuts it at 300 s; here the limit is 1 s, so that nothing is large."""
    short = dataclasses.replace(READER, sound=dataclasses.replace(READER.sound, pad_seconds=1))
    batch = make(user({"audio": sound(3 * 16_000)}), reader=short)
    assert batch.mel[0].shape == (128, 300)
    np.testing.assert_array_equal(batch.mel[0], audio.log_mel(sound(3 * 16_000), audio.FeatureConfig()))


@pytest.mark.parametrize("samples", [201, 320])
def test_sound_too_short_for_a_token_raises_one_line(make, samples):
    said = (
        f"^message 0, part 1: audio .ndarray.: {samples} samples at 16000 Hz make 2 frames of 10 ms, too few for a token; "
        "expected at least 3 frames$"
    )
    with pytest.raises(ValueError, match=said) as error:
        make(user("What?", {"audio": sound(samples)}))
    assert "\n" not in str(error.value)


def test_sound_beyond_the_context_is_refused(make):
    """25 tokens a second."""
    small = dataclasses.replace(READER, thinker=dataclasses.replace(CONFIG, context=250))
    with pytest.raises(ValueError, match=r"at least 11.0 s of sound, but the model's context has room for 10.0 s"):
        make(user({"audio": sound(11 * 16_000)}), reader=small)


# --- sight


def test_pictures_and_videos_become_patches_and_positions(make, films, tokenizer):
    """Patches of 14 pixels and the tokens of this family; a video's steps have the distance of its frames."""
    batch = make(user({"image": picture()}, {"video": str(films / "silent.mp4"), "nframes": 4}))
    (seen,), (film,) = batch.images, batch.videos
    assert (seen.grid, seen.patches.shape) == ((1, 4, 6), (24, 3 * 2 * 14 * 14))
    assert film.grid[0] == 2
    assert film.seconds == pytest.approx(2 * 2.9 / 3)
    text = tokenizer.decode(batch.tokens[0])
    steps = film.grid[0] * film.grid[1] * film.grid[2] // 4
    assert "<|vision_bos|>" + "<|IMAGE|>" * 6 + "<|vision_eos|><|vision_bos|>" + "<|VIDEO|>" * steps in text
    times = batch.positions[0, 0][batch.tokens[0] == CONFIG.video_token]
    assert np.unique(times).size == 2
    assert np.ptp(times) == int(film.seconds * 25)


def test_two_frames_a_second_give_steps_of_one_second(make):
    frames = {"video": np.stack([picture(seed=n) for n in range(4)])}
    assert make(user(frames)).videos[0].seconds == 1.0
    assert make(user({**frames, "fps": 4.0})).videos[0].seconds == 0.5


def test_a_video_and_its_sound_alternate(make, films):
    film = {"video": str(films / "sounding.mp4")}
    made = reader.read(list_media(user(film)), READER, per_conversation(None, {"use_audio_in_video": True}, 1)[0][0])
    (seen,), (clip,), (run,) = made.videos, made.mel, made.runs[CONFIG.video_token]
    mixed = interleave(seen.grid, seen.seconds, CONFIG.audio_encoder.tokens(clip.shape[1]), CONFIG)
    assert run == [CONFIG.audio_start, *mixed, CONFIG.audio_end]
    kinds = (mixed == CONFIG.video_token).astype(int)
    assert np.abs(np.diff(kinds)).sum() == 3  # pictures, sound; and again


def test_videos_with_and_without_sound_share_a_batch(make, films):
    """The reference gives a silent video in such a call positions of text. Each row and video is as alone."""
    silent = {"video": str(films / "silent.mp4"), "use_audio_in_video": False, "nframes": 4}
    sounding = {"video": str(films / "sounding.mp4"), "use_audio_in_video": True, "nframes": 4}
    rows = [user(silent, "and", sounding), user(sounding), user(silent, {"audio": sound(16_000)})]
    batch = make(*rows)
    for number, row in enumerate(rows):
        alone = make(row)
        length = alone.tokens.shape[1]
        np.testing.assert_array_equal(batch.tokens[number, :length], alone.tokens[0])
        np.testing.assert_array_equal(batch.positions[:, number, :length], alone.positions[:, 0])
        shown = np.flatnonzero(alone.tokens[0] == CONFIG.video_token)[:8]
        assert (np.diff(alone.positions[1, 0, shown]) <= 1).all()
        assert alone.positions[1, 0, shown].max() < alone.positions[0, 0, shown[0]] + 8


# --- a Transformers processor's output


def test_a_processors_output_becomes_a_batch():
    """Clips padded to five minutes with a mask, and seconds of videos as a plain list."""
    frames, steps = np.array([50, 3]), [1.0, 0.5]
    features = np.full((2, 128, 30_000), np.nan, np.float32)
    clips = [np.random.default_rng(n).normal(size=(128, n)).astype(np.float32) for n in frames]
    for row, clip in zip(features, clips, strict=True):
        row[:, : clip.shape[1]] = clip
    c = CONFIG
    heard = [c.audio_start, *[c.audio_token] * 12, c.audio_end]
    film = [c.vision_start, *[c.video_token] * 2, c.vision_end]
    mixed = [c.vision_start, c.audio_start, c.video_token, c.video_token, c.audio_token, c.audio_end, c.vision_end]
    row = [*heard, *film, *mixed]
    width = c.vision_encoder.patch_width
    batch = Batch.from_hf(
        {
            "input_ids": [[0, 0, *row]],
            "attention_mask": [[0, 0, *[1] * len(row)]],
            "input_features": features,
            "feature_attention_mask": (np.arange(30_000) < frames[:, None]).astype(np.int32),
            "pixel_values_videos": np.zeros((16, width), np.float32),
            "video_grid_thw": [[2, 2, 2], [2, 2, 2]],
            "video_second_per_grid": steps,
        }
    )
    for mel, clip in zip(batch.mel, clips, strict=True):
        np.testing.assert_array_equal(mel, clip)
    assert [film.seconds for film in batch.videos] == steps
    located = batch.located(c)
    assert located.audio_index(c).max() == 12
    assert located.visual_index(c).max() == 3
    real = located.positions[0, 0, 2:]
    np.testing.assert_array_equal(real[14:], [14, 15, 40, 41, 42, 42, 43, 55, 43, 44, 44])


def test_a_clip_of_an_array_may_be_too_short_for_a_token():
    """As in the reference, it has no placeholder and no feature."""
    batch = Batch.from_tokens([[CONFIG.audio_start, CONFIG.audio_end]], mel=[np.zeros((128, 2), np.float32)])
    assert (batch.audio_index(CONFIG) == -1).all()


# --- prompt


def test_the_template_renders_the_expected_prompt(tokenizer):
    conversation = user({"audio": "a.wav"}, {"image": "b.png"}, {"video": "c.mp4"}, "What?")
    assert render(tokenizer, conversation) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|audio_bos|><|AUDIO|><|audio_eos|><|vision_bos|><|IMAGE|><|vision_eos|>"
        "<|vision_bos|><|VIDEO|><|vision_eos|>What?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tools_that_the_template_would_drop_are_refused(tokenizer):
    tool = {"type": "function", "function": {"name": "clock", "parameters": {}}}
    with pytest.raises(ValueError, match=r"^tools: this checkpoint's chat template ignores them") as error:
        render(tokenizer, user("Time?"), tools=[tool])
    assert "\n" not in str(error.value)
    assert "Time?" in render(tokenizer, user("Time?"), tools=[])


WRITTEN = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and visual "
    "inputs, as well as generating text and speech."
)


def system(content):
    return [{"role": "system", "content": content}, *user("Hello")]


@pytest.mark.parametrize(
    ("conversation", "expected"),
    [
        (system(WRITTEN), True),
        (system([{"type": "text", "text": SPOKEN_SYSTEM}]), True),
        (system([{"text": SPOKEN_SYSTEM}]), True),
        (user("Hello"), False),
        (user(SPOKEN_SYSTEM), False),
        (system("You are a helpful assistant."), False),
        (system(SPOKEN_SYSTEM + " "), False),
        (system([{"text": SPOKEN_SYSTEM}, {"text": "Be brief."}]), False),
        (system([{"audio": np.zeros(9)}]), False),
        ([*user("Hello"), *system(SPOKEN_SYSTEM)], False),
    ],
)
def test_speech_needs_its_system_message(conversation, expected):
    assert speaks(conversation) is expected


def test_speaks_refuses_an_empty_conversation():
    with pytest.raises(ValueError, match="conversation: no messages"):
        speaks([])
