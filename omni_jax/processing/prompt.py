"""The prompt: a conversation becomes text by the checkpoint's own chat template, then tokens, one placeholder a medium.

A conversation is the list of messages that Qwen's examples use. What a message may hold is checked here once, with all
faults in one line; the template then sees a clean copy in which every medium is an empty string, for it only asks
which kind a part is, and a recording has no business inside Jinja.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from omni_jax.processing.options import OF_A_PART, misspelt

# Qwen2.5-Omni was trained to speak behind this system message alone; its chat template writes another where none is given.
SPOKEN_SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and visual "
    "inputs, as well as generating text and speech."
)
ROLES = ("system", "user", "assistant", "tool")
KINDS = {
    "text": "text",
    "audio": "audio",
    "audio_url": "audio",
    "image": "image",
    "image_url": "image",
    "video": "video",
    "video_url": "video",
}


@dataclass(frozen=True)
class Media:
    """One audio, image or video of a conversation.

    Attributes:
        kind: "audio", "image" or "video".
        source: what the user gave: a path, a URL, bytes, an array, ...; not looked at here.
        where: its place, for error messages, such as "message 0, part 1".
        options: what its part states for itself, by the names in processing/options.py.
    """

    kind: str
    source: Any
    where: str
    options: Mapping[str, Any] = field(default_factory=dict)


def check(conversation: object) -> None:
    """Raises one ValueError that names every fault of a conversation (role, content, type, payload)."""
    _read(conversation)


def media(conversation: object) -> list[Media]:
    """Collects the media of a conversation in the order in which their placeholders stand in the prompt.

    Args:
        conversation: list of messages, each `{"role": ..., "content": ...}`; content is a string or a list of parts
            `{"type": "text" | "audio" | "image" | "video", <type>: payload}`. A part may spell its key `audio_url`
            (the payload, or `{"url": payload}`) and may leave out "type"; beside it may stand options of its own, such as
            "max_pixels" or "fps".

    Raises:
        ValueError: the conversation has faults; all are named.
    """
    return [
        Media(kind, payload, f"message {m}, part {p}", options)
        for m, (_, parts) in enumerate(_read(conversation))
        if not isinstance(parts, str)
        for p, (kind, payload, options) in enumerate(parts)
        if kind != "text"
    ]


def speaks(conversation: object) -> bool:
    """Whether a conversation begins with the system message that Qwen2.5-Omni needs to speak, ``SPOKEN_SYSTEM`` and no more.

    Raises:
        ValueError: as ``check``.
    """
    message, content = _read(conversation)[0]
    texts = (
        [content] if isinstance(content, str) else [payload if kind == "text" else None for kind, payload, _ in content]
    )
    return message["role"] == "system" and texts == [SPOKEN_SYSTEM]


def render(
    tokenizer: PreTrainedTokenizerFast,
    conversation: object,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool | None = None,
    **template_options: Any,
) -> str:
    """Writes a conversation as text, by the chat template that came with the checkpoint.

    Args:
        tokenizer: from `load_tokenizer`.
        conversation: as in `media`.
        tools: JSON schemas of the functions that the model may call.
        add_generation_prompt: whether an assistant's turn is opened at the end. None decides by the last message: an
            assistant's message is left open for the model to continue, any other is answered.
        **template_options: passed to the template, such as `enable_thinking=False`.

    Raises:
        ValueError: the conversation has faults, the tools are no list of dicts or the template writes none, or it refuses
            them.
    """
    messages = [{**message, "content": _bare(content)} for message, content in _read(conversation)]
    if tools is not None and not (isinstance(tools, list | tuple) and all(isinstance(tool, dict) for tool in tools)):
        raise ValueError(f"tools: expected a list of JSON schemas (dicts), got {_name(tools)}; pass tools=[...]")
    if tools and "tools" not in str(tokenizer.chat_template):
        raise ValueError(
            "tools: this checkpoint's chat template writes none into the prompt, so its model would never learn of them; "
            "leave them out, or describe them in a message"
        )
    leave_open = add_generation_prompt is None and messages[-1]["role"] == "assistant"
    if add_generation_prompt is None:
        add_generation_prompt = not leave_open
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tools=[dict(tool) for tool in tools] if tools else None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **template_options,
        )
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template refuses this conversation: {_line(error)}") from error
    # Cutting the end mark, unlike apply_chat_template's continue_final_message, also serves empty and tool-call turns.
    return _without_end(str(text), str(tokenizer.eos_token)) if leave_open else str(text)


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Tokens of a rendered prompt: special tokens written in the text are read as such, none are added."""
    return tokenizer.encode(text, add_special_tokens=False)


