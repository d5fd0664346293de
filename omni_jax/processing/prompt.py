"""The prompt: the checkpoint's own chat template turns a conversation into text, then tokens, one placeholder a medium.

The template sees a copy of the conversation in which every medium is an empty string: it only asks for the kind of a
part, and recordings should not pass through Jinja.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from omni_jax.errors import UserError, cut, listed, shown
from omni_jax.processing.content_part import require_unicode
from omni_jax.processing.conversation import Content, read
from omni_jax.processing.transformers_classes import PreTrainedTokenizerFast, Qwen2Tokenizer, render_jinja_template

# Arguments that Transformers takes beside a template's variables; some of them run or replace the template.
RESERVED = frozenset(
    name
    for function in (PreTrainedTokenizerFast.apply_chat_template, render_jinja_template)
    for name, argument in inspect.signature(function).parameters.items()
    if argument.kind is not argument.VAR_KEYWORD
) | {"messages"}


class NoTokenizerError(UserError):
    """A folder in which files of the tokenizer are missing."""


def render(
    tokenizer: PreTrainedTokenizerFast,
    conversation: object,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    template: Mapping[str, Any] | None = None,
) -> str:
    """Writes a conversation as text, by the chat template that came with the checkpoint.

    Args:
        tokenizer: from `load_tokenizer`.
        conversation: as in `conversation.media`.
        tools: JSON schemas of the functions that the model may call.
        template: variables of the template, such as `{"enable_thinking": False}`. Among them `add_generation_prompt`:
            whether an assistant's turn is opened at the end; None decides by the last message: an assistant's message is
            left open for the model to continue, any other is answered.

    Raises:
        ValueError: the conversation has faults; the tools are not a list of dicts; the template ignores tools or calls,
            or refuses them; or `template` holds a name that is not a variable.
    """
    messages = [{**message, "content": _bare(content)} for message, content in read(conversation)]
    variables = _variables(template)
    _check_calls(str(tokenizer.chat_template), messages, tools)
    add_generation_prompt = variables.pop("add_generation_prompt", None)
    leave_open = add_generation_prompt is None and messages[-1]["role"] == "assistant"
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tools=[dict(tool) for tool in tools] if tools else None,
            add_generation_prompt=not leave_open if add_generation_prompt is None else bool(add_generation_prompt),
            tokenize=False,
            **variables,
        )
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template refuses this conversation: {shown(error, 200)}") from error
    except Exception as error:  # a template is a program that came with the checkpoint: it may raise anything
        raise ValueError(
            f"the chat template fails on this conversation ({type(error).__name__}: {shown(error, 200)}); check its "
            "messages, tools and the template's variables"
        ) from error
    # Cutting the end mark, unlike apply_chat_template's continue_final_message, also serves empty and tool-call turns.
    return _without_end(str(text), str(tokenizer.eos_token)) if leave_open else str(text)


def _variables(template: object) -> dict[str, Any]:
    """The variables of a template that a user gave, in a new dict."""
    if template is None:
        return {}
    if not isinstance(template, Mapping) or not all(isinstance(name, str) for name in template):
        raise ValueError(
            f"template: expected variables of the chat template by name, such as {{'enable_thinking': False}}, got "
            f"{shown(template)}"
        )
    if unfit := sorted(template.keys() & RESERVED - {"add_generation_prompt"}):
        raise ValueError(
            f"{cut(', '.join(unfit))}: an argument of Transformers' apply_chat_template, no variable of the chat template; "
            "leave it out"
        )
    return dict(template)


def _check_calls(template: str, messages: Sequence[Mapping[str, Any]], tools: object) -> None:
    """Raises ValueError for invalid tools, and for tools or calls that a template would silently leave out."""
    if tools is not None and not (isinstance(tools, list | tuple) and all(isinstance(tool, dict) for tool in tools)):
        raise ValueError(
            f"tools: expected a list of JSON schemas (dicts), got {type(tools).__name__}; pass tools=[...]"
        )
    if tools and "tools" not in template:
        raise ValueError(
            "tools: this checkpoint's chat template ignores them, so the model would not see them; leave them out, or "
            "describe them in a message"
        )
    for name in ("tool_calls", "reasoning_content"):
        held = [f"message {m}" for m, message in enumerate(messages) if message.get(name)]
        if held and name not in template:
            raise ValueError(
                f"conversation: {held[0]}: {name}: this checkpoint's chat template ignores them, so the model would "
                "not see them; leave them out, or say them in the message's content"
            )


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Tokens of a rendered prompt; special tokens written in the text are encoded as such, and none are added."""
    require_unicode(text)
    return tokenizer.encode(text, add_special_tokens=False)


