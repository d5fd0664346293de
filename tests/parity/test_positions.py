"""Positions of both families against Transformers' get_rope_index, to the last bit, on random prompts of every kind."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from omni_jax.config import from_hf
from omni_jax.processing.positions import batch_positions, interleave, next_position, token_positions
from omni_jax.testing import tiny_config
from omni_jax.testing.qwen2_5_omni import tiny_qwen2_5_config
from tests.parity.parity_inputs import pad

SECONDS = (0.7, 1.0, 2.0, 0.5339, 5.3)
FAMILIES = ("qwen3", "qwen2.5")


@dataclass
class Row:
    """A prompt with the grids of its images, the grids and seconds of its videos, and the frames of its clips."""

    tokens: list[int] = field(default_factory=list)
    images: list[tuple[int, int, int]] = field(default_factory=list)
    videos: list[tuple[tuple[int, int, int], float]] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    sounding: bool = False

    def __add__(self, other):
        return Row(*(getattr(self, name) + getattr(other, name) for name in ("tokens", "images", "videos", "frames")))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def config(family):
    return from_hf(tiny_config() if family == "qwen3" else tiny_qwen2_5_config()).thinker


@pytest.fixture(scope="module")
def reference(family):
    """The reference's thinker without weights, which positions do not need."""
    if family == "qwen3":
        from transformers import Qwen3OmniMoeThinkerConfig as Config
        from transformers import Qwen3OmniMoeThinkerForConditionalGeneration as Thinker

        read = tiny_config()
    else:
        from transformers import Qwen2_5OmniThinkerConfig as Config
        from transformers import Qwen2_5OmniThinkerForConditionalGeneration as Thinker

        read = tiny_qwen2_5_config()
    with torch.device("meta"):
        return Thinker(Config(**read["thinker_config"]))


