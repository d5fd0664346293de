"""Requests: conversations to arrays, batches of unequal prompts, masks and positions, and user errors."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.buckets import bucket
from omni_jax.config import from_hf
from omni_jax.processing.batch import Batch
from omni_jax.processing.media.audio import FeatureConfig, log_mel
from omni_jax.processing.media.patches import PatchConfig
from omni_jax.processing.media.reader import Reader
from omni_jax.processing.options import per_conversation
from omni_jax.processing.positions import text_positions
from omni_jax.processing.prompt import load_tokenizer
from omni_jax.processing.request import prepare


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return load_tokenizer(tiny)


@pytest.fixture(scope="module")
def config(tiny):
    return from_hf(tiny).thinker


@pytest.fixture(scope="module")
def make(tokenizer, config):
    """prepare() with the tiny checkpoint's tokenizer and configuration."""

    def call(conversations, *, config=config, tools=None, template=None, **options):
        how, rest = per_conversation(None, options, len(conversations))
        reader = Reader(FeatureConfig(), PatchConfig(), config)
        assert not rest
        return prepare(conversations, tokenizer=tokenizer, reader=reader, options=how, tools=tools, template=template)

    return call


def sound(seconds, seed=0):
    return np.random.default_rng(seed).normal(scale=0.1, size=int(16_000 * seconds)).astype(np.float32)


def user(*content):
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "audio", "audio": part}
        for part in content
    ]
    return [{"role": "user", "content": parts}]


def one_line(error):
    assert "\n" not in str(error.value)


# --- conversations


def test_a_text_request_becomes_arrays(make, tokenizer):
    batch = make([[{"role": "user", "content": "Hello"}]])
    assert tokenizer.decode(batch.tokens[0]) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert batch.mel == ()
    assert batch.mask.all()
    np.testing.assert_array_equal(batch.positions, np.tile(np.arange(batch.tokens.shape[1]), (3, 1, 1)))
    assert (batch.tokens.dtype, batch.positions.dtype) == (np.int32, np.float32)


