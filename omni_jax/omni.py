"""The facade: a checkpoint as one object that answers conversations. The only file that knows every part."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Unpack

import jax
import numpy as np
from jaxtyping import Array, Float, Float32

from omni_jax import checkpoint, small_files, weights
from omni_jax.checkpoint.hub import locate
from omni_jax.config import OmniConfig
from omni_jax.decoding.defaults import GenerationConfig, sampling_options
from omni_jax.decoding.text import CALL_STEPS
from omni_jax.engine import encode
from omni_jax.engine.answer import Request, answer
from omni_jax.engine.keywords import RequestKeywords, SpeakKeywords
from omni_jax.engine.options import RequestOptions
from omni_jax.engine.reply import Event, Reply
from omni_jax.engine.request import (
    loads_speech,
    prompts,
    resolve,
    rows_of,
    speak_request,
    transcript_of,
    warn_system_prompt,
    without_blocks,
)
from omni_jax.errors import check_progress, listed, shown
from omni_jax.models import parts as model_parts
from omni_jax.models.memory_layout import to_platform_layout
from omni_jax.models.parts import OmniParts
from omni_jax.models.placement import shardings
from omni_jax.parallel.jitted import jitted
from omni_jax.parallel.mesh import make_mesh, well_chosen
from omni_jax.parallel.multihost import to_host
from omni_jax.processing import request
from omni_jax.processing.arrays import to_numpy
from omni_jax.processing.audio_packing import split_clips
from omni_jax.processing.batch import Batch
from omni_jax.processing.limits import UNLIMITED, Limits
from omni_jax.processing.media.reader import AnyReader, FolderReader
from omni_jax.processing.media.video_track import Progress
from omni_jax.processing.options import MediaOptions, is_number, misspelt, per_conversation
from omni_jax.processing.prompt import has_tokenizer, load_tokenizer
from omni_jax.processing.vision_packing import split_patches
from omni_jax.room import ensure_memory, weights_dtype
from omni_jax.speech.synthesizer import Synthesizer, synthesizer

_logits = jitted(lambda thinker, *prompt: thinker.logits(*prompt))


class Omni:
    """A Qwen omni model. Make one with ``Omni.load``."""

    def __init__(self, parts: OmniParts, config: OmniConfig, folder: str | Path, limits: Limits = UNLIMITED):
        self.parts, self.config, self.folder, self.limits = parts, config, Path(folder), limits
        self.synthesizer: Synthesizer[Any, Any] = synthesizer(config, self.folder, parts)  # how replies become speech

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        mesh: jax.sharding.Mesh | str | None = None,
        dtype: Any = None,
        speech: bool | None = None,
        progress: Callable[[int, int, str], None] | None = None,
        allow_local: bool = True,
        allow_control_tokens: bool = True,
        max_bytes: int | None = None,
        timeout: float | None = None,
    ) -> "Omni":
        """Loads a checkpoint.

        The last four arguments are limits that no request widens, for services open to all (docs/untrusted-input.md).

        Args:
            path: a Hugging Face folder, a folder that ``omni-jax convert`` wrote, or a hub id such as
                ``Qwen/Qwen3-Omni-30B-A3B-Instruct``.
            mesh: devices for the model: a shape such as ``data=2,expert=4``, a topology such as ``v6e-8``, or a mesh
                with axes among data, expert and model; None takes all TPUs or GPUs of this host. Hosts that share a
                mesh make the same calls with the same arguments in the same order, and all get the results.
            dtype: of the weights and of the arithmetic; None for bfloat16 on TPU and GPU, float32 on CPU.
            speech: False leaves the weights that only speaking needs on the disk; None loads them where they exist.
            progress: called with bytes done, bytes in all and the name of what was read.
            allow_local: False refuses media by path, ``file://`` URL, or URL of an object store or a private address.
            allow_control_tokens: False refuses text that writes tokens such as ``<|im_end|>``.
            max_bytes: bound of each download, in bytes.
            timeout: bound of each download, in seconds.

        Raises:
            ValueError: the folder is absent, of another model, incomplete, damaged or too large for the devices; all
                damaged files beside the weights in one line.
            RetryableError: the hub, a store or the file system does not answer.
            OSError: the disk has no room for the download.
        """
        limits = Limits(
            allow_local=allow_local, allow_control_tokens=allow_control_tokens, max_bytes=max_bytes, timeout=timeout
        )
        check_progress(progress)
        folder = locate(path, weights=False)
        config = weights.config_of(folder)
        speaks, dtype = loads_speech(config, folder, speech), weights_dtype(dtype)
        tokenizer = small_files.read(folder, config, speech=speaks)
        heads = config.thinker.decoder.kv_heads
        mesh = well_chosen(jax.local_devices(), kv_heads=heads) if mesh is None else make_mesh(mesh, kv_heads=heads)
        if mesh is not None and not mesh.local_devices:
            raise ValueError("mesh: none of its devices is of this host; load it on the hosts whose devices it has")
        abstract = model_parts.abstract(config, dtype, speech=speaks)
        placed = shardings(abstract, mesh) if mesh is not None else None
        ensure_memory(path, abstract, mesh.local_devices if mesh is not None else jax.local_devices()[:1], placed)
        folder = locate(path)  # weights that do not fit the devices were not downloaded
        config = weights.config_of(folder)  # of weights in one file, only the file shows that they have no talker
        speaks = loads_speech(config, folder, speech)
        reader = checkpoint if checkpoint.is_converted(folder) else weights
        parts = reader.load(folder, config, dtype=dtype, speech=speaks, shardings=placed, progress=progress)
        if mesh is None or jax.default_backend() == "tpu":
            parts = to_platform_layout(parts, jax.default_backend())
        omni = cls(parts, config, folder, limits)
        if tokenizer is not None:
            omni.tokenizer = tokenizer
        return omni

    def save(self, folder: str | Path) -> None:
        """Writes a converted checkpoint that ``load`` reads back, onto any mesh."""
        checkpoint.save(self.parts, folder, files_from=self.folder)

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer, with its chat template."""
        return load_tokenizer(self.folder)

    @cached_property
    def reader(self) -> AnyReader:
        """How sound becomes log-mel frames, and images and videos become patches."""
        return FolderReader(self.folder, self.config.thinker)

    @cached_property
    def defaults(self) -> GenerationConfig:
        """Sampling options of the checkpoint's generation config."""
        return GenerationConfig.read(self.folder, self.config)

    @property
    def speakers(self) -> tuple[str, ...]:
        """Names of the talker's speakers; empty for a text-only checkpoint."""
        return tuple(self.synthesizer.speakers)

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
            template: variables of the chat template, such as ``{"enable_thinking": False}``; or as keywords.
            progress: called with (done, total, name) while a long video is read.
        """
        several = (
            isinstance(conversation, list | tuple) and bool(conversation) and isinstance(conversation[0], list | tuple)
        )
        conversations = conversation if several else [conversation]
        how, rest = per_conversation(media, options, len(conversations))
        faults = misspelt(rest)
        faults += [f"{name} is an option of generate" for part in sampling_options(rest)[0].values() for name in part]
        if faults:
            raise ValueError(listed(faults))
        check_progress(progress)
        template = {**template, **rest} if isinstance(template, Mapping) else template or rest
        return self._prepare(conversations, how, tools, template, progress)

    def _prepare(
        self, conversations: Sequence[Any], how: Sequence[MediaOptions], tools: Any, template: Any, progress: Any
    ) -> Batch:
        return request.prepare(
            conversations,
            tokenizer=self.tokenizer, reader=self.reader, options=how, limits=self.limits, tools=tools, template=template,
            progress=progress,
        )  # fmt: skip

    def generate(self, conversation: Any = None, **options: Unpack[RequestKeywords]) -> Reply:
        """Answers one conversation, a Batch of one row, or what a Transformers processor gives, also as ``**inputs``.

        The options are those of ``generate_batch``.
        """
        return self._replies(self.request_of(*self._prompts(conversation, options, alone=True)))[0]

    def generate_batch(self, conversations: Any = None, **options: Unpack[RequestKeywords]) -> list[Reply]:
        """Answers several conversations in text and, if the checkpoint can, speech; no reply depends on the other rows.

        Args:
            conversations: lists of messages ``{"role": ..., "content": ...}`` as in Qwen's examples, a Batch, or what a
                Transformers processor gives. A Batch needs no tokenizer: without one, replies have tokens and no text.

        Keyword Args:
            seed: one for all, or one a conversation, modulo 2**32; a reply depends on its own seed and prompt alone.
            thinker: a ``Sampling`` for the text, over the checkpoint's; or single options: ``thinker_temperature=0.7``.
            talker: the same for speech's first codes; or single ones such as ``talker_do_sample=False``.
            predictor: the same for speech's other codes; without options it samples when the talker does.
            return_audio: whether replies are spoken; None speaks where the talker is loaded and the prompts have turns.
            speaker: one of ``omni.speakers``, or one a row, in any letter case; by default Ethan (Qwen2.5-Omni: Chelsie).
            compat: "transformers-5.23" speaks as that release does where no row is padded: thinking and tool calls too,
                and in Qwen2.5-Omni at plain positions and without the codec's marks (docs/parity.md); None speaks the
                visible answer alone, as the model was meant to.
            media: how images, videos and sound are read (processing/options.py); or single options such as
                ``max_pixels=...``, ``fps=...`` or ``use_audio_in_video=True``, for all or a list of one a conversation.
            tools: JSON schemas of functions the model may call.
            template: variables of the chat template, such as ``{"enable_thinking": False}``.
            progress: called with (done, total, name) while a long video is read.

        Raises:
            ValueError: input that cannot be used, in one line.
        """
        return self._replies(self.request_of(*self._prompts(conversations, options, alone=False)))

    def stream(
        self, conversation: Any = None, *, steps: int = 4, **options: Unpack[RequestKeywords]
    ) -> Iterator[Event]:
        """Answers one conversation piece by piece; the pieces join to what ``generate`` returns.

        The exception is text before a ``</think>`` without a ``<think>``: it is streamed as answer, and the last
        event's reply has it as thinking. A character is never split. Text that may yet become a stop string or a tool
        call is held back. Sound comes in chunks of 1, 2, 4, 8, 16 and then 25 frames of 80 ms, each once its text is
        there. Closing the iterator stops the work.

        Args:
            steps: tokens the device makes between two events, 1 to 32.
            options: as in ``generate_batch``.
        """
        # This call raises user errors; the first event does not.
        return (event for _, event in self._events(*self._prompts(conversation, options, alone=True), steps))

    def stream_batch(
        self, conversations: Any = None, *, steps: int = 4, **options: Unpack[RequestKeywords]
    ) -> Iterator[tuple[int, Event]]:
        """Answers several conversations piece by piece: pairs of a row's number and its next event.

        Rows advance together: a chunk of sound is made for all rows that still speak, once the text of all is there.
        """
        return self._events(*self._prompts(conversations, options, alone=False), steps)

    def speak(self, text: str, **options: Unpack[SpeakKeywords]) -> Reply:
        """Speaks a given text, as the assistant's answer to a user.

        Args:
            text: what is said.
            options: of ``generate_batch``: seed, speaker, media, progress, talker, predictor, talker_..., predictor_...

        Keyword Args:
            conversation: what the text answers: messages that end in the user's; by default a request to read it aloud.
        """
        return self._replies(self._speak_request(text, options))[0]

    def stream_speech(self, text: str, **options: Unpack[SpeakKeywords]) -> Iterator[Event]:
        """``speak`` piece by piece: sound in chunks of 1, 2, 4, 8, 16 and then 25 frames of 80 ms."""
        rows = answer(self.parts, self.config, self._speak_request(text, options), streamed=True)
        return (event for _, event in rows)

    def decode_codes(
        self, codes: Any, lengths: Any = None, *, speaker: Any = None, seed: Any = None, noise: Any = None
    ) -> Float32[np.ndarray, "*B W"]:
        """Codes to waveforms at 24 kHz, seamless at any length.

        Args:
            codes: ids [B, Q, Y], or [Q, Y] for one waveform [W].
            lengths: frames of each row, its first ones; None for all.
            speaker: of Qwen2.5-Omni, whose vocoder turns noise into the voice: one, or one a row, as in ``generate``.
            seed: of that noise, one or one a row.
            noise: Gaussian noise to start from instead, mel frames [B, 2 * Y, 80], or [2 * Y, 80] for one waveform.

        Returns:
            Samples in [-1, 1]; a row is zero beyond its own end. Of Qwen3-Omni [B, 1920 * Y - 555], because the last
            555 samples of a frame need the next one; of Qwen2.5-Omni [B, 480 * Y].
        """
        if not self.synthesizer.loaded:
            raise ValueError("decode_codes needs the vocoder: load a checkpoint that speaks, without speech=False")
        given = to_numpy(codes)
        sound = self.synthesizer.decode(given, lengths, speaker=speaker, seed=seed, noise=noise)
        return sound[0] if given.ndim == 2 else sound

    def encode_audio(self, mel: Any, *, mask: Any = None, lengths: Any = None) -> list[Float[Array, "_T D"]]:
        """Features of log-mel clips; a clip's features do not depend on the others.

        Args:
            mel: a list of clips [Z, A]; or an array [B, Z, A] with ``mask`` [B, A] or ``lengths`` [B] in frames; or
                clips one after another, [Z, sum of lengths], with ``lengths``. docs/audio-encoder.md shows all three.
        """
        config = self.config.thinker
        clips = split_clips(mel, mask=mask, lengths=lengths, mel_bins=config.audio_encoder.mel_bins)
        return encode.encode_audio(self.parts, clips, config)

    def encode_vision(self, patches: Any, grid: Any) -> tuple[Float[Array, "M D"], Float[Array, "taps M D"]]:
        """Features and deepstack features of images and videos; those of one do not depend on the others.

        Args:
            patches: [P, C] of all media one after another, as a Transformers processor gives them (``pixel_values``).
            grid: frames, rows and columns of each in patches, [n, 3] (``image_grid_thw``).
        """
        config = self.config.thinker
        sight = config.vision_encoder
        media, grids = split_patches(patches, grid, width=sight.patch_width, merge=sight.merge)
        return encode.encode_vision(self.parts, media, grids, config)

    def logits(self, tokens: Any, mask: Any = None) -> Float[Array, "B T V"]:
        """Logits of one pass of the thinker over ids [B, T] with a mask (padding on either side), or over a Batch.

        Values at padding have no meaning.
        """
        tokens = Batch.from_hf(tokens) if isinstance(tokens, Mapping) else tokens
        if isinstance(tokens, Batch) and mask is not None:
            raise ValueError("mask: a Batch has its own; give mask= with an array of tokens only")
        batch = tokens if isinstance(tokens, Batch) else Batch.from_tokens(tokens, mask)
        placed = encode.pad_and_index(batch, self.config.thinker)
        embedded = encode.embed(self.parts, placed, self.config.thinker)
        logits = _logits(self.parts.thinker, embedded, placed.batch.positions, placed.batch.lengths)
        rows = np.arange(len(batch.tokens))[:, None]
        # On the host, because indexing on the device would compile a program for each new length.
        return jax.device_put(to_host(logits)[rows, np.maximum(np.cumsum(batch.mask, axis=1) - 1, 0)])

    def _events(self, conversations: Any, options: RequestOptions, steps: int) -> Iterator[tuple[int, Event]]:
        if not is_number(steps, whole=True) or not 1 <= steps <= CALL_STEPS:
            raise ValueError(f"steps: expected 1 to {CALL_STEPS} tokens an event, got {shown(steps)}")
        return answer(self.parts, self.config, self.request_of(conversations, options), steps=steps, streamed=True)

    def _replies(self, request: Request) -> list[Reply]:
        replies: dict[int, Reply] = {}
        for row, event in answer(self.parts, self.config, request):
            if event.reply is not None:
                replies[row] = event.reply
        return [replies[row] for row in sorted(replies)]

    def _prompts(self, given: Any, options: Mapping[str, Any], *, alone: bool) -> tuple[Any, RequestOptions]:
        found, options = prompts(given, options, alone=alone, control_tokens=self.limits.allow_control_tokens)
        return found, RequestOptions.from_mapping(options, rows=rows_of(found))

    def request_of(
        self, conversations: Any, options: RequestOptions, reply_tokens: Sequence[int] | None = None
    ) -> Request:
        """A checked request, ready to run. All errors in it are raised here.

        Args:
            conversations: a list of them, or a Batch.
            options: of the request.
            reply_tokens: of the only conversation's reply, if that is given.
        """
        resolved = resolve(options, self.defaults, self.synthesizer, rows_of(conversations))
        if isinstance(conversations, Batch):
            # The tokens show whether a video has sound, so repeating the option (as with Transformers) does no harm.
            shaping = [replace(item, load_audio_from_video=False) != MediaOptions() for item in options.media]
            if options.tools or options.template or any(shaping):
                raise ValueError(
                    "tools, template and the options of media shape the prompt; a Batch has its prompts already: give them to "
                    "prepare"
                )
            batch = conversations
        else:
            batch = self._prepare(conversations, resolved.media, options.tools, options.template, options.progress)
            if resolved.spoken:
                warn_system_prompt(self.synthesizer.system, conversations)
        if reply_tokens is not None:
            batch = self.synthesizer.with_reply(batch, reply_tokens)
        context = self.config.thinker.context
        if batch.lengths.max() >= context:
            raise ValueError(
                f"the prompt has {batch.lengths.max()} tokens; the context holds {context} with the answer: shorten it"
            )
        prompts, speech, thinker = encode.pad_and_index(batch, self.config.thinker), None, resolved.generation.thinker
        # A prompt that cannot be spoken is answered in text alone, unless sound was asked for.
        if resolved.spoken and (resolved.required or self.synthesizer.speakable(batch)):
            speech = self.synthesizer.speech(
                prompts.batch, resolved.speakers, resolved.seeds, resolved.generation, text_tokens=reply_tokens,
                compat=options.compat,
            )  # fmt: skip
        tokenizer, all_spoken = self.tokenizer if has_tokenizer(self.folder) else None, options.compat is not None
        if speech is not None and reply_tokens is None and not all_spoken:
            speech = without_blocks(speech, tokenizer)
        transcript = partial(
            transcript_of, batch, thinker.stops, tokenizer, self.config.im_start, all_spoken=all_spoken
        )
        return Request(prompts, thinker, resolved.seeds, transcript, speech, reply_tokens is not None)

    def _speak_request(self, text: str, options: Mapping[str, Any]) -> Request:
        return self.request_of(*speak_request(text, options, self.tokenizer, self.synthesizer.system))
