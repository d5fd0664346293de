"""Limits for conversations of strangers: a model is loaded with them, and no option of a request widens them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from omni_jax.errors import shown
from omni_jax.processing.conversation import Content, read
from omni_jax.processing.options import MediaOptions


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of every request, whatever its own options say.

    Attributes:
        allow_local: whether media may be named by paths, `file://` URLs, URLs of object stores (which are read with
            this process' rights) and URLs of private addresses. False leaves values (bytes, arrays, pictures, file
            objects), `data:` URLs, and `http(s)://` URLs of public addresses.
        allow_control_tokens: whether text may write the template's tokens, such as `<|im_end|>`, as in Transformers.
        max_bytes: most bytes of a download; None for no limit but the request's.
        timeout: most seconds of a download; None for no limit but the request's.

    Raises:
        ValueError: every impossible value, in one line.
    """

    allow_local: bool = True
    allow_control_tokens: bool = True
    max_bytes: int | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        for name in ("allow_local", "allow_control_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: expected True or False, got {shown(getattr(self, name))}")
        for name in ("max_bytes", "timeout"):  # a string is accepted too, as from an environment variable
            if getattr(self, name) is not None:
                object.__setattr__(self, name, getattr(MediaOptions.named({name: getattr(self, name)}), name))

    def tighten(self, options: MediaOptions) -> MediaOptions:
        """A request's options, tightened to these limits."""
        return replace(
            options,
            allow_local=options.allow_local and self.allow_local,
            allow_private=options.allow_private and self.allow_local,
            max_bytes=min(options.max_bytes, self.max_bytes or options.max_bytes),
            timeout=min(options.timeout, self.timeout or options.timeout),
        )

    def check(self, conversation: Any, tools: Any, tokenizer: Any) -> None:
        """Raises ValueError if text of a conversation writes control tokens that are not allowed.

        Args:
            conversation: a list of messages.
            tools: JSON schemas of functions, or None.
            tokenizer: knows the control tokens.
        """
        if self.allow_control_tokens:
            return
        marks = tokenizer.get_added_vocab()
        texts = [
            (f"message {number}", text)
            for number, (message, content) in enumerate(read(conversation))
            for text in _written(message, content)
        ]
        texts += [("tools", text) for text in _strings(tools)]
        for where, text in texts:
            if mark := next((mark for mark in marks if mark in text), None):
                raise ValueError(
                    f"{where}: its text writes the control token {mark}, which this model was loaded to refuse; leave it out, "
                    "or put a space into it"
                )


UNLIMITED = Limits()


def _written(message: Mapping[str, Any], content: Content) -> Iterator[str]:
    """The strings of a message that a chat template writes; its text parts as one, as nothing separates them."""
    yield content if isinstance(content, str) else "".join(text for kind, text, _ in content if kind == "text")
    yield from _strings([value for key, value in message.items() if key != "content"])


def _strings(value: Any) -> Iterator[str]:
    """Every string in a value of nested lists and dictionaries."""
    left = [value]
    while left:
        found = left.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, Mapping):
            left += [*found, *found.values()]
        elif isinstance(found, list | tuple):
            left += found
