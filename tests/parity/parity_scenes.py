"""Prompts with any mix of pictures, videos and sound, as our batches and as the reference's inputs."""

from dataclasses import dataclass, field

import numpy as np
import torch

from omni_jax.processing.batch import Batch
from omni_jax.processing.media.reader import Visual
from omni_jax.processing.positions import interleave
from omni_jax.testing.tokenizer import token_ids
from tests.parity.parity_inputs import clip, pad, reference_inputs

NEWLINE = 198  # of the tiny tokenizer, as of the published one


@dataclass
class Scene:
    """One row: tokens, and its media in the order of their placeholders; for a conversation also its turns."""

    tokens: list[int]
    mel: list[np.ndarray] = field(default_factory=list)
    images: list[Visual] = field(default_factory=list)
    videos: list[Visual] = field(default_factory=list)
    sound: bool = False
    turns: list[tuple[str, "Scene"]] = field(default_factory=list)

    def of(self, role, kind):
        """The media of one kind in the turns of a role."""
        return [item for speaker, turn in self.turns if speaker == role for item in getattr(turn, kind)]


def scene(omni, *parts, words=5, seed=0):
    """A row of random text around ("audio", frames), ("image", rows, columns), ("video", grid, seconds) and
    ("sounding", grid, seconds, frames) parts."""
    made = Scene([omni.config.im_start, omni.config.user])
    _fill(made, omni.config.thinker, np.random.default_rng(seed), parts, words, seed)
    made.tokens.append(omni.config.im_end)
    return made


def conversation(omni, *turns, words=5, seed=0):
    """A row of turns as from the chat template, (role, *parts) each with parts as in ``scene``; then an open
    assistant's turn. A last turn of the assistant is its beginning."""
    made, rng, config = Scene([]), np.random.default_rng(seed), omni.config
    roles = token_ids()  # the same ids in the tiny tokenizers of both families; only one config has them all
    for number, (role, *parts) in enumerate(turns):
        turn = Scene([config.im_start, roles[role], NEWLINE])
        _fill(turn, config.thinker, rng, parts, words, seed + 100 * number)
        if role != "assistant" or number + 1 < len(turns):
            turn.tokens += [config.im_end, NEWLINE]
        made.turns.append((role, turn))
    if turns[-1][0] != "assistant":
        made.turns.append(("assistant", Scene([config.im_start, roles["assistant"], NEWLINE])))
    for _, turn in made.turns:
        for kind in ("tokens", "mel", "images", "videos"):
            getattr(made, kind).extend(getattr(turn, kind))
        made.sound |= turn.sound
    return made


def _fill(made, config, rng, parts, words, seed):
    """Words, then the parts with two words after each."""

    def see(grid, seconds=0.0):
        size = int(np.prod(grid)), config.vision_encoder.patch_width
        return Visual(rng.normal(size=size).astype(np.float32), grid, seconds)

    made.tokens += rng.integers(0, 200, words).tolist()
    for number, (kind, *sizes) in enumerate(parts):
        if kind == "audio":
            made.mel.append(clip(sizes[0], seed + number))
            run = [config.audio_start, *[config.audio_token] * config.audio_encoder.tokens(sizes[0]), config.audio_end]
        else:
            grid = (1, *sizes) if kind == "image" else sizes[0]
            count = int(np.prod(grid)) // 4
            if kind == "image":
                made.images.append(see(grid))
                run = [config.image_token] * count
            elif kind == "video":
                made.videos.append(see(grid, sizes[1]))
                run = [config.video_token] * count
            else:
                made.videos.append(see(grid, sizes[1]))
                made.mel.append(clip(sizes[2], seed + number))
                made.sound = True
                mixed = interleave(grid, sizes[1], config.audio_encoder.tokens(sizes[2]), config)
                run = [config.audio_start, *mixed.tolist(), config.audio_end]
            run = [config.vision_start, *run, config.vision_end]
        made.tokens += [*run, *rng.integers(0, 200, 2).tolist()]


def batch(scenes, *, left=True):
    tokens, mask = pad([row.tokens for row in scenes], left=left)
    media = [[item for row in scenes for item in getattr(row, kind)] for kind in ("mel", "images", "videos")]
    return Batch.from_tokens(tokens, mask, *media)


def theirs(scenes, *, left=True):
    """The scenes as keywords of Transformers' thinker; its flag says that all videos of a call have sound, or none."""
    tokens, mask = pad([row.tokens for row in scenes], left=left)
    inputs = reference_inputs(tokens, mask, [item for row in scenes for item in row.mel])
    for kind, pixels, grid in (
        ("images", "pixel_values", "image_grid_thw"),
        ("videos", "pixel_values_videos", "video_grid_thw"),
    ):
        media = [item for row in scenes for item in getattr(row, kind)]
        if media:
            inputs[pixels] = torch.from_numpy(np.concatenate([item.patches for item in media]))
            inputs[grid] = torch.tensor([item.grid for item in media])
    videos = [item for row in scenes for item in row.videos]
    if videos:
        inputs["video_second_per_grid"] = torch.tensor([item.seconds for item in videos])
        inputs["use_audio_in_video"] = any(row.sound for row in scenes)
    return inputs
