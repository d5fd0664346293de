"""Prompts as embeddings: calls the encoders in their static shapes and puts their features in place."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from omni_jax.buckets import CALL_PATCHES
from omni_jax.config import ThinkerConfig
from omni_jax.models.parts import OmniParts
from omni_jax.models.thinker import Embedded
from omni_jax.parallel.jitted import jitted
from omni_jax.parallel.multihost import to_host
from omni_jax.processing import audio_packing, vision_packing
from omni_jax.processing.batch import Batch

_embed = jax.jit(lambda thinker, tokens, taps: thinker.prompt(tokens, taps=taps), static_argnames="taps")
audio_features = jitted(lambda encoder, *arrays: encoder.encode(*arrays))
_insert_audio = jax.jit(
    lambda embedded, features, index: embedded.insert_audio(features.reshape(-1, features.shape[-1]), index),
    donate_argnums=0,
)


@partial(jax.jit, donate_argnums=0)
def _insert_visual(embedded, features, deep, index):
    """Puts visual features in place. Without deepstack features, prompts share the program of those without images."""
    return embedded.insert_visual(features, deep, index) if deep.shape[0] else embedded.insert_audio(features, index)


@jitted
def vision_features(encoder, *arrays):
    """Features and deepstack features, padded to one size for all calls of up to CALL_PATCHES, so that putting them in
    place is one program for each size of prompts."""
    features, deep = encoder.encode(*arrays)
    room = max(CALL_PATCHES // encoder.config.merge**2 - features.shape[0], 0)
    return jnp.pad(features, [(0, room), (0, 0)]), jnp.pad(deep, [(0, 0), (0, room), (0, 0)])


class PaddedBatch(NamedTuple):
    """A batch at its bucket's shape, and the index of each token's audio and visual feature; -1 for none."""

    batch: Batch
    audio_index: Int[np.ndarray, "B T"]
    visual_index: Int[np.ndarray, "B T"]


def pad_and_index(batch: Batch, config: ThinkerConfig) -> PaddedBatch:
    """The host's work before anything runs on the device: checks, positions, padding and indices of features.

    Raises:
        ValueError: ids outside the vocabulary, or placeholders and media that do not match.
    """
    padded = batch.located(config).padded()
    ids = padded.tokens
    if ids.max() >= config.vocabulary or ids.min() < 0:
        raise ValueError(f"tokens: expected ids from 0 to {config.vocabulary - 1}, got {ids.min()} to {ids.max()}")
    audio_packing.require_bins(padded.mel, config.audio_encoder.mel_bins)
    return PaddedBatch(padded, padded.audio_index(config), padded.visual_index(config))


def embed(parts: OmniParts, prompts: PaddedBatch, config: ThinkerConfig) -> Embedded:
    """Embeddings of a batch, with features of media in place."""
    batch, audio_index, visual_index = prompts
    visuals = (*batch.images, *batch.videos)
    taps = len(config.vision_encoder.taps) if visuals else 0
    embedded = _embed(parts.thinker, batch.tokens, taps=taps)
    for call in audio_packing.pack(batch.mel, config.audio_encoder):
        features = audio_features(parts.audio_encoder, *call.inputs)
        embedded = _insert_audio(embedded, features, call.rows(audio_index))
    if not visuals:
        return embedded
    encoder = parts.vision_encoder
    patches, grids = [item.patches for item in visuals], [item.grid for item in visuals]
    for call in vision_packing.pack(patches, grids, config.vision_encoder.merge, encoder.dtype):
        features, deep = vision_features(encoder, call.patches, call.place, call.size, call.first)
        embedded = _insert_visual(embedded, features, deep, call.rows(visual_index))
    return embedded


def encode_audio(
    parts: OmniParts, clips: Sequence[Float[np.ndarray, "Z _A"]], config: ThinkerConfig
) -> list[Float[Array, "_T D"]]:
    """Features of log-mel clips; a clip's features do not depend on the others."""
    if not clips:
        return []
    rows, order = [], []
    for call in audio_packing.pack(clips, config.audio_encoder):
        features = to_host(audio_features(parts.audio_encoder, *call.inputs))
        rows.append(features[call.order >= 0])
        order.append(call.order[call.order >= 0])
    joined = np.concatenate(rows)[np.argsort(np.concatenate(order))]
    counts = [config.audio_encoder.tokens(clip.shape[1]) for clip in clips]
    # device_put, because jnp.asarray would compile a copy for each new length.
    return [jax.device_put(part) for part in np.split(joined, np.cumsum(counts)[:-1])]


def encode_vision(
    parts: OmniParts,
    media: Sequence[Float[np.ndarray, "_P C"]],
    grids: Sequence[vision_packing.Grid],
    config: ThinkerConfig,
) -> tuple[Float[Array, "M D"], Float[Array, "taps M D"]]:
    """Features of images and videos one after another, and their deepstack features."""
    encoder, sight = parts.vision_encoder, config.vision_encoder
    features = [np.empty((0, sight.out_width), encoder.dtype)]
    deep = [np.empty((len(sight.taps), 0, sight.out_width), encoder.dtype)]
    for call in vision_packing.pack(media, grids, sight.merge, encoder.dtype):
        seen, seen_deep = to_host(vision_features(encoder, call.patches, call.place, call.size, call.first))
        real = np.flatnonzero(call.order >= 0)
        features.append(seen[real])
        deep.append(seen_deep[:, real])
    return jax.device_put(np.concatenate(features)), jax.device_put(np.concatenate(deep, axis=1))
