"""Qwen2.5-Omni's encoders through the calls of both families: features alone, and inserted into a prompt."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax import Omni
from omni_jax.config import from_hf
from omni_jax.engine import encode
from omni_jax.models import parts as model_parts
from omni_jax.processing.audio_packing import pack
from omni_jax.processing.batch import Batch
from omni_jax.processing.media.reader import Reader, Visual
from omni_jax.processing.positions import interleave
from omni_jax.testing import tiny_qwen2_5_config
from omni_jax.testing.qwen2_5_omni import preprocessor_qwen2_5

OMNI = from_hf(tiny_qwen2_5_config())
CONFIG = OMNI.thinker
TEXT = 7


@pytest.fixture(scope="module")
def parts():
    """All parameters are random: a zero bias would hide a fault where it is added."""
    random = np.random.default_rng(0)
    abstract = model_parts.abstract(OMNI, jnp.float32, speech=False)
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * random.normal(size=leaf.shape), leaf.dtype), abstract)


def clip(frames, seed=0):
    return np.random.default_rng([seed, frames]).normal(size=(128, frames)).astype(np.float32)


def visual(grid, seed=0, seconds=0.0):
    size = int(np.prod(grid)), CONFIG.vision_encoder.patch_width
    return Visual(np.random.default_rng([seed, *grid]).normal(size=size).astype(np.float32), grid, seconds)


def hear(parts, *clips):
    return [np.asarray(features) for features in encode.encode_audio(parts, clips, CONFIG)]


def see(parts, *media):
    patches, grids = [item.patches for item in media], [item.grid for item in media]
    return encode.encode_vision(parts, patches, grids, CONFIG)


def assert_close(found, expected):
    """Equal up to rounding: another number of chunks in a call may change the order of additions."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(np.abs(expected).max(initial=0), 1e-9))


def test_the_reader_pads_clips_to_300_seconds(tmp_path):
    numbers = preprocessor_qwen2_5(tiny_qwen2_5_config()["thinker_config"])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(numbers))
    reader = Omni({}, OMNI, tmp_path).reader
    read = Reader.from_hf(numbers, CONFIG)
    assert (reader.sound, reader.patches, reader.frames) == (read.sound, read.patches, read.patches)
    assert reader.sound.pad_seconds == 300


# --- audio


def test_a_clip_in_a_batch_equals_the_clip_alone(parts):
    frames = [237, 37, 200, 2, 450, 3, 1]
    clips = [clip(n, seed) for seed, n in enumerate(frames)]
    together = hear(parts, *clips)
    assert [len(features) for features in together] == [59, 9, 50, 0, 112, 1, 0]
    for one, features in zip(clips, together, strict=True):
        assert_close(features, hear(parts, one)[0])


def test_a_clip_of_one_or_two_frames_has_no_feature(parts):
    for features in hear(parts, clip(1), clip(2)):
        assert features.shape == (0, CONFIG.decoder.width)
        assert features.dtype == np.float32
    assert hear(parts) == []


def test_sound_over_five_minutes_takes_calls_of_bounded_size(parts):
    """314 s. Each chunk of two seconds equals itself alone."""
    sound = clip(31_400)
    assert [len(call.mel) for call in pack([sound], CONFIG.audio_encoder)] == [56, 56, 47]
    (features,) = hear(parts, sound)
    assert len(features) == 7_850
    for at in (0, 111, 112, 156):
        assert_close(features[50 * at : 50 * at + 50], hear(parts, sound[:, 200 * at : 200 * at + 200])[0])


# --- vision


def test_the_vision_encoder_returns_no_deepstack_features(parts):
    media = [visual((1, 4, 6)), visual((3, 12, 10), 1), visual((1, 2, 2), 2)]
    features, deep = see(parts, *media)
    assert features.shape == (6 + 90 + 1, CONFIG.decoder.width)
    assert deep.shape == (0, *features.shape)
    ends = np.cumsum([0, 6, 90, 1])
    for item, first, last in zip(media, ends[:-1], ends[1:], strict=True):
        alone, below = see(parts, item)
        assert_close(np.asarray(features[first:last]), np.asarray(alone))
        assert below.shape == (0, *alone.shape)
    nothing, below = see(parts)
    assert (nothing.shape, below.shape) == ((0, CONFIG.decoder.width), (0, 0, CONFIG.decoder.width))