def expand(tokens: Sequence[int], runs: Mapping[int, Sequence[int | Sequence[int]]]) -> list[int]:
    """Puts the tokens of each medium in place of its placeholder.

    Args:
        tokens: the encoded prompt, one placeholder a medium.
        runs: placeholder id -> for each of its media in prompt order, how often it is repeated, or the tokens themselves.

    Raises:
        ValueError: a placeholder occurs more or less often than there are media of its kind.
    """
    faults = []
    for placeholder, media in runs.items():
        found = sum(token == placeholder for token in tokens)
        if found != len(media):
            faults.append(f"token {placeholder} stands {found} times for {len(media)} media")
    if faults:
        raise ValueError(
            f"placeholders and media disagree: {'; '.join(faults)}; "
            "do not write placeholders into the text, and use a chat template that writes one for each medium"
        )
    left = {placeholder: iter(media) for placeholder, media in runs.items()}
    expanded: list[int] = []
    for token in tokens:
        run = next(left[token]) if token in left else 1
        expanded.extend(run if isinstance(run, Sequence) else [token] * int(run))
    return expanded


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Loads a Qwen tokenizer with its chat template from local files alone.

    Args:
        folder: holds tokenizer_config.json; tokenizer.json, or vocab.json and merges.txt; and the chat template in
            chat_template.jinja, chat_template.json or tokenizer_config.json (the first that is there is taken).

    Raises:
        ValueError: files are missing or cannot be read; all missing ones are named.
    """
    folder = Path(folder)
    missing = []
    if not (folder / "tokenizer_config.json").is_file():
        missing.append("tokenizer_config.json")
    if not (folder / "tokenizer.json").is_file():
        missing += [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    template = None if missing else _chat_template(folder)
    if not missing and template is None:
        missing.append("a chat template (chat_template.jinja, chat_template.json or tokenizer_config.json's entry)")
    if missing:
        raise ValueError(
            f"{folder} holds no whole tokenizer: missing {', '.join(missing)}; copy them from the checkpoint"
        )
    try:
        # The class by name: AutoTokenizer would read config.json first and guess from the folder's name.
        tokenizer = Qwen2Tokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exceptions for corrupt files
        raise ValueError(f"{folder}: the tokenizer's files cannot be read ({_line(error)}); copy them anew") from error
    tokenizer.chat_template = template
    return tokenizer


def _chat_template(folder: Path) -> Any:
    """The template's text (or named texts, as tokenizer_config.json may hold several), or None."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        try:
            template = json.loads((folder / name).read_text(encoding="utf-8")).get("chat_template")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{folder / name} is not a JSON object ({_line(error)}); copy it anew") from error
        if template is not None:
            return {entry["name"]: entry["template"] for entry in template} if isinstance(template, list) else template
    return None


def _read(conversation: object) -> list[tuple[dict[str, Any], str | list[tuple[str, Any, dict[str, Any]]]]]:
    """Each message with its content: a string, or a list of (kind, payload, options). Raises for all faults at once."""
    if not isinstance(conversation, list | tuple):
        raise ValueError(f"conversation: expected a list of messages (dicts), got {_name(conversation)}")
    if not conversation:
        raise ValueError('conversation: no messages; give at least {"role": "user", "content": "..."}')
    faults: list[str] = []
    messages = []
    for m, message in enumerate(conversation):
        if not isinstance(message, dict):
            faults.append(f"message {m}: expected a dict with role and content, got {_name(message)}")
            continue
        if message.get("role") not in ROLES:
            faults.append(f"message {m}: unknown role {message.get('role')!r} (expected {', '.join(ROLES)})")
        faults += [f"message {m}: {fault}" for fault in _assistant_faults(message)]
        content = message.get("content")
        if isinstance(content, str):
            if not _is_unicode(content):
                faults.append(f"message {m}: expected text in Unicode, got bytes that are none (lone surrogates)")
            messages.append((message, content))
        elif content is None and message.get("role") == "assistant" and _says_without_content(message):
            messages.append((message, ""))
        elif content is None:
            faults.append(f"message {m}: no content; give a string or a list of parts")
        elif not isinstance(content, list | tuple) or not content:
            got = "an empty one" if isinstance(content, list | tuple) else _name(content)
            faults.append(f"message {m}: expected content as a string or a list of parts, got {got}")
        else:
            parts = []
            for p, part in enumerate(content):
                try:
                    parts.append(_read_part(part))
                except ValueError as error:
                    faults.append(f"message {m}, part {p}: {error}")
            messages.append((message, parts))
    if faults:
        raise ValueError(f"conversation: {'; '.join(faults)}")
    return messages


