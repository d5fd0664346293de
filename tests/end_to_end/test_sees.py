"""Images and videos through the facade: any mix of media, over turns and in batches; each row equals its single run."""

import base64
import http.server
import io
import json
import threading
from dataclasses import replace
from itertools import pairwise

import jax
import numpy as np
import pytest
from PIL import Image

from omni_jax import Omni
from omni_jax.buckets import bucket
from omni_jax.decoding import text as generation
from omni_jax.decoding.sampling import Sampling, SamplingRows
from omni_jax.engine import encode
from omni_jax.processing.options import MediaOptions
from omni_jax.processing.positions import next_position

GREEDY = {"thinker_do_sample": False, "thinker_max_new_tokens": 12}


@pytest.fixture(scope="module")
def omni(writer):
    """Text only; speech is tested in test_speaks.py."""
    return writer


def picture(height=64, width=96, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def sound(seconds=0.3, seed=0):
    return np.random.default_rng(seed).normal(scale=0.1, size=int(16_000 * seconds)).astype(np.float32)


def user(*parts):
    kinds = {str: "text", Image.Image: "image"}
    content = [
        part if isinstance(part, dict) else {"type": kinds[type(part)], kinds[type(part)]: part} for part in parts
    ]
    return [{"role": "user", "content": content}]


@pytest.fixture
def site(tmp_path):
    """The address of a web server on this machine that serves a folder."""
    folder = str(tmp_path)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_an_image_of_any_source_gives_equal_input(omni, tmp_path, site):
    """A path, bytes, a data URL, a web address, an array and a PIL image give one picture."""
    pixels = picture()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    held = (tmp_path / "a.png").read_bytes()
    sources = [
        str(tmp_path / "a.png"), tmp_path / "a.png", held, io.BytesIO(held), pixels, Image.fromarray(pixels),
        "data:image/png;base64," + base64.b64encode(held).decode(), f"{site}/a.png",
    ]  # fmt: skip
    batches = [omni.prepare(user({"image": source}, "a"), allow_private=True) for source in sources]
    for batch in batches:
        np.testing.assert_array_equal(batch.images[0].patches, batches[0].images[0].patches)
        np.testing.assert_array_equal(batch.tokens, batches[0].tokens)
    with pytest.raises(ValueError, match="private"):
        omni.prepare(user({"image": f"{site}/a.png"}, "a"))


def test_an_image_changes_only_the_logits_after_it(omni):
    batch = omni.prepare(user("a", {"image": picture()}, "b"))
    (seen,) = batch.images
    logits = np.asarray(omni.logits(batch))
    brighter = np.asarray(omni.logits(replace(batch, images=(replace(seen, patches=seen.patches + 0.5),))))
    at = np.flatnonzero(batch.tokens[0] == omni.config.thinker.image_token)
    np.testing.assert_array_equal(logits[0, : at[0]], brighter[0, : at[0]])
    assert (np.abs(logits - brighter)[0, at[0] :].max(axis=1) > 1e-3).all()
    assert omni.generate(batch, **GREEDY).tokens[0] == logits[0, -1].argmax()


def test_a_batch_equals_its_rows(omni, films):
    """Videos with and without sound, images, clips and text side by side; no row depends on another."""
    sounding, silent = {"video": str(films / "sounding.mp4")}, {"video": str(films / "silent.mp4"), "nframes": 4}
    small = {"max_pixels": 64 * 96}
    rows = [
        user(sounding, "a"),
        user("b", silent, {"image": picture()}),
        user("Hello"),
        user({"audio": sound()}, {"image": picture(32, 96, 1)}, {"image": picture(64, 64, 2)}, "c"),
    ]
    heard = [True, False, False, False]
    together = omni.generate_batch(rows, use_audio_in_video=heard, **small, **GREEDY)
    for row, hears, reply in zip(rows, heard, together, strict=True):
        alone = omni.generate(row, use_audio_in_video=hears, **small, **GREEDY)
        assert reply.tokens == alone.tokens
        np.testing.assert_allclose(reply.logprobs, alone.logprobs, atol=1e-4)


def test_a_stream_equals_the_whole(omni, films):
    row = user({"video": str(films / "sounding.mp4")}, {"image": picture()}, "a")
    whole = omni.generate(row, use_audio_in_video=True, max_pixels=64 * 96, **GREEDY)
    events = list(omni.stream(row, use_audio_in_video=True, max_pixels=64 * 96, steps=3, **GREEDY))
    assert "".join(event.text for event in events) == whole.text
    assert events[-1].reply.tokens == whole.tokens


def test_media_of_several_turns_are_in_one_prompt(omni, films):
    """A prompt of several turns has the media of all turns, each at its placeholders."""
    turns = [
        {"role": "system", "content": [{"type": "image", "image": picture(32, 32)}]},
        *user({"image": picture()}, "a"),
        {"role": "assistant", "content": "b"},
        *user({"video": str(films / "silent.mp4"), "nframes": 2, "max_pixels": 64 * 96}, {"audio": sound()}),
    ]
    batch = omni.prepare(turns)
    config = omni.config.thinker
    order = [
        token for token in batch.tokens[0] if token in (config.image_token, config.video_token, config.audio_token)
    ]
    kinds = [order[0], *(token for before, token in pairwise(order) if token != before)]
    assert kinds == [config.image_token, config.video_token, config.audio_token]
    assert [item.grid for item in batch.images] == [(1, 4, 4), (1, 4, 6)]
    assert omni.generate(turns, **GREEDY).tokens == omni.generate(batch, **GREEDY).tokens


def test_a_second_turn_continues_from_the_cache(omni):
    """A second turn with its own image, appended to the cache of the first, gives the logits of both in one prompt.

    The state is the cache and one number for each row, the position to continue from; after an image it differs from
    the number of tokens.
    """
    config, thinker = omni.config.thinker, omni.parts.thinker
    whole = omni.prepare(
        [
            *user({"image": picture(96, 96)}, "a"),
            {"role": "assistant", "content": "b"},
            *user({"image": picture()}, "c"),
        ]
    )
    ends = np.flatnonzero(whole.tokens[0] == omni.config.im_end)
    cut = int(ends[1]) + 1
    first, second = (
        replace(whole, tokens=whole.tokens[:, part], mask=whole.mask[:, part], positions=None, images=(image,))
        for part, image in zip((slice(None, cut), slice(cut, None)), whole.images, strict=True)
    )
    first = first.located(config)
    start = next_position(first.positions[:, 0])
    assert start < cut
    second = second.located(config, start=[start])
    np.testing.assert_array_equal(np.concatenate([first.positions, second.positions], axis=2), whole.positions)

    cache = thinker.empty_cache(1, 128)
    rows = SamplingRows.of([Sampling(do_sample=False, eos_token_id=(-1,))], [0], [8])
    for turn, fresh in ((first, True), (second, False)):
        placed = encode.pad_and_index(turn, config)
        padded, embedded = placed.batch, encode.embed(omni.parts, placed, config)
        state, *_ = generation.prefill(
            thinker, embedded, padded.tokens, padded.positions, padded.lengths, cache, rows, candidates=1, fresh=fresh
        )
        cache = state.cache
    assert int(state.tokens[0]) == np.asarray(omni.logits(whole))[0, -1].argmax()
    np.testing.assert_array_equal(state.positions[:, 0], next_position(whole.positions[:, 0]))
    np.testing.assert_array_equal(cache.length, [whole.tokens.shape[1]])


def test_a_second_image_of_a_new_size_within_a_bucket_compiles_nothing(omni, compiled):
    omni.generate(user({"image": picture(64, 96)}, "a"), **GREEDY)
    compiled.clear()
    omni.generate(user({"image": picture(96, 64, 1)}, "ab"), **GREEDY)
    omni.generate(user({"image": picture(32, 192, 1)}, "a"), **GREEDY)
    assert not compiled


def test_pixel_bounds_of_a_part_override_those_of_a_request(omni):
    large = {"image": picture(256, 256), "max_pixels": 64 * 64}
    batch = omni.prepare(user(large, {"image": picture(256, 256)}, "a"), max_pixels=128 * 128)
    assert [item.grid for item in batch.images] == [(1, 4, 4), (1, 8, 8)]
    batch = omni.prepare(user(large, {"image": picture(256, 256)}, "a"), media=MediaOptions(min_pixels=32 * 32))
    assert [item.grid for item in batch.images] == [(1, 4, 4), (1, 16, 16)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": ()}, "6 placeholders"),
        (
            {"videos": "images"},
            "video: 1 videos have 6 features, but the tokens have 0 placeholders|videos given: 1|1 video",
        ),
        (
            {"images": "narrow"},
            r"image 0: expected patches of shape \[24, 1536\], as its grid says, got shape \[24, 1176\]",
        ),
        (
            {"images": "short"},
            r"image 0: expected patches of shape \[24, 1536\], as its grid says, got shape \[20, 1536\]",
        ),
        ({"images": "burnt"}, "image 0: expected patches .* got NaN or infinite values"),
    ],
)
def test_a_batch_with_mismatched_media_raises_one_line(omni, change, said):
    batch = omni.prepare(user({"image": picture()}, "a"))
    (seen,) = batch.images
    values = {
        "images": (seen,),
        "narrow": (replace(seen, patches=seen.patches[:, :1176]),),
        "burnt": (replace(seen, patches=seen.patches * np.float32(np.nan)),),
        "short": (replace(seen, patches=seen.patches[:-4]),),
    }
    change = {key: values.get(value, value) if isinstance(value, str) else value for key, value in change.items()}
    for positions in (batch.positions, None):
        with pytest.raises(ValueError, match=said) as error:
            omni.logits(replace(batch, positions=positions, **change))
        assert "\n" not in str(error.value)


