"""From conversations to arrays. All padding and all bucket sizes of a request are decided here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from omni_jax.buckets import bucket
from omni_jax.config import ThinkerConfig
from omni_jax.processing import audio, prompt
from omni_jax.processing.arrays import to_numpy
from omni_jax.processing.packing import split
from omni_jax.processing.positions import text_positions


@dataclass(frozen=True)
class Batch:
    """Rows of tokens with their media, as NumPy arrays.

    Attributes:
        tokens: text ids, a media placeholder repeated once for each feature.
        mask: True on real tokens. Rows from ``prepare`` have them first; a Transformers processor's may have them last.
        positions: rotary coordinates (time, height, width).
        mel: log-mel clips [Z, A], in the order of their placeholders, row by row.
    """

    tokens: Int[np.ndarray, "B T"]
    mask: Bool[np.ndarray, "B T"]
    positions: Float[np.ndarray, "3 B T"]
    mel: tuple[Float[np.ndarray, "Z A"], ...] = field(default=())

    @property
    def lengths(self) -> Int[np.ndarray, "B"]:
        """Real tokens of each row."""
        return self.mask.sum(axis=1).astype(np.int32)

    @classmethod
    def from_tokens(cls, tokens: Any, mask: Any = None, mel: Sequence[np.ndarray] = ()) -> "Batch":
        """From ids [B, T] (or [T]) and a mask of the same shape, None for all real."""
        try:
            ids = np.atleast_2d(to_numpy(tokens))
        except ValueError:
            raise ValueError("tokens: expected rows of one length; pad the shorter ones and give mask=") from None
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise ValueError(
                f"tokens: expected whole numbers of shape [B, T], got {ids.dtype} of shape {list(ids.shape)}"
            )
        real = np.ones(ids.shape, bool) if mask is None else np.atleast_2d(to_numpy(mask)).astype(bool)
        if real.shape != ids.shape:
            raise ValueError(f"mask: expected the shape of the tokens, {list(ids.shape)}, got {list(real.shape)}")
        if not ids.size or not real.any(axis=1).all():
            raise ValueError(f"tokens: expected at least one real token in each of the {ids.shape[0]} rows")
        return cls(tokens=ids.astype(np.int32), mask=real, positions=text_positions(real), mel=tuple(mel))

    @classmethod
    def from_hf(cls, inputs: Mapping[str, Any]) -> "Batch":
        """From the output of a Transformers processor: input_ids, attention_mask, input_features, feature_attention_mask."""
        if not isinstance(inputs, Mapping):
            raise ValueError(f"expected a processor's output (a mapping with input_ids), got {type(inputs).__name__}")
        known = {"input_ids", "attention_mask", "input_features", "feature_attention_mask"}
        given = {name for name, value in inputs.items() if value is not None}
        if "input_ids" not in given or given - known:
            raise ValueError(
                f"expected a processor's output with input_ids and at most {sorted(known)}, got {sorted(given)}"
            )
        mel: list[np.ndarray] = []
        if "input_features" in given:
            features = to_numpy(inputs["input_features"])
            bins = features.shape[1] if features.ndim == 3 else 128
            mel = split(features, mask=inputs.get("feature_attention_mask"), mel_bins=bins)
        return cls.from_tokens(inputs["input_ids"], inputs.get("attention_mask"), mel)

    def justified(self) -> "Batch":
        """The same rows with their real tokens first."""
        order = np.argsort(~self.mask, axis=1, kind="stable")
        return replace(
            self,
            tokens=np.take_along_axis(self.tokens, order, axis=1),
            mask=np.take_along_axis(self.mask, order, axis=1),
            positions=np.take_along_axis(self.positions, order[None], axis=2),
        )

    def padded(self) -> "Batch":
        """The same rows, real tokens first, at the next bucket of length and the next power of two of rows."""
        rows, columns = 1 << (len(self.tokens) - 1).bit_length(), bucket(self.tokens.shape[1])
        grow = [(0, rows - self.tokens.shape[0]), (0, columns - self.tokens.shape[1])]
        own = self.justified()
        return replace(
            own,
            tokens=np.pad(own.tokens, grow),
            mask=np.pad(own.mask, grow),
            positions=np.pad(own.positions, [(0, 0), *grow]),
        )

    def audio_index(self, config: ThinkerConfig) -> Int[np.ndarray, "B T"]:
        """The number of the audio feature (clips one after another) that belongs to each token, -1 for none.

        Raises:
            ValueError: placeholders and features differ in number.
        """
        at = (self.tokens == config.audio_token) & self.mask
        features = sum(int(prompt.audio_tokens(clip.shape[1])) for clip in self.mel)
        if features != at.sum():
            raise ValueError(
                f"audio: {int(at.sum())} placeholders in the tokens but {features} features from {len(self.mel)} clips; "
                "expand each placeholder once for each of its clip's features"
            )
        return np.where(at, np.cumsum(at.reshape(-1)).reshape(at.shape) - 1, -1).astype(np.int32)


def prepare(
    conversations: Sequence[Any],
    *,
    tokenizer: Any,
    config: ThinkerConfig,
    features: audio.FeatureConfig,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **template: Any,
) -> Batch:
    """Conversations to a batch: media decoded, template rendered, placeholders expanded, positions counted.

    Raises:
        ValueError: one clear line for a conversation, a media file or a length that cannot be used.
    """
    rows: list[list[int]] = []
    mel: list[np.ndarray] = []
    for number, conversation in enumerate(conversations):
        at = f"conversation {number}: " if len(conversations) > 1 else ""
        try:
            media = prompt.media(conversation)
            for item in media:
                if item.kind != "audio":
                    raise ValueError(f"{item.where}: {item.kind} input is not supported yet; audio and text are")
            clips = [audio.log_mel(audio.load(item.source), features) for item in media]
            tokens = prompt.encode(tokenizer, prompt.render(tokenizer, conversation, tools=tools, **template))
            counts = [int(prompt.audio_tokens(clip.shape[1])) for clip in clips]
            tokens = prompt.expand(tokens, {config.audio_token: counts, config.image_token: [], config.video_token: []})
            if len(tokens) >= config.context:
                raise ValueError(
                    f"the prompt has {len(tokens)} tokens, {sum(counts)} of them audio; the context holds {config.context}: "
                    "shorten the text or the audio"
                )
        except ValueError as error:
            raise ValueError(f"{at}{error}") from None
        rows.append(tokens)
        mel.extend(clips)
    longest = max(len(row) for row in rows)
    tokens = np.zeros((len(rows), longest), np.int32)
    mask = np.arange(longest) < np.array([len(row) for row in rows])[:, None]
    tokens[mask] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return Batch.from_tokens(tokens, mask, mel)
