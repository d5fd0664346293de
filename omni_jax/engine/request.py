"""A request checked before anything is read: its prompts, and its options over those of the checkpoint."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omni_jax.config import OmniConfig, read_json
from omni_jax.decoding.defaults import GenerationConfig
from omni_jax.engine.options import RequestOptions
from omni_jax.engine.transformers_keywords import translated
from omni_jax.environment import warn
from omni_jax.errors import cut, shown
from omni_jax.processing.batch import PROCESSED, Batch
from omni_jax.processing.conversation import check, speaks
from omni_jax.processing.options import NAMES, MediaOptions
from omni_jax.processing.spoken import BLOCKS
from omni_jax.processing.transcript import Transcript
from omni_jax.speech.stream import SpeechRequest
from omni_jax.speech.synthesizer import Synthesizer

# The user's turn for a text that is only to be spoken.
READ_ALOUD = "Please read the following text aloud.\n\n"


@dataclass(frozen=True)
class ResolvedOptions:
    """A request's options over those of a checkpoint.

    Attributes:
        generation: sampling options of each part, complete.
        seeds: one a conversation.
        media: how the media of each conversation are read.
        speakers: one a conversation; empty if nothing is spoken.
        spoken: whether replies are spoken.
        required: whether speech was asked for explicitly, so that a prompt that cannot be spoken is an error.
    """

    generation: GenerationConfig
    seeds: tuple[int, ...]
    media: tuple[MediaOptions, ...]
    speakers: tuple[Any, ...]
    spoken: bool
    required: bool


def resolve(
    options: RequestOptions, defaults: GenerationConfig, synthesizer: Synthesizer[Any, Any], rows: int
) -> ResolvedOptions:
    """Checks the options of ``rows`` conversations against a checkpoint, and completes them with its own.

    Raises:
        ValueError: in one line.
    """
    generation = defaults.override(thinker=options.thinker, talker=options.talker, predictor=options.predictor)
    can, seeds = synthesizer.loaded, options.seeds(rows)
    if options.return_audio and not can:
        why = "was loaded with speech=False" if synthesizer.config.talker else why_no_talker(synthesizer.folder)
        raise ValueError(f"return_audio=True, but this checkpoint {why}")
    spoken = can if options.return_audio is None else bool(options.return_audio)
    of_speech = options.of_speech
    if of_speech and options.return_audio is None and not spoken:
        raise ValueError(
            f"{', '.join(of_speech)}: nothing is spoken without a talker; leave it out, or say return_audio=False"
        )
    if spoken and not synthesizer.predicts and any(name.startswith("predictor_") for name in of_speech):
        raise ValueError(
            "predictor: a frame of this family is one code, which the talker writes; use talker_... options"
        )
    speakers = synthesizer.select_speakers(options.speaker, rows) if spoken or options.speaker is not None else ()
    media = options.media * rows if len(options.media) == 1 else options.media
    return ResolvedOptions(generation, seeds, media, speakers, spoken, bool(of_speech or options.return_audio))


def prompts(
    given: Any, options: Mapping[str, Any], *, alone: bool, control_tokens: bool = True
) -> tuple[Any, dict[str, Any]]:
    """The prompts as the batched functions take them, and the options without those that are a processor's output.

    Args:
        given: a conversation or several, a Batch, or what a Transformers processor gives, which may also be among the
            options: ``generate(**inputs)``.
        options: keywords of the request.
        alone: whether one prompt is meant.
        control_tokens: whether ids are accepted in place of a conversation; ids from JSON could be any control token.

    Raises:
        ValueError: one prompt where several are meant, or several where one is; options that are not supported.
    """
    options = dict(options)
    if hasattr(given, "__array__") or (given is None and "input_ids" in options):
        inputs = {name: options.pop(name) for name in PROCESSED & options.keys() - NAMES}
        given = inputs if given is None else {"input_ids": given, **inputs}
    if isinstance(given, Mapping) and "input_ids" in given:
        if not control_tokens:
            raise ValueError(
                "conversation: expected a list of messages, got input_ids, which may be control tokens that this model was "
                "loaded to refuse; give Batch.from_hf(...), or generate(**inputs)"
            )
        given = Batch.from_hf(given)
    if isinstance(given, Batch):
        if alone and len(given.tokens) != 1:
            raise ValueError(f"a Batch of {len(given.tokens)} rows: expected one; use generate_batch or stream_batch")
        return given, options
    first = given[0] if isinstance(given, list | tuple) and given else None
    if alone and isinstance(first, list | tuple):
        raise ValueError(
            "conversation: expected one, a list of messages (dicts), got several; use generate_batch or stream_batch"
        )
    if not alone and isinstance(first, dict):
        raise ValueError(
            "conversations: expected a list of conversations, got the messages of one; use generate or stream, or give "
            "[conversation]"
        )
    return [given] if alone else given, options


def speak_request(
    text: str, options: Mapping[str, Any], tokenizer: Any, system: str | None
) -> tuple[list[Any], RequestOptions, list[int]]:
    """The conversations, options and reply's tokens of a request whose reply is given.

    Args:
        text: the reply.
        options: keywords of ``Omni.speak``.
        tokenizer: of the checkpoint.
        system: the ``Synthesizer``'s system prompt; None where it does not matter.

    Raises:
        ValueError: nothing to say, a mark in the text, or options of what is not done here.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"text: expected something to say, got {shown(text)}")
    options = translated(options)
    if wrong := sorted(name for name in options if name.startswith("thinker") or name == "return_audio"):
        raise ValueError(f"{cut(', '.join(wrong))}: nothing is written here, the text is given; leave it out")
    if marks := [mark for mark in tokenizer.get_added_vocab() if mark in text]:
        raise ValueError(f"text: expected words to say, got {', '.join(marks)}, which is a mark; leave it out")
    conversation = options.pop("conversation", None)
    if conversation is None:
        conversation = [{"role": "system", "content": system}] if system else []
        conversation.append({"role": "user", "content": READ_ALOUD + text})
    check(conversation)
    if conversation[-1]["role"] != "user":
        raise ValueError("conversation: expected messages that end in the user's, which the text then answers")
    # Not through the chat template, which may change the assistant's text.
    tokens = tokenizer.encode(text, add_special_tokens=False)
    return [conversation], RequestOptions.from_mapping({**options, "return_audio": True}), tokens