def test_a_prompt_beyond_the_context_reports_what_fills_it(tmp_path):
    from omni_jax.testing import tiny_config, write_tiny

    config = tiny_config()
    config["thinker_config"]["text_config"]["max_position_embeddings"] = 32
    small = Omni.load(write_tiny(tmp_path, config=config, speech=False))
    with pytest.raises(
        ValueError,
        match=r"has \d+ tokens, 13 of them audio, 16 of them images; the context holds 32: shorten .* .audio_end.* max_pixels.",
    ):
        small.prepare(user({"audio": sound(1)}, {"image": picture(128, 128)}, "a"))


def test_media_options_with_a_finished_batch_are_refused(omni):
    batch = omni.prepare(user({"image": picture()}, "a"))
    with pytest.raises(ValueError, match="the options of media shape the prompt; a Batch has its prompts already"):
        omni.generate(batch, max_pixels=4096, **GREEDY)
    assert omni.generate(batch, use_audio_in_video=True, **GREEDY).tokens == omni.generate(batch, **GREEDY).tokens


def test_a_misspelt_option_is_reported(omni):
    for call in (omni.prepare, omni.generate, omni.stream):
        with pytest.raises(ValueError, match="unknown option max_pixel; did you mean max_pixels"):
            call(user({"image": picture()}, "a"), max_pixel=4096)
    with pytest.raises(ValueError, match="thinker_max_new_tokens is an option of generate"):
        omni.prepare(user("a"), thinker_max_new_tokens=3)
    named = omni.prepare(user("a"), template={"enable_thinking": False})
    np.testing.assert_array_equal(named.tokens, omni.prepare(user("a"), enable_thinking=False).tokens)