def test_media_are_encoded_over_several_calls(parts):
    """More patches than a call holds."""
    media = [visual((3, 32, 64), 1), visual((1, 4, 4), 2)]
    features, _ = see(parts, *media)
    assert_close(np.asarray(features[-4:]), np.asarray(see(parts, media[1])[0]))
    last = Visual(media[0].patches[-32 * 64 :], (1, 32, 64))
    assert_close(np.asarray(features[2 * 512 : 3 * 512]), np.asarray(see(parts, last)[0]))


# --- in a prompt


def scene():
    """Two rows: sound, a picture and a video with its sound; a silent video. The second is padded on the left."""
    c, seconds, grid = CONFIG, 1.0, (3, 2, 4)
    heard = [c.audio_start, *[c.audio_token] * 12, c.audio_end]
    picture = [c.vision_start, *[c.image_token] * 6, c.vision_end]
    mixed = interleave(grid, seconds, 59, c).tolist()
    film = [c.vision_start, c.audio_start, *mixed, c.audio_end, c.vision_end]
    rows = [[TEXT, *heard, *picture, TEXT, *film, TEXT], [TEXT, c.vision_start, *[c.video_token] * 4, c.vision_end]]
    width = max(map(len, rows))
    tokens = np.array([[0] * (width - len(row)) + row for row in rows])
    mask = np.array([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    videos = [visual(grid, 1, seconds), visual((2, 2, 4), 2, 0.5)]
    return Batch.from_tokens(tokens, mask, [clip(50), clip(237)], [visual((1, 4, 6))], videos)


def test_features_are_inserted_at_their_placeholders(parts):
    batch = scene()
    placed = encode.pad_and_index(batch, CONFIG)
    embedded = encode.embed(parts, placed, CONFIG)
    assert embedded.deepstack is None  # so the thinker uses the program of text
    tokens, x = placed.batch.tokens, np.asarray(embedded.x)
    expected = np.asarray(parts.thinker.embed(jnp.asarray(tokens)))
    sound = np.concatenate(hear(parts, *batch.mel))
    sight = np.asarray(see(parts, *batch.images, *batch.videos)[0])
    kinds = {CONFIG.audio_token: sound, CONFIG.image_token: sight[:6], CONFIG.video_token: sight[6:]}
    for token, features in kinds.items():
        at = tokens == token
        assert_close(x[at], features)
    rest = ~np.isin(tokens, list(kinds))
    np.testing.assert_array_equal(x[rest], expected[rest])


def test_logits_of_a_row_do_not_depend_on_the_other_row(parts):
    """A silent video of another row has no effect, and positions are whole numbers."""
    batch = scene()
    placed = encode.pad_and_index(batch, CONFIG)
    np.testing.assert_array_equal(placed.batch.positions, np.trunc(placed.batch.positions))
    logits = parts.thinker.logits(
        encode.embed(parts, placed, CONFIG), jnp.asarray(placed.batch.positions), jnp.asarray(placed.batch.lengths)
    )
    assert logits.shape == (*placed.batch.tokens.shape, CONFIG.vocabulary)
    row = Batch.from_tokens(batch.tokens[:1], batch.mask[:1], batch.mel, batch.images, batch.videos[:1])
    alone = encode.pad_and_index(row, CONFIG)
    own = parts.thinker.logits(
        encode.embed(parts, alone, CONFIG), jnp.asarray(alone.batch.positions), jnp.asarray(alone.batch.lengths)
    )
    length = int(alone.batch.lengths[0])
    assert_close(np.asarray(logits)[0, :length], np.asarray(own)[0, :length])