def transcript_of(
    batch: Batch, stops: Sequence[str], tokenizer: Any, im_start: int, row: int, *, all_spoken: bool = False
) -> Transcript:
    """A reader of one row's reply; some templates open the thinking block already in the prompt.

    Args:
        batch: the prompts.
        stops: texts that end the reply.
        tokenizer: of the checkpoint; None for replies of tokens alone.
        im_start: the id that begins a message.
        row: of the batch.
        all_spoken: whether thinking and tool calls are spoken too.
    """
    if tokenizer is None:
        return Transcript(None, stop_strings=stops)
    prompt = batch.tokens[row][batch.mask[row]].tolist()
    turn = prompt[max((at for at, token in enumerate(prompt) if token == im_start), default=0) :]
    added = tokenizer.get_added_vocab()
    thinking, calling = (turn.count(added.get(tag, -1)) > turn.count(added.get(end, -1)) for tag, end in BLOCKS.items())
    return Transcript(tokenizer, stop_strings=stops, thinking=thinking, calling=calling, all_spoken=all_spoken)


def without_blocks(speech: SpeechRequest, tokenizer: Any) -> SpeechRequest:
    """A request for speech without the thinking and tool calls in answers that the prompts have begun."""

    def spoken(tokens: Sequence[int]) -> tuple[int, ...]:
        begun = Transcript(tokenizer)
        begun.push(tokens)
        begun.finish()
        return tuple(tokens[place] for place in begun.spoken)

    text_tokens = tuple(map(spoken, speech.prompt.text_tokens))
    return replace(speech, prompt=replace(speech.prompt, text_tokens=text_tokens))


def rows_of(conversations: Any) -> int:
    """The number of conversations, or of a Batch's rows.

    Raises:
        ValueError: there is none, or no list of them.
    """
    if isinstance(conversations, Batch):
        return len(conversations.tokens)
    if not isinstance(conversations, list | tuple) or not conversations:
        got = "an empty list" if conversations == [] else type(conversations).__name__
        raise ValueError(f"conversations: expected a list of at least one, or a Batch, got {got}")
    return len(conversations)


def why_no_talker(folder: Path) -> str:
    """Why a checkpoint has no talker, and what to do: it was saved without one, or its release has none."""
    if "talker_config" in read_json(folder / "config.json"):
        return "was saved without its talker (speech=False); use the one that it was made from"
    return "has no talker; use the Instruct release"


def warn_system_prompt(system: str | None, conversations: Iterable[Any]) -> None:
    """Warns of conversations that are to be spoken without the system prompt that speech was trained with.

    Args:
        system: the ``Synthesizer``'s system prompt; None where it does not matter.
        conversations: the conversations.
    """
    if system and not all(map(speaks, conversations)):
        warn(
            "speech wants the system prompt that it was trained with, alone in the first message "
            f"(omni_jax.processing.conversation.SPOKEN_SYSTEM): {system}"
        )


def loads_speech(config: OmniConfig, folder: Path, speech: bool | None) -> bool:
    """Whether the weights that only speaking needs are loaded: as ``speech`` says, or if None, where they exist."""
    if speech and config.talker is None:
        raise ValueError(f"{folder}: speech=True, but this checkpoint {why_no_talker(folder)}")
    return config.talker is not None if speech is None else speech
