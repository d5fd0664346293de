"""A tiny byte-level tokenizer in the published files' layout, and a chat template with the published behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from omni_jax.weights import write_json

# The added tokens, in the order and spelling of the published tokenizer.
_ADDED = """
<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|>
<|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> <tool_call> </tool_call>
<|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> <tool_response> </tool_response>
<think> </think> <|audio_start|> <|audio_end|> <tts_pad> <tts_text_bos> <tts_text_eod> <tts_text_bos_single>
<|audio_pad|>
"""
ADDED_TOKENS = _ADDED.split()
# Those that a decoder shows even when it skips special tokens: <tool_call> to </think>.
NOT_SPECIAL = ADDED_TOKENS[14:26]

# Each of these becomes one token. The roles must, as the talker looks for them; words begin with a space.
ROLES = ("system", "user", "assistant")
WORDS = """
the a of and to in is you I it that was for on are with they be at one have this from by had not but what all were
we when can said there an which she do how their if will up other about out many then them these so some her would make
like him into time has look two more write go see number no way could people my than first water been call who its now
find long down day did get come made may part over new
"""

CHAT_TEMPLATE = """\
{%- macro text_of(content) -%}
  {%- if content is string -%}
    {{- content -}}
  {%- elif content -%}
    {%- for part in content -%}
      {%- if part.type == 'audio' or 'audio' in part or 'audio_url' in part -%}
        <|audio_start|><|audio_pad|><|audio_end|>
      {%- elif part.type == 'image' or 'image' in part or 'image_url' in part -%}
        <|vision_start|><|image_pad|><|vision_end|>
      {%- elif part.type == 'video' or 'video' in part -%}
        <|vision_start|><|video_pad|><|vision_end|>
      {%- elif 'text' in part -%}
        {{- part.text -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- if tools -%}
  {{- '<|im_start|>system\\n' -}}
  {%- if messages[0].role == 'system' -%}{{- text_of(messages[0].content) + '\\n\\n' -}}{%- endif -%}
  {{- '# Tools\\n\\nFunctions that may be called, one JSON schema a line:\\n<tools>' -}}
  {%- for tool in tools -%}{{- '\\n' + tool | tojson -}}{%- endfor -%}
  {{- '\\n</tools>\\n\\nTo call one, write:\\n<tool_call>\\n' -}}
  {{- '{"name": ..., "arguments": {...}}\\n</tool_call><|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- set text = text_of(message.content) -%}
  {%- if message.role == 'tool' -%}
    {%- if loop.first or loop.previtem.role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
    {{- '\\n<tool_response>\\n' + text + '\\n</tool_response>' -}}
    {%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
  {%- elif message.role == 'assistant' -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- if loop.last and message.reasoning_content -%}
      {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' -}}
    {%- endif -%}
    {{- text.split('</think>')[-1].lstrip('\\n') if '</think>' in text else text -}}
    {%- for call in message.tool_calls or [] -%}
      {%- set function = call.function or call -%}
      {%- if text or not loop.first -%}{{- '\\n' -}}{%- endif -%}
      {{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' -}}
      {{- function.arguments if function.arguments is string else function.arguments | tojson -}}
      {{- '}\\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
  {%- elif not (tools and loop.first and message.role == 'system') -%}
    {{- '<|im_start|>' + message.role + '\\n' + text + '<|im_end|>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
  {%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """A family's additions to the vocabulary of words.

    Attributes:
        added: the added tokens, numbered on after the words.
        shown: those of them that a decoder shows even when it skips special tokens.
        named: the library's names for some of them.
        context: model_max_length.
        template: of conversations, in Jinja.
    """

    added: tuple[str, ...]
    shown: tuple[str, ...]
    named: Mapping[str, str]
    context: int
    template: str


QWEN3 = Dialect(
    added=tuple(ADDED_TOKENS),
    shown=tuple(NOT_SPECIAL),
    named={
        "image_token": "<|image_pad|>",
        "audio_token": "<|audio_pad|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
        "audio_bos_token": "<|audio_start|>",
        "audio_eos_token": "<|audio_end|>",
    },
    context=131072,
    template=CHAT_TEMPLATE,
)


def token_ids(dialect: Dialect = QWEN3) -> dict[str, int]:
    """Every token's id: bytes, words, and the added tokens numbered on after them."""
    words, _ = _vocabulary()
    return {**words, **{token: len(words) + i for i, token in enumerate(dialect.added)}}


def readable_ids() -> list[int]:
    """Ids that print as ASCII: characters and words. All others print as nothing, or as half a character."""
    words, _ = _vocabulary()
    return [number for word, number in words.items() if number < 94 or len(word) > 1]


def write_tokenizer(folder: str | Path, dialect: Dialect = QWEN3) -> Path:
    """Writes a tiny byte-level tokenizer: vocab.json, merges.txt, tokenizer_config.json and chat_template.json.

    All bytes are tokens, so any text can be encoded. A few words are tokens too, and a family's published added tokens,
    renumbered.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    words, merges = _vocabulary()
    write_json(folder / "vocab.json", words)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    shape = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "errors": "replace",
            "model_max_length": dialect.context,
            "extra_special_tokens": dict(dialect.named),
            "added_tokens_decoder": {
                str(number): {"content": token, **shape, "special": token not in dialect.shown}
                for token, number in token_ids(dialect).items()
                if token in dialect.added
            },
        },
    )
    write_json(folder / "chat_template.json", {"chat_template": dialect.template})
    return folder


def _vocabulary() -> tuple[dict[str, int], list[str]]:
    """Tokens and merges: 256 bytes in GPT-2's order and spelling, then the words, left to right."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelling = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}
    vocabulary = {spelling[byte]: i for i, byte in enumerate(printable + others)}
    ranks: dict[tuple[str, str], int] = {}
    for word in [*ROLES, *(f" {word}" for word in WORDS.split())]:
        pieces = _apply(ranks, [spelling[byte] for byte in word.encode()])
        while len(pieces) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
            vocabulary[pieces[0] + pieces[1]] = len(vocabulary)
            pieces = _apply(ranks, [spelling[byte] for byte in word.encode()])
    return vocabulary, [" ".join(pair) for pair in ranks]


def _apply(ranks: Mapping[tuple[str, str], int], pieces: list[str]) -> list[str]:
    """Byte-pair encoding of a word: the merge of lowest rank first."""
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in ranks]
        if not pairs:
            return pieces
        i = min(pairs)[1]
        pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]