def prompt(config, rng, kinds, *, sounding=False, seconds=SECONDS):
    """A random prompt; kinds are its media, with text around each."""
    row = Row(sounding=sounding)
    for kind in (*kinds, "text"):
        words = rng.choice([0, 1, 3, 20]) + (kind == "text")
        row.tokens += rng.integers(0, 200, words).tolist()
        grid = (int(rng.integers(1, 5)), *(2 * rng.integers(1, 6, 2)).tolist())
        clip = int(rng.integers(3, 700))
        if kind == "audio" or (kind == "video" and sounding):
            row.frames.append(clip)
        if kind == "audio":
            row.tokens += [
                config.audio_start,
                *[config.audio_token] * config.audio_encoder.tokens(clip),
                config.audio_end,
            ]
        elif kind == "image":
            row.images.append((1, *grid[1:]))
            row.tokens += [config.vision_start, *[config.image_token] * (grid[1] * grid[2] // 4), config.vision_end]
        elif kind == "video":
            row.videos.append((grid, float(rng.choice(seconds))))
            own = [config.video_token] * (np.prod(grid) // 4)
            if sounding:
                merged = interleave(*row.videos[-1], config.audio_encoder.tokens(clip), config).tolist()
                own = [config.audio_start, *merged, config.audio_end]
            row.tokens += [config.vision_start, *own, config.vision_end]
    return row


def theirs(reference, rows, *, left=True):
    """The reference's positions of the real tokens, one array [3, T] a row."""
    tokens, mask = pad([row.tokens for row in rows], left=left)
    (sounding,) = {row.sounding for row in rows}
    whole = sum(rows, Row())
    images, videos, frames = whole.images, whole.videos, whole.frames
    positions, _ = reference.get_rope_index(
        torch.from_numpy(tokens),
        torch.tensor(images) if images else None,
        torch.tensor([grid for grid, _ in videos]) if videos else None,
        torch.from_numpy(mask),
        sounding,
        torch.tensor(frames) if frames else None,
        torch.tensor([seconds for _, seconds in videos]) if videos else None,
    )
    return [positions[:, number, real].numpy() for number, real in enumerate(mask.astype(bool))]


def alone(row, config, start=0.0):
    return token_positions(np.array(row.tokens), row.images, row.videos, config, start)


def together(rows, config, *, left=True):
    tokens, mask = pad([row.tokens for row in rows], left=left)
    whole = sum(rows, Row())
    positions = batch_positions(tokens, mask.astype(bool), whole.images, whole.videos, config)
    assert not positions[:, mask == 0].any()
    return [positions[:, number, real] for number, real in enumerate(mask.astype(bool))]


def assert_equal(ours, expected):
    for mine, own in zip(ours, expected, strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_array_equal(mine, own)


@pytest.mark.parametrize("sounding", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_positions_of_random_prompts_equal_the_reference(config, reference, seed, sounding):
    rng = np.random.default_rng([seed, sounding])
    for _ in range(3):
        kinds = rng.choice(["audio", "image", "video"], rng.integers(0, 7)).tolist()
        row = prompt(config, rng, kinds, sounding=sounding and "video" in kinds)
        assert_equal([alone(row, config)], theirs(reference, [row]))


@pytest.mark.parametrize("sounding", [False, True])
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_positions_of_random_batches_equal_the_reference(config, reference, seed, left, sounding):
    rng = np.random.default_rng([seed, left, sounding])
    rows = [
        prompt(config, rng, rng.choice(["audio", "image", "video"], count).tolist(), sounding=sounding)
        for count in (2, 0, 5)
    ]
    assert_equal(together(rows, config, left=left), theirs(reference, rows, left=left))


@pytest.mark.parametrize("family", ["qwen3"], indirect=True)
@pytest.mark.parametrize("sounding", [False, True])
@pytest.mark.parametrize("seconds", [0.0667, 0.0801])
def test_sums_are_rounded_in_the_references_order(config, reference, seconds, sounding):
    """Text of every length after a fraction: where float32 rounds twice, another order of the sums would show."""
    rows = []
    for words in range(20, 130):
        row = Row(videos=[((2, 2, 2), seconds)], sounding=sounding)
        own = [config.video_token] * 2
        if sounding:
            row.frames, row.videos = [8, 8], row.videos * 2
            own = [config.audio_start, config.video_token, config.audio_token, config.video_token, config.audio_end]
        else:
            row.images = [(1, 2, 2)]
        second = own if sounding else [config.image_token]
        row.tokens = [config.vision_start, *own, config.vision_end, *range(words)]
        row.tokens += [config.vision_start, *second, config.vision_end, *range(40)]
        rows.append(row)
    assert_equal(together(rows, config), theirs(reference, rows))


@pytest.mark.parametrize("left", [True, False])
def test_rows_with_and_without_sound_in_videos_equal_the_reference_alone(config, reference, left):
    """The reference has one switch a call that turns silent videos into text, so each row is compared alone."""
    rng = np.random.default_rng(7)
    kinds = ["video", "image", "audio", "video"]
    rows = [prompt(config, rng, kinds, sounding=sounding) for sounding in (True, False, True)]
    assert_equal(together(rows, config, left=left), [theirs(reference, [row])[0] for row in rows])


@pytest.mark.parametrize("order", [(True, False), (False, True), (True, False, True)])
def test_a_prompt_of_videos_with_and_without_sound_equals_the_reference_by_parts(config, reference, order):
    """The reference gets each part alone; at whole seconds positions are whole, and adding the start is exact."""
    rng = np.random.default_rng(8)
    parts = [prompt(config, rng, ["image", "video"], sounding=sounding, seconds=(1.0, 2.0)) for sounding in order]
    expected, start = [], 0.0
    for part in parts:
        expected.append(theirs(reference, [part])[0] + np.float32(start))
        start = next_position(expected[-1])
    whole = sum(parts, Row())
    assert_equal([alone(whole, config)], [np.concatenate(expected, axis=1)])


def test_the_reference_treats_a_silent_video_as_text(config, reference):
    """The reason why the two tests above cannot compare with the reference's whole call."""
    row = prompt(config, np.random.default_rng(9), ["video"], sounding=False)
    plain = np.arange(len(row.tokens), dtype=np.float32)
    wrong = Row(row.tokens, row.images, row.videos, row.frames, sounding=True)
    np.testing.assert_array_equal(theirs(reference, [wrong]), [[plain] * 3])
    assert_equal([alone(row, config)], theirs(reference, [row]))
    assert (alone(row, config) != plain).any()


@pytest.mark.parametrize("family", ["qwen3"], indirect=True)
def test_each_token_of_a_mix_has_its_own_kinds_position(config, reference):
    """Processor and model of the reference merge by time separately, in float64 and in float32. At 30 frames a second
    the frame at 3 s is before audio token 39 in the tokens, but after it in the model, which swaps the positions of the
    two. We merge once, in the tokens.
    """
    grid, seconds, frames = (46, 2, 2), 2 / 30, 400
    row, (own,) = mixed(grid, seconds, frames, config, reference)
    ours = alone(row, config)
    frame = int(np.flatnonzero(np.array(row.tokens) == config.video_token)[45])
    assert row.tokens[frame + 1] == config.audio_token
    np.testing.assert_array_equal(ours[:, frame + 1], [2 + 39] * 3)
    swapped = np.arange(len(row.tokens))
    swapped[frame : frame + 2] = frame + 1, frame
    assert_equal([ours], [own[:, swapped]])


@pytest.mark.parametrize("family", ["qwen2.5"], indirect=True)
def test_each_token_of_turns_has_its_own_kinds_position(config, reference):
    """The same with turns: at 41 steps in 2 s, the step at 2 s opens the second turn in the tokens, but ends the first
    in the model, where it is at 49.999998 positions and so at 49.
    """
    row, (own,) = mixed((43, 2, 2), 2 / 41, 400, config, reference)
    ours, video = alone(row, config), np.array(row.tokens) == config.video_token
    step, first_sound = np.flatnonzero(video)[41], np.flatnonzero(np.array(row.tokens) == config.audio_token)[0]
    assert first_sound < step
    np.testing.assert_array_equal(ours[:, step], [1 + 49, 1, 1])  # the two start tokens share position 0
    np.testing.assert_array_equal(ours[:, first_sound], [1, 1, 1])
    np.testing.assert_array_equal(own[:, first_sound], ours[:, step])
    moved = np.r_[:first_sound, step, first_sound:step, step + 1 : len(video)]
    assert_equal([ours[:, moved]], [own])


def mixed(grid, seconds, frames, config, reference):
    """A video with its sound, and the reference's positions."""
    merged = interleave(grid, seconds, config.audio_encoder.tokens(frames), config).tolist()
    tokens = [config.vision_start, config.audio_start, *merged, config.audio_end, config.vision_end]
    row = Row(tokens, [], [(grid, seconds)], [frames], sounding=True)
    return row, theirs(reference, [row])


def expanded_by_the_processor(grid, seconds, frames, config):
    """The token string of Transformers' own processor, whose constructor needs torchvision: one letter a token."""
    if config.chunk_seconds is None:
        from transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe import Qwen3OmniMoeProcessor as Processor
    else:
        from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor as Processor
    processor = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=config.vision_encoder.merge),
        audio_bos_token="(",
        audio_eos_token=")",
        audio_token="A",
        video_token="V",
        get_chunked_index=lambda *chunks: Processor.get_chunked_index(None, *chunks),
    )
    return Processor.replace_video_with_audio_token(
        processor,
        {"video_grid_thw": np.array([grid]), "video_second_per_grid": [seconds]},
        0,
        {"num_audio_tokens": np.array([config.audio_encoder.tokens(frames)])},
        0,
        position_id_per_seconds=config.positions_per_second,
        seconds_per_chunk=config.chunk_seconds,
    )


@pytest.mark.parametrize("seconds", [*SECONDS, 1 / 13, 0.04, 2 / 1.3, 30.0])
def test_tokens_of_a_video_with_sound_equal_the_processors(config, seconds):
    for grid in ((1, 2, 2), (4, 4, 6), (25, 2, 4)):
        for frames in (0, 1, 99, 450, 2600):
            letters = {config.video_token: "V", config.audio_token: "A"}
            ours = interleave(grid, seconds, config.audio_encoder.tokens(frames), config)
            own = "".join(letters[token] for token in ours.tolist())
            assert f"({own})" == expanded_by_the_processor(grid, seconds, frames, config)
