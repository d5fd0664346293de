"""What a conversation may hold: messages as in Qwen's own examples, checked once, with all faults in one line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omni_jax.errors import listed, shown
from omni_jax.processing.content_part import read_part, require_unicode

# Qwen2.5-Omni was trained to speak only behind this system message; its chat template writes another one by default.
SPOKEN_SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and visual "
    "inputs, as well as generating text and speech."
)
ROLES = ("system", "user", "assistant", "tool")
RENAMED = {"developer": "system"}  # OpenAI's name
Content = str | list[tuple[str, Any, dict[str, Any]]]


@dataclass(frozen=True)
class Media:
    """One audio, image or video of a conversation.

    Attributes:
        kind: "audio", "image" or "video".
        source: as the user gave it: a path, a URL, bytes, an array, ...; not checked here.
        where: its place, for error messages, such as "message 0, part 1".
        options: options that its part sets, by the names in processing/options.py.
    """

    kind: str
    source: Any
    where: str
    options: Mapping[str, Any] = field(default_factory=dict)


def check(conversation: object) -> None:
    """Raises one ValueError that names the faults of a conversation (role, content, type, payload)."""
    read(conversation)


def media(conversation: object) -> list[Media]:
    """Collects the media of a conversation, in the order of their placeholders in the prompt.

    Args:
        conversation: list of messages, each `{"role": ..., "content": ...}`; content is a string, or a part or a list
            of parts `{"type": "text" | "audio" | "image" | "video", <type>: payload}`, in any of the spellings of
            processing/content_part.py. A part may also hold options of its own, such as "max_pixels" or "fps".

    Raises:
        ValueError: the conversation has faults; they are named.
    """
    return [
        Media(kind, payload, f"message {m}, part {p}", options)
        for m, (_, parts) in enumerate(read(conversation))
        if not isinstance(parts, str)
        for p, (kind, payload, options) in enumerate(parts)
        if kind != "text"
    ]


def speaks(conversation: object) -> bool:
    """Whether a conversation begins with exactly the system message that lets Qwen2.5-Omni speak, ``SPOKEN_SYSTEM``.

    Raises:
        ValueError: as ``check``.
    """
    message, content = read(conversation)[0]
    texts = (
        [content] if isinstance(content, str) else [payload if kind == "text" else None for kind, payload, _ in content]
    )
    return message["role"] == "system" and texts == [SPOKEN_SYSTEM]


def read(conversation: object) -> list[tuple[dict[str, Any], Content]]:
    """Each message with its content: a string, or a list of (kind, payload, options). Raises for all faults at once."""
    if not isinstance(conversation, list | tuple):
        raise ValueError(
            f"conversation: expected a list of messages (dicts), got {_name(conversation)}; give "
            '[{"role": "user", "content": "..."}]'
        )
    if not conversation:
        raise ValueError('conversation: no messages; give at least {"role": "user", "content": "..."}')
    faults: list[str] = []
    messages: list[tuple[dict[str, Any], Content]] = []
    for m, message in enumerate(conversation):
        try:
            messages.append(_read_message(message, faults, f"message {m}"))
        except ValueError as error:
            faults.append(f"message {m}: {error}")
    if faults:
        raise ValueError(f"conversation: {listed(faults)}")
    return messages


def _read_message(message: object, faults: list[str], where: str) -> tuple[dict[str, Any], Content]:
    """A message, with its role's current name, and its content; faults that do not end the check go into ``faults``."""
    if not isinstance(message, dict):
        raise ValueError(f"expected a dict with role and content, got {_name(message)}")
    role = message.get("role")
    role = RENAMED.get(role, role) if isinstance(role, str) else role
    if not isinstance(role, str) or role not in ROLES:
        faults.append(f"{where}: unknown role {shown(role)} (expected {', '.join(ROLES)})")
    faults += [f"{where}: {fault}" for fault in _assistant_faults(message)]
    message, content = {**message, "role": role}, message.get("content")
    if isinstance(content, str):
        require_unicode(content)
        return message, content
    if content is None and role == "assistant" and _says_without_content(message):
        return message, ""
    if content is None:
        raise ValueError("no content; give a string or a list of parts")
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, tuple) and content and all(item is None or isinstance(item, str) for item in content):
        raise ValueError(
            'a tuple of strings, as Gradio has for a file; give a list of parts such as {"type": "image", "image": path}'
        )
    if not isinstance(content, list | tuple) or not content:
        got = "an empty one" if isinstance(content, list | tuple) else _name(content)
        raise ValueError(f"expected content as a string or a list of parts, got {got}")
    parts: list[tuple[str, Any, dict[str, Any]]] = []
    for p, part in enumerate(content):
        try:
            parts.append(read_part(part))
        except ValueError as error:
            faults.append(f"{where}, part {p}: {error}")
    return message, parts


def _says_without_content(message: dict[str, Any]) -> bool:
    return bool(message.get("tool_calls")) or message.get("reasoning_content") is not None


def _assistant_faults(message: dict[str, Any]) -> list[str]:
    """Faults of the fields beside role and content, which in a template would only show as its own failure."""
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


def _name(value: object) -> str:
    return type(value).__name__