def expand(tokens: Sequence[int], runs: Mapping[int, Sequence[int | Sequence[int]]]) -> list[int]:
    """Puts the tokens of each medium in place of its placeholder.

    Args:
        tokens: the encoded prompt, one placeholder a medium.
        runs: placeholder id -> for each of its media in prompt order, how often it is repeated, or the tokens
            themselves.

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
            f"placeholders and media disagree: {listed(faults)}; "
            "do not write placeholders into the text, and use a chat template that writes one for each medium"
        )
    left = {placeholder: iter(media) for placeholder, media in runs.items()}
    expanded: list[int] = []
    for token in tokens:
        run = next(left[token]) if token in left else 1
        expanded.extend(run if isinstance(run, Sequence) else [token] * int(run))
    return expanded


def has_tokenizer(folder: Path) -> bool:
    """Whether a checkpoint's folder has a tokenizer, or some of its files."""
    return any((folder / name).exists() for name in ("tokenizer_config.json", "tokenizer.json", "vocab.json"))


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Loads a Qwen tokenizer with its chat template from local files alone.

    Args:
        folder: holds tokenizer_config.json; tokenizer.json, or vocab.json and merges.txt; and the chat template in
            chat_template.jinja, chat_template.json or tokenizer_config.json (the first that has one is taken).

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
        raise NoTokenizerError(
            f"{folder} holds no whole tokenizer: missing {', '.join(missing)}; copy them from the checkpoint"
        )
    try:
        # The class by name: AutoTokenizer would read config.json first and guess from the folder's name.
        tokenizer = Qwen2Tokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exceptions for corrupt files
        raise ValueError(
            f"{folder}: the tokenizer's files cannot be read ({shown(error, 200)}); copy them anew"
        ) from error
    tokenizer.chat_template = template
    return tokenizer


def check_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raises ValueError for a chat template, or one of several, that is no program in Jinja."""
    found = tokenizer.chat_template
    for text in found.values() if isinstance(found, dict) else [found]:
        try:
            render_jinja_template([[{"role": "user", "content": "?"}]], chat_template=text)
        except jinja2.TemplateSyntaxError as error:
            said = f"the chat template is damaged in line {error.lineno} ({shown(error, 200)}); copy it anew"
            raise ValueError(f"{tokenizer.name_or_path}: {said}") from None
        except Exception:  # it may refuse this conversation, which nobody has sent
            continue


def _chat_template(folder: Path) -> str | dict[str, str] | None:
    """The template's text (or texts by name, as tokenizer_config.json may hold several), or None."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text in UTF-8 ({shown(error)}); copy it anew") from None
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is not a JSON object ({shown(error)}); copy it anew") from error
        if template is not None:
            return _named_texts(template, path)
    return None


def _named_texts(template: Any, path: Path) -> str | dict[str, str]:
    """A template's text, or several by name."""
    if isinstance(template, str):
        return template
    entries = template if isinstance(template, list) else [None]
    texts: dict[Any, Any] = {e.get("name"): e.get("template") for e in entries if isinstance(e, dict)}
    if len(texts) != len(entries) or not all(isinstance(item, str) for pair in texts.items() for item in pair):
        raise ValueError(
            f'{path}: chat_template: expected a text, or a list of {{"name": ..., "template": ...}}, got {shown(template)}; '
            "copy it anew"
        )
    return texts


def _bare(content: Content) -> str | list[dict[str, str]]:
    """Content as the template sees it: each part's type and text, and nothing of a medium."""
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
