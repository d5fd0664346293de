"""The facade: a checkpoint as one object that takes conversations. The only file that knows every part."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from omni_jax import checkpoint, perceive, weights
from omni_jax.config import OmniConfig, from_hf, read_json
from omni_jax.decoding.generate import CALL_STEPS, generate
from omni_jax.decoding.sampling import Sampling, SamplingRows
from omni_jax.hub import locate
from omni_jax.models import parts as model_parts
from omni_jax.processing import request
from omni_jax.processing.audio import FeatureConfig
from omni_jax.processing.clip_packing import split_clips
from omni_jax.processing.media import Reader
from omni_jax.processing.options import MediaOptions, misspelt, per_conversation
from omni_jax.processing.patch_packing import split_patches
from omni_jax.processing.prompt import load_tokenizer
from omni_jax.processing.request import Batch
from omni_jax.processing.transcript import Transcript
from omni_jax.processing.video_track import Progress
from omni_jax.processing.vision import PatchConfig
from omni_jax.reply import Draft, Event, Reply
from omni_jax.sharding import shardings

DEFAULT_NEW_TOKENS = 1024

_logits = jax.jit(lambda thinker, *prompt: thinker.logits(*prompt))


class Omni:
    """A Qwen omni model. Make one with ``Omni.load``."""

    def __init__(self, parts: Mapping[str, Any], config: OmniConfig, folder: str | Path):
        self.parts, self.config, self.folder = dict(parts), config, Path(folder)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        mesh: jax.sharding.Mesh | None = None,
        dtype: Any = None,
        speech: bool | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> "Omni":
        """Loads a checkpoint.

        Args:
            path: a Hugging Face folder, a folder that ``omni-jax convert`` wrote, or a hub id such as
                ``Qwen/Qwen3-Omni-30B-A3B-Instruct``.
            mesh: devices to spread the weights over, by the axes of ``omni_jax.sharding``; None for the first device.
            dtype: of the weights and of the arithmetic; None for bfloat16 on TPU and GPU, float32 on CPU.
            speech: False leaves the weights that only speaking needs on the disk; None loads them where they exist.
            progress: called with bytes done, bytes in all and the name of what was read.

        Raises:
            ValueError: a folder that is absent, of another model, incomplete or damaged; one line says which.
        """
        folder = locate(path)
        config = from_hf(folder)
        if speech and config.talker is None:
            raise ValueError(f"{folder}: speech=True, but this checkpoint has no talker; use the Instruct release")
        speech = config.talker is not None if speech is None else speech
        if dtype is None:
            dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        placed = shardings(model_parts.abstract(config, dtype, speech=speech), mesh) if mesh is not None else None
        reader = checkpoint if checkpoint.is_converted(folder) else weights
        parts = reader.load(folder, config, dtype=dtype, speech=speech, shardings=placed, progress=progress)
        return cls(parts, config, folder)

    def save(self, folder: str | Path) -> None:
        """Writes a converted checkpoint that ``load`` reads back, onto any mesh."""
        checkpoint.save(self.parts, folder, files_from=self.folder)

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer, with its chat template."""
        return load_tokenizer(self.folder)

    @cached_property
    def reader(self) -> Reader:
        """How sound becomes log-mel frames, and pictures patches."""
        numbers = read_json(self.folder / "preprocessor_config.json")
        return Reader(FeatureConfig.from_hf(numbers), PatchConfig.from_hf(numbers), self.config.thinker)

    @cached_property
    def defaults(self) -> Sampling:
        """The thinker's sampling options as the checkpoint's generation config has them."""
        path = self.folder / "generation_config.json"
        published = read_json(path) if path.exists() else {}
        known = {
            **published,
            **{name.removeprefix("thinker_"): value for name, value in published.items() if "thinker_" in name},
        }
        own = {name: known[name] for name in Sampling.__dataclass_fields__ if known.get(name) is not None}
        basis = Sampling(max_new_tokens=DEFAULT_NEW_TOKENS, do_sample=False, eos_token_id=self.config.im_end)
        try:
            return Sampling.named(own).over(basis)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @property
    def speakers(self) -> tuple[str, ...]:
        """Voices of the talker; empty for a text-only checkpoint."""
        return tuple(name for name, _ in self.config.talker.speakers) if self.config.talker else ()

    def prepare(
        self,
        conversation: Any,
        *,
        media: MediaOptions | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Batch:
        """One conversation, or a list of conversations, as arrays.

        Args:
            media: how images, videos and sound are read; or single options such as ``max_pixels=...``.
            tools: JSON schemas of functions the model may call.
            template: variables of the chat template, such as ``{"enable_thinking": False}``; they may also be given as
                keywords.
            progress: called with what is done, what there is in all and its name, while a long video is read.
        """
        several = (
            isinstance(conversation, list | tuple) and bool(conversation) and isinstance(conversation[0], list | tuple)
        )
        conversations = conversation if several else [conversation]
        how, rest = per_conversation(media, options, len(conversations))
        faults = misspelt(rest)
        faults += [f"{name} is an option of generate" for name in rest if name.startswith(("thinker_", "talker_"))]
        if faults:
            raise ValueError("; ".join(faults))
        return self._prepare(conversations, how, tools, {**(template or {}), **rest}, progress)

    def _prepare(
        self, conversations: Sequence[Any], how: Sequence[MediaOptions], tools: Any, template: Any, progress: Any = None
    ) -> Batch:
        return request.prepare(
            conversations,
            tokenizer=self.tokenizer, reader=self.reader, options=how, tools=tools, progress=progress, **template,
        )  # fmt: skip

    def generate(self, conversation: Any, *, seed: int = 0, **options: Any) -> Reply:
        """Answers one conversation, or a Batch of one row. Options: see ``generate_batch``."""
        return self.generate_batch(_one(conversation), seed=seed, **options)[0]

    def generate_batch(
        self,
        conversations: Sequence[Any] | Batch,
        *,
        seed: int | Sequence[int] = 0,
        thinker: Sampling | None = None,
        talker: Sampling | None = None,
        speaker: str | Sequence[str] | None = None,
        return_audio: bool | None = None,
        media: MediaOptions | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Reply]:
        """Answers several conversations; each row is what it would be alone.

        Args:
            conversations: lists of messages ``{"role": ..., "content": ...}`` as in Qwen's examples, or a Batch.
                A Batch needs no tokenizer: without one, replies have tokens and no text.
            seed: one for all, or one a conversation, modulo 2**32; a sampled reply depends on its own seed and prompt alone.
            thinker: sampling options, over the checkpoint's; or single ones such as ``thinker_temperature=0.7``.
            return_audio, speaker, talker, talker_...: of spoken replies. This version answers in text only: it refuses
                return_audio=True, and the others unless return_audio=False says that nothing is to be spoken.
            media: how images, videos and sound are read (processing/options.py); or single options such as
                ``max_pixels=...``, ``fps=...`` or ``use_audio_in_video=True``, one for all or a list of one a conversation.
            tools: JSON schemas of functions the model may call.
            template: variables of the chat template, such as ``{"enable_thinking": False}``.
            progress: called with what is done, what there is in all and its name, while a long video is read.

        Raises:
            ValueError: input that cannot be used, said in one line.
        """
        options = self._text_only(options, return_audio, speaker, talker)
        batch, sampling, seeds = self._request(conversations, seed, thinker, tools, template, options, media, progress)
        rows = list(self._run(batch, sampling, seeds, steps=CALL_STEPS))[-1]
        return [row.reply() for row in rows]

    def stream(
        self,
        conversation: Any,
        *,
        seed: int = 0,
        thinker: Sampling | None = None,
        talker: Sampling | None = None,
        speaker: str | Sequence[str] | None = None,
        return_audio: bool | None = None,
        media: MediaOptions | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        steps: int = 4,
        **options: Any,
    ) -> Iterator[Event]:
        """Answers one conversation piece by piece; the pieces join to what ``generate`` returns.

        Args:
            steps: tokens the device makes between two events, 1 to 32.

        A character is never split, and text that may yet become a stop string or a tool call is held back. Closing the
        iterator stops the work.
        """
        options = self._text_only(options, return_audio, speaker, talker)
        if not 1 <= steps <= CALL_STEPS:
            raise ValueError(f"steps: expected 1 to {CALL_STEPS} tokens an event, got {steps}")
        batch, sampling, seeds = self._request(
            _one(conversation), seed, thinker, tools, template, options, media, progress
        )

        def events() -> Iterator[Event]:
            for rows in self._run(batch, sampling, seeds, steps=steps):
                row = rows[0]
                event = Event(text=row.piece.text, thinking=row.piece.thinking, reply=row.reply() if row.done else None)
                if event.text or event.thinking or event.reply:
                    yield event

        # Mistakes are said by this call, not by the first event.
        return events()

    def encode_audio(self, mel: Any, *, mask: Any = None, lengths: Any = None) -> list[Float[Array, "T D"]]:
        """Features of log-mel clips, each as it would be alone.

        Args:
            mel: a list of clips [Z, A], or one array [B, Z, A] with ``mask`` [B, A] or ``lengths`` [B] in frames.
        """
        config = self.config.thinker
        clips = split_clips(mel, mask=mask, lengths=lengths, mel_bins=config.audio_encoder.mel_bins)
        return perceive.encode_audio(self.parts, clips, config)

    def encode_vision(self, patches: Any, grid: Any) -> tuple[Float[Array, "M D"], Float[Array, "taps M D"]]:
        """Features of images and videos, each as it would be alone, and their deepstack features.

        Args:
            patches: [P, C] of all media one after another, as a Transformers processor gives them (``pixel_values``).
            grid: frames, rows and columns of each in patches, [n, 3] (``image_grid_thw``).
        """
        config = self.config.thinker
        sight = config.vision_encoder
        media, grids = split_patches(patches, grid, width=sight.patch_width, merge=sight.merge)
        return perceive.encode_vision(self.parts, media, grids, config)

    def logits(self, tokens: Any, mask: Any = None) -> Float[Array, "B T V"]:
        """One whole pass of the thinker over ids [B, T] with a mask (padding on either side), or over a Batch.

        What stands at padding has no meaning.
        """
        if isinstance(tokens, Batch) and mask is not None:
            raise ValueError("mask: a Batch has its own; give mask= with an array of tokens only")
        batch = tokens if isinstance(tokens, Batch) else Batch.from_tokens(tokens, mask)
        padded, embedded = perceive.embed(self.parts, batch, self.config.thinker)
        logits = _logits(self.parts["thinker"], embedded, padded.positions, padded.lengths)
        rows = np.arange(len(batch.tokens))[:, None]
        # On the host, for indexing on the device would compile a program for each new length.
        return jax.device_put(np.asarray(logits)[rows, np.maximum(np.cumsum(batch.mask, axis=1) - 1, 0)])

    def _text_only(
        self, options: Mapping[str, Any], return_audio: bool | None, speaker: Any, talker: Sampling | None
    ) -> dict[str, Any]:
        """The options of a written reply; those of a spoken one are refused where it is wanted, and checked where not."""
        spoken = {name: value for name, value in options.items() if name.startswith("talker_")}
        Sampling.named(spoken, prefix="talker_")
        given = [*spoken, *(["speaker"] if speaker is not None else []), *(["talker"] if talker is not None else [])]
        if return_audio or (given and return_audio is None):
            what = "return_audio=True" if return_audio else ", ".join(given)
            raise ValueError(f"{what}: this version answers in text only; leave it out, or say return_audio=False")
        for name in [speaker] if isinstance(speaker, str) else speaker or ():
            if name.lower() not in self.speakers:
                raise ValueError(f"speaker: expected one of {', '.join(self.speakers) or 'none'}, got {name!r}")
        return {name: value for name, value in options.items() if name not in spoken}

    def _request(
        self,
        conversations: Any,
        seed: Any,
        thinker: Sampling | None,
        tools: Any,
        template: Any,
        options: Any,
        media: MediaOptions | None,
        progress: Progress | None,
    ) -> tuple[Batch, Sampling, list[int]]:
        """A request checked and made ready: all that can be wrong with it is said here."""
        if thinker is not None and not isinstance(thinker, Sampling):
            raise ValueError(f"thinker: expected a Sampling, got {type(thinker).__name__}; or use thinker_... options")
        sampling = (thinker or Sampling()).over(self.defaults)
        if not isinstance(conversations, Batch | list | tuple) or (
            isinstance(conversations, list | tuple) and not conversations
        ):
            got = "an empty list" if conversations == [] else type(conversations).__name__
            raise ValueError(f"conversations: expected a list of at least one, or a Batch, got {got}")
        count = len(conversations.tokens) if isinstance(conversations, Batch) else len(conversations)
        how, options = per_conversation(media, options, count)
        if faults := misspelt(options):
            raise ValueError("; ".join(faults))
        sampling = Sampling.named(options, prefix="thinker_").over(sampling)
        if isinstance(conversations, Batch):
            # Whether a video has sound is read off the tokens, so saying it again (as with Transformers) does no harm.
            if tools or template or any(replace(item, load_audio_from_video=False) != MediaOptions() for item in how):
                raise ValueError(
                    "tools, template and the options of media shape the prompt; a Batch has its prompts already: give them to "
                    "prepare"
                )
            batch = conversations
        else:
            batch = self._prepare(conversations, how, tools, template or {}, progress)
        seeds = list(seed) if np.ndim(seed) else [seed] * count
        if len(seeds) != count or not all(isinstance(item, Integral) for item in seeds):
            raise ValueError(
                f"seed: expected one whole number, or one for each of the {count} conversations, got {seed!r}"
            )
        context = self.config.thinker.context
        if batch.lengths.max() >= context:
            raise ValueError(
                f"the prompt has {batch.lengths.max()} tokens; the context holds {context} with the answer: shorten it"
            )
        return batch, sampling, seeds

    def _run(self, batch: Batch, sampling: Sampling, seeds: list[int], *, steps: int) -> Iterator[list[Draft]]:
        """Generates, reading each row's tokens as they come; yields the rows after each call of ``steps`` tokens."""
        count, context = len(batch.tokens), self.config.thinker.context
        padded, embedded = perceive.embed(self.parts, batch, self.config.thinker)
        assert padded.positions is not None  # embed has counted them
        longest = sampling.max_new_tokens or DEFAULT_NEW_TOKENS
        most = [min(longest, context - int(length)) for length in padded.lengths]
        rows = [Draft(self._transcript(batch, row, sampling), sampling) for row in range(count)]
        made = generate(
            self.parts["thinker"], embedded, padded.tokens, padded.positions, padded.lengths,
            SamplingRows.of([sampling] * len(most), seeds + [0] * (len(most) - count), most),
            candidates=sampling.candidates(self.config.thinker.vocabulary), steps=steps,
        )  # fmt: skip
        del embedded  # the prompt's embeddings would stay on the device until the reply is done
        tokens = next(made)
        while True:
            stop = np.ones(len(most), bool)
            for number, row in enumerate(rows):
                new = slice(0, int(tokens.counts[number]))
                stop[number] = row.take(
                    tokens.tokens[number, new].tolist(), tokens.logprobs[number, new].tolist(), most[number]
                )
            yield rows
            try:
                tokens = made.send(stop)
            except StopIteration:
                return

    def _transcript(self, batch: Batch, row: int, sampling: Sampling) -> Transcript:
        """Reads the reply to one row; some templates open the thinking block in the prompt already."""
        if not any((self.folder / name).exists() for name in ("tokenizer_config.json", "tokenizer.json", "vocab.json")):
            return Transcript(None, stop_strings=sampling.stops)
        prompt = batch.tokens[row][batch.mask[row]].tolist()
        turn = prompt[max((at for at, token in enumerate(prompt) if token == self.config.im_start), default=0) :]
        opened, closed = (turn.count(self.tokenizer.get_added_vocab().get(tag, -1)) for tag in ("<think>", "</think>"))
        return Transcript(self.tokenizer, stop_strings=sampling.stops, thinking=opened > closed)


def _one(conversation: Any) -> Batch | list[Any]:
    """What the batched functions take, of one conversation."""
    if isinstance(conversation, Batch) and len(conversation.tokens) != 1:
        raise ValueError(f"a Batch of {len(conversation.tokens)} rows: expected one; use generate_batch")
    return conversation if isinstance(conversation, Batch) else [conversation]