def test_embeddings_of_a_prompt_are_freed_after_prefill(omni):
    batch = omni.prepare(user({"image": picture()}, "a"))
    before = {id(array) for array in jax.live_arrays()}
    events = omni.stream(batch, steps=2, **GREEDY)
    next(events)
    width = omni.config.thinker.decoder.width
    new = [array.shape for array in jax.live_arrays() if id(array) not in before]
    assert new
    assert not [shape for shape in new if len(shape) > 2 and shape[-1] == width]
    events.close()


def test_bfloat16_logits_equal_float32_to_rounding(tiny, omni):
    """The dtype of TPUs and GPUs: every path runs, and logits equal those of float32 up to rounding."""
    half = Omni.load(tiny, dtype="bfloat16", speech=False)
    batch = omni.prepare(
        user({"image": picture()}, {"audio": sound()}, {"video": np.stack([picture(seed=1)] * 2)}, "a")
    )
    close, exact = np.asarray(half.logits(batch), np.float32), np.asarray(omni.logits(batch))
    assert np.sqrt(np.mean((close - exact) ** 2)) < 0.1 * np.std(exact)
    features, deep = half.encode_vision(batch.images[0].patches, batch.images[0].grid)
    assert str(features.dtype) == str(deep.dtype) == "bfloat16"
    assert len(half.generate(batch, **GREEDY).tokens) == 12


def test_inserting_features_is_one_program_for_pictures_of_any_size(omni):
    """The encoder has programs for sizes of pictures, the thinker for sizes of prompts; there are none for pairs."""
    encode._insert_visual.clear_cache()
    encode.vision_features.clear_cache()
    lengths = set()
    for height, width in ((64, 64), (320, 320), (320, 384), (512, 256), (640, 256)):  # 4, 100, 120, 128 and 160 tokens
        batch = omni.prepare(user({"image": picture(height, width)}, "a"))
        encode.embed(omni.parts, encode.pad_and_index(batch, omni.config.thinker), omni.config.thinker)
        lengths.add(bucket(batch.tokens.shape[1]))
    assert encode._insert_visual._cache_size() == len(lengths) == 3
    assert encode.vision_features._cache_size() == 4  # 120 and 128 share a size


def test_encode_vision_gives_the_features_of_each_medium(omni):
    """Features of several media in one call equal those of each alone; no media give no features."""
    batch = omni.prepare(user({"image": picture()}, {"image": picture(64, 64, 1)}, "a"))
    whole, deep = omni.encode_vision(
        np.concatenate([item.patches for item in batch.images]), [item.grid for item in batch.images]
    )
    assert (whole.shape, deep.shape) == ((10, 64), (2, 10, 64))
    second, deep_second = omni.encode_vision(batch.images[1].patches, batch.images[1].grid)
    np.testing.assert_allclose(whole[6:], second, atol=1e-5)
    np.testing.assert_allclose(deep[:, 6:], deep_second, atol=1e-5)
    nothing, _ = omni.encode_vision(np.empty((0, 1536)), np.empty((0, 3), int))
    assert nothing.shape == (0, 64)


def test_a_conversation_of_json_parts_is_read(omni, tmp_path):
    """As in a file of Qwen's examples: types, URLs in objects, unused columns."""
    Image.fromarray(picture()).save(tmp_path / "a.png")
    parts = [
        {"type": "image_url", "image_url": {"url": str(tmp_path / "a.png")}, "detail": "high"},
        {"type": "text", "text": "a", "image": None},
    ]
    conversation = json.loads(json.dumps([{"role": "user", "content": parts}]))
    np.testing.assert_array_equal(
        omni.prepare(conversation).tokens, omni.prepare(user({"image": picture()}, "a")).tokens
    )