def _read_part(part: object) -> tuple[str, Any, dict[str, Any]]:
    """(kind, payload, options) of one content part."""
    if not isinstance(part, dict):
        raise ValueError(f"expected a dict with type and payload, got {_name(part)}")
    named = part.get("type")
    if named is not None and (not isinstance(named, str) or named not in KINDS):
        raise ValueError(f"unknown content type {named!r} (expected {', '.join(KINDS)})")
    # A key that is None counts as absent: tables of examples fill unused columns so.
    if faults := misspelt(str(key) for key in part):
        raise ValueError("; ".join(faults))
    payloads = {key: _payload(key, part.get(key)) for key in KINDS}
    # Transformers' own templates put a medium under "url" or "path".
    other = next((part[key] for key in ("url", "path") if part.get(key) is not None), None)
    if other is not None and named in KINDS and KINDS[named] != "text" and not any(payloads.values()):
        payloads[named] = other
    held = [key for key, payload in payloads.items() if payload is not None]
    if len(held) > 1:
        raise ValueError(f"holds {' and '.join(held)} where one is expected; make them separate parts")
    if not held or (named is not None and KINDS[held[0]] != KINDS[named]):
        keys = [key for key, kind in KINDS.items() if named is None or kind == KINDS[named]]
        raise ValueError(f"no payload under {' or '.join(keys)}" + (f" for type {named!r}" if named else ""))
    kind, payload = KINDS[held[0]], payloads[held[0]]
    if kind == "text" and not isinstance(payload, str):
        raise ValueError(f"expected text as a string, got {_name(payload)}")
    if kind == "text" and not _is_unicode(payload):
        raise ValueError("expected text in Unicode, got bytes that are none (lone surrogates)")
    return kind, payload, {name: part[name] for name in OF_A_PART if part.get(name) is not None}


def _is_unicode(text: str) -> bool:
    """Whether text can be written as UTF-8; a shell's argument in another encoding cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _payload(key: str, value: Any) -> Any:
    """What a part holds under one of its keys; None where an empty string stands for a medium."""
    if key != "text" and isinstance(value, dict) and isinstance(value.get("url"), str):
        value = value["url"]
    return None if key != "text" and isinstance(value, str) and not value else value


def _says_without_content(message: dict[str, Any]) -> bool:
    return bool(message.get("tool_calls")) or message.get("reasoning_content") is not None


def _assistant_faults(message: dict[str, Any]) -> list[str]:
    """Faults of the fields beside role and content, which a template would only meet as its own failure."""
    faults = []
    reasoning, calls = message.get("reasoning_content"), message.get("tool_calls")
    if reasoning is not None and not isinstance(reasoning, str):
        faults.append(f"expected reasoning_content as a string, got {_name(reasoning)}")
    if calls is not None and not (isinstance(calls, list | tuple) and all(_is_call(call) for call in calls)):
        faults.append('expected tool_calls as a list of {"name": ..., "arguments": {...}}, bare or under "function"')
    return faults


def _is_call(call: object) -> bool:
    function = call.get("function", call) if isinstance(call, dict) else None
    return (
        isinstance(function, dict)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("arguments"), dict | str)
    )


def _bare(content: str | list[tuple[str, Any, dict[str, Any]]]) -> str | list[dict[str, str]]:
    """Content as the template sees it: the type of each part, its text, and nothing of a medium."""
    if isinstance(content, str):
        return content
    return [{"type": kind, kind: payload if kind == "text" else ""} for kind, payload, _ in content]


def _without_end(text: str, end: str) -> str:
    """The prompt up to the end mark of its last turn."""
    kept, mark, rest = text.rpartition(end)
    if not mark or rest.strip():
        raise ValueError(
            f"the chat template does not close its last turn with {end}, so the assistant's message cannot be left "
            "open; pass add_generation_prompt=True"
        )
    return kept


def _name(value: object) -> str:
    return type(value).__name__


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
