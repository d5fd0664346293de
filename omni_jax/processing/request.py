"""From conversations to arrays. All padding and all bucket sizes of a request are decided here."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omni_jax.errors import about
from omni_jax.processing import prompt
from omni_jax.processing.arrays import Finite
from omni_jax.processing.batch import Batch
from omni_jax.processing.conversation import media as media_of
from omni_jax.processing.limits import UNLIMITED, Limits
from omni_jax.processing.media.reader import AnyReader, Visual, read
from omni_jax.processing.media.video_track import Progress
from omni_jax.processing.options import MediaOptions


def prepare(
    conversations: Sequence[Any],
    *,
    tokenizer: Any,
    reader: AnyReader,
    options: Sequence[MediaOptions],
    limits: Limits = UNLIMITED,
    tools: Sequence[Mapping[str, Any]] | None = None,
    template: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Batch:
    """Conversations to a batch: media decoded, template rendered, placeholders expanded, positions counted.

    Args:
        conversations: lists of messages.
        tokenizer: with the checkpoint's chat template.
        reader: the checkpoint's media reader.
        options: how the media of each conversation are read.
        limits: limits that no options widen.
        tools: see ``prompt.render``.
        template: see ``prompt.render``.
        progress: called while a long video is read.

    Raises:
        ValueError: one clear line for a conversation, a media file or a length that cannot be used.
        RetryableError: in one line, where a medium cannot be fetched or read now.
    """
    rows: list[list[int]] = []
    mel: list[np.ndarray] = []
    images: list[Visual] = []
    videos: list[Visual] = []
    config = reader.thinker
    for number, (conversation, own) in enumerate(zip(conversations, options, strict=True)):
        with about(f"conversation {number}" if len(conversations) > 1 else ""):
            media = media_of(conversation)
            limits.check(conversation, tools, tokenizer)
            features = read(media, reader, limits.tighten(own), progress)
            tokens = prompt.encode(tokenizer, prompt.render(tokenizer, conversation, tools=tools, template=template))
            tokens = prompt.expand(tokens, features.runs)
            if len(tokens) >= config.context:
                of_media = {config.audio_token: "audio", config.image_token: "images", config.video_token: "video"}
                counts = ", ".join(
                    f"{tokens.count(token)} of them {kind}" for token, kind in of_media.items() if token in tokens
                )
                bounds = {
                    config.audio_token: "audio_end, video_end",
                    config.image_token: "max_pixels",
                    config.video_token: "fps, max_frames, max_pixels",
                }
                hint = ", ".join(dict.fromkeys(bound for token, bound in bounds.items() if token in tokens))
                raise ValueError(
                    f"the prompt has {len(tokens)} tokens{counts and ', ' + counts}; the context holds {config.context}: "
                    f"shorten the text{hint and ' or the media (' + hint + ')'}"
                )
        rows.append(tokens)
        mel.extend(features.mel)
        images.extend(features.images)
        videos.extend(features.videos)
    longest = max(len(row) for row in rows)
    tokens = np.zeros((len(rows), longest), np.int32)
    mask = np.arange(longest) < np.array([len(row) for row in rows])[:, None]
    tokens[mask] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    # Features of finite samples and pixels are finite.
    return Batch.from_tokens(tokens, mask, Finite(mel), Finite(images), Finite(videos)).located(config)