def test_placeholders_are_expanded_to_the_clips_tokens(make, config, tokenizer):
    clips = [sound(1.37, 1), sound(0.1, 2), sound(3.0, 3)]
    batch = make([user(clips[0], "a", clips[1], clips[2], "b")])
    tokens = batch.tokens[0]
    runs = "".join("A" if token == config.audio_token else "." for token in tokens).split(".")
    frames = [len(clip) // 160 for clip in clips]
    assert [len(run) for run in runs if run] == [config.audio_encoder.tokens(n) for n in frames] == [18, 2, 39]
    assert tokens[4 + 18] == config.audio_end
    for mel, clip in zip(batch.mel, clips, strict=True):
        np.testing.assert_array_equal(mel, log_mel(clip, FeatureConfig()))
    index = batch.audio_index(config)[0]
    np.testing.assert_array_equal(index[index >= 0], np.arange(18 + 2 + 39))
    np.testing.assert_array_equal(index >= 0, tokens == config.audio_token)


def test_an_audio_token_takes_one_position(make):
    """TM-RoPE: an audio token takes one position in all three coordinates, like a text token."""
    batch = make([user(sound(0.5), "a"), user("b")])
    assert batch.lengths[0] > batch.lengths[1]
    for row, length in enumerate(batch.lengths):
        np.testing.assert_array_equal(batch.positions[:, row, :length], np.tile(np.arange(length), (3, 1)))
        assert not batch.positions[:, row, length:].any()


def test_rows_of_unequal_prompts_equal_themselves_alone(make):
    conversations = [user(sound(0.5, 1), "What?"), user("Hi"), user("a", sound(1.2, 2), sound(0.2, 3))]
    batch = make(conversations)
    assert batch.tokens.shape == (3, max(batch.lengths))
    clips = iter(batch.mel)
    for row, conversation in enumerate(conversations):
        alone = make([conversation])
        length = alone.tokens.shape[1]
        np.testing.assert_array_equal(batch.tokens[row, :length], alone.tokens[0])
        np.testing.assert_array_equal(batch.mask[row], np.arange(batch.tokens.shape[1]) < length)
        np.testing.assert_array_equal(batch.positions[:, row, :length], alone.positions[:, 0])
        for mel in alone.mel:
            np.testing.assert_array_equal(next(clips), mel)


def test_tools_and_template_options_reach_the_prompt(make, tokenizer):
    tool = {"type": "function", "function": {"name": "clock", "parameters": {}}}
    text = tokenizer.decode(make([user("Time?")], tools=[tool], template={"enable_thinking": False}).tokens[0])
    assert '"name": "clock"' in text
    assert text.endswith("<think>\n\n</think>\n\n")


WRONG = {
    "no messages": ([], "conversation: no messages"),
    "a string": ("Hello", "expected a list of messages"),
    "an unknown role": ([{"role": "robot", "content": "Hi"}], "message 0: unknown role 'robot'"),
    "an unknown type": ([{"role": "user", "content": [{"type": "smell"}]}], "message 0, part 0: unknown content type"),
    "no image": ([{"role": "user", "content": [{"type": "image", "image": "a.png"}]}], "part 0: a.png: no such file"),
    "no video": ([{"role": "user", "content": [{"video": "a.mp4"}]}], "part 0: a.mp4: no such file"),
    "no such file": ([{"role": "user", "content": [{"audio": "nowhere.wav"}]}], "nowhere.wav: no such file"),
    "not audio": (user(b"RIFF but no sound at all"), "not audio, or damaged"),
    "an empty file": (user(b""), "is empty"),
    "no samples": (user(np.zeros(0, np.float32)), "holds no samples"),
    "shorter than a frame": (user(np.zeros(100, np.float32)), "100 samples at 16000 Hz .* are too few"),
    "not a number": (user(np.array([0.0] * 500 + [np.nan], np.float32)), "NaN or infinite samples, the first at 0.031 s"),
    "a placeholder in the text": (user("<|audio_pad|>"), "placeholders and media disagree: token .* stands 1 times for 0 media"),
    "one too many": (user("<|audio_pad|>", sound(0.5)), "stands 2 times for 1 media"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_conversation_raises_one_line(make, case):
    conversation, said = WRONG[case]
    with pytest.raises(ValueError, match=said) as error:
        make([conversation])
    one_line(error)
    with pytest.raises(ValueError, match=f"^conversation 1: .*{said}") as error:  # in a batch the message says which
        make([user("fine"), conversation])
    one_line(error)


def test_a_prompt_longer_than_the_context_raises_one_line(make, config):
    length = make([user(sound(2.0), "a")]).tokens.shape[1]
    said = f"the prompt has {length} tokens, 26 of them audio; the context holds {length}: shorten"
    with pytest.raises(ValueError, match=said) as error:
        make([user(sound(2.0), "a")], config=replace(config, context=length))
    one_line(error)
    assert make([user(sound(2.0), "a")], config=replace(config, context=length + 1)).tokens.shape[1] == length


# --- batches

MASKS = st.lists(st.lists(st.booleans(), min_size=6, max_size=6).filter(any), min_size=1, max_size=5)


@given(mask=MASKS)
@settings(max_examples=80, deadline=None)
def test_positions_count_the_real_tokens_wherever_the_padding_is(mask):
    mask = np.array(mask)
    positions = text_positions(mask)
    assert positions.shape == (3, *mask.shape)
    for row, real in enumerate(mask):
        for coordinate in positions[:, row]:
            np.testing.assert_array_equal(coordinate[real], np.arange(real.sum()))
            assert not coordinate[~real].any()


@given(mask=MASKS, seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_real_tokens_keep_their_order_when_padding_moves(mask, seed):
    mask = np.array(mask)
    tokens = np.random.default_rng(seed).integers(1, 99, mask.shape)
    batch = Batch.from_tokens(tokens, mask)
    np.testing.assert_array_equal(batch.lengths, mask.sum(1))
    own, padded = batch.justified(), batch.padded()
    assert own.tokens.shape == batch.tokens.shape
    assert padded.tokens.shape == (1 << (len(mask) - 1).bit_length(), 16)
    assert not padded.lengths[len(mask) :].any()
    for moved in (own, padded):
        np.testing.assert_array_equal(moved.mask, np.arange(moved.tokens.shape[1]) < moved.lengths[:, None])
        assert moved.positions.shape == (3, *moved.tokens.shape)
        for row, real in enumerate(mask):
            np.testing.assert_array_equal(moved.tokens[row][moved.mask[row]], tokens[row][real])
            np.testing.assert_array_equal(moved.positions[0, row, : real.sum()], np.arange(real.sum()))
    again = own.justified()
    np.testing.assert_array_equal(again.tokens, own.tokens)
    np.testing.assert_array_equal(again.positions, own.positions)


@given(size=st.integers(1, 200_000))
def test_buckets_waste_at_most_half(size):
    found = bucket(size)
    assert found >= max(size, 16)
    assert found <= max(size * 1.5, 16)
    assert bucket(found) == found


def test_buckets_are_few():
    assert sorted({bucket(n) for n in range(1, 200)}) == [16, 24, 32, 48, 64, 96, 128, 192, 256]


def test_the_audio_index_runs_over_rows_and_clips(config):
    """Row by row, whatever the padding; the mask hides a placeholder that is padding."""
    a = config.audio_token
    tokens = [[1, a, a, 2, a], [a, 3, a, 4, 5]]
    mask = [[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]
    batch = Batch.from_tokens(tokens, mask, [np.zeros((128, 16)), np.zeros((128, 8)), np.zeros((128, 3))])
    np.testing.assert_array_equal(batch.audio_index(config), [[-1, 0, 1, -1, 2], [-1, -1, 3, -1, -1]])
    np.testing.assert_array_equal(batch.justified().audio_index(config)[1], [-1, 3, -1, -1, -1])


@pytest.mark.parametrize("clips", [0, 1, 3])
def test_mismatched_placeholders_and_clips_raise_one_line(config, clips):
    batch = Batch.from_tokens([[1, *[config.audio_token] * 2, 3]], mel=[np.zeros((128, 8))] * clips)
    with pytest.raises(
        ValueError, match=f"audio: {clips} clips have {clips} features, but the tokens have 2 placeholders"
    ) as error:
        batch.audio_index(config)
    one_line(error)


@pytest.mark.parametrize(
    ("tokens", "mask", "said"),
    [
        ([[1.5, 2.0]], None, "tokens: expected whole numbers of shape .*got float64"),
        ([["a"]], None, "tokens: expected whole numbers"),
        (
            np.zeros((2, 3, 4), int),
            None,
            r"tokens: expected whole numbers of shape \[B, T\], got int64 of shape \[2, 3, 4\]",
        ),
        ([[1, 2, 3], [4]], None, "tokens: expected rows of one length; pad the shorter ones"),
        ([[]], None, "tokens: expected"),
        (np.zeros((1, 0), int), None, "at least one real token"),
        ([[1, 2, 3]], [[1, 1]], r"mask: expected the shape of the tokens, \[1, 3\], got \[1, 2\]"),
        ([[1, 2], [3, 4]], [[1, 1], [0, 0]], "at least one real token in each of the 2 rows"),
    ],
)
def test_wrong_tokens_raise_one_line(tokens, mask, said):
    with pytest.raises(ValueError, match=said) as error:
        Batch.from_tokens(tokens, mask)
    one_line(error)


def test_one_row_of_tokens_is_accepted():
    batch = Batch.from_tokens([4, 5, 6])
    assert batch.tokens.tolist() == [[4, 5, 6]]
    assert batch.mask.all()


# --- a Transformers processor's output


def test_a_processors_output_becomes_a_batch():
    features = np.random.default_rng(0).normal(size=(2, 128, 30)).astype(np.float32)
    frames = np.array([30, 17])
    batch = Batch.from_hf(
        {
            "input_ids": [[0, 0, 5, 6], [7, 8, 9, 4]],
            "attention_mask": [[0, 0, 1, 1], [1, 1, 1, 1]],
            "input_features": features,
            "feature_attention_mask": np.arange(30) < frames[:, None],
        }
    )
    assert batch.justified().tokens.tolist() == [[5, 6, 0, 0], [7, 8, 9, 4]]
    for mel, array, n in zip(batch.mel, features, frames, strict=True):
        np.testing.assert_array_equal(mel, array[:, :n])
    assert Batch.from_hf({"input_ids": [[1, 2]], "input_features": None}).mel == ()


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "expected a processor's output with input_ids and at most .* got \\[\\]"),
        ({"attention_mask": [[1]]}, "expected a processor's output with input_ids"),
        ({"input_ids": [[1]], "labels": [[1]]}, "at most .*input_features.* got .*labels"),
        ({"input_ids": [[1]], "pixel_values": [[0.0]]}, "expected image_grid_thw beside pixel_values, got none"),
        (
            {"input_ids": [[1]], "pixel_values_videos": np.zeros((4, 6)), "video_grid_thw": [[1, 2, 2]]},
            "expected video_second_per_grid beside pixel_values_videos, video_grid_thw, got none",
        ),
        (
            {"input_ids": [[1]], "pixel_values": np.zeros((4, 6)), "image_grid_thw": [[1, 2, 4]]},
            "patches: expected 8 for the grid",
        ),
        (
            {
                "input_ids": [[1]],
                "pixel_values_videos": np.zeros((4, 6)),
                "video_grid_thw": [[1, 2, 2]],
                "video_second_per_grid": [1.0, 2.0],
            },
            "video_second_per_grid: expected one number for each of the 1 videos, got 2",
        ),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "mask: expected the shape of the tokens"),
        ({"input_ids": [[1]], "input_features": np.zeros(7)}, r"expected a list of \[128, A\]"),
        (
            {"input_ids": [[1]], "input_features": np.zeros((1, 128, 9)), "feature_attention_mask": np.ones((1, 8))},
            r"mask: expected shape \(1, 9\)",
        ),
    ],
)
def test_a_wrong_processors_output_raises_one_line(inputs, said):
    with pytest.raises(ValueError, match=said) as error:
        Batch.from_hf(inputs)
    one_line(error)
