"""A byte-level tokenizer of a few hundred tokens in the published layout, with a small chat template."""

import json
from pathlib import Path

# Qwen3-Omni's added tokens in id order, and whether each is special (left out of decoded text).
ADDED_TOKENS = {
    "<|endoftext|>": True,
    "<|im_start|>": True,
    "<|im_end|>": True,
    "<|object_ref_start|>": True,
    "<|object_ref_end|>": True,
    "<|box_start|>": True,
    "<|box_end|>": True,
    "<|quad_start|>": True,
    "<|quad_end|>": True,
    "<|vision_start|>": True,
    "<|vision_end|>": True,
    "<|vision_pad|>": True,
    "<|image_pad|>": True,
    "<|video_pad|>": True,
    "<tool_call>": False,
    "</tool_call>": False,
    "<|fim_prefix|>": False,
    "<|fim_middle|>": False,
    "<|fim_suffix|>": False,
    "<|fim_pad|>": False,
    "<|repo_name|>": False,
    "<|file_sep|>": False,
    "<tool_response>": False,
    "</tool_response>": False,
    "<think>": False,
    "</think>": False,
    "<|audio_start|>": True,
    "<|audio_end|>": True,
    "<tts_pad>": True,
    "<tts_text_bos>": True,
    "<tts_text_eod>": True,
    "<tts_text_bos_single>": True,
    "<|audio_pad|>": True,
}

# A short version of the template of a ChatML model with audio, tools and thinking.
CHAT_TEMPLATE = r"""
{%- macro say(content) %}
    {%- if content is string %}{{ content }}{% else %}
        {%- for part in content %}
            {%- if 'audio' in part %}{{ '<|audio_start|><|audio_pad|><|audio_end|>' }}
            {%- elif 'image' in part %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif 'video' in part %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- else %}{{ part.text }}{% endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- if tools %}
    {{- '<|im_start|>system\nTools:' }}
    {%- for tool in tools %}{{ '\n' ~ (tool | tojson) }}{% endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' ~ ('user' if message.role == 'tool' else message.role) ~ '\n' }}
    {%- if message.role == 'tool' %}{{ '<tool_response>\n' ~ say(message.content) ~ '\n</tool_response>' }}
    {%- else %}
        {%- if message.reasoning_content %}{{ '<think>\n' ~ message.reasoning_content ~ '\n</think>\n\n' }}{% endif %}
        {{- say(message.content) }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {%- set written = call.arguments if call.arguments is string else call.arguments | tojson %}
            {{- '\n<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' ~ written ~ '}\n</tool_call>' }}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}
"""


def byte_letters() -> list[str]:
    """The character that spells each byte in vocab.json: itself where Latin-1 prints it, else one from U+0100 on."""
    spare = iter(range(0x100, 0x200))
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    return [chr(byte if byte in shown else next(spare)) for byte in range(256)]


def tokenizer_config(first_id: int, *, leave_out: tuple[str, ...] = ()) -> dict[str, object]:
    """tokenizer_config.json with the added tokens from `first_id` on, but for those left out."""
    added = [(text, special) for text, special in ADDED_TOKENS.items() if text not in leave_out]
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(first_id + i): {"content": text, "special": special, **flags} for i, (text, special) in enumerate(added)
        },
        "additional_special_tokens": [text for text, special in added if special],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def write_tokenizer(
    folder: Path, vocab: dict[str, int], merges: list[str], *, template: str, leave_out: tuple[str, ...] = ()
) -> Path:
    """Writes the four files of a published tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "vocab.json": json.dumps(vocab, ensure_ascii=False),
        "merges.txt": "".join(f"{merge}\n" for merge in merges),
        "tokenizer_config.json": json.dumps(tokenizer_config(len(vocab), leave_out=leave_out)),
        "chat_template.json": json.dumps({"chat_template": template}),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def write_tiny_tokenizer(folder: Path, *, leave_out: tuple[str, ...] = ()) -> Path:
    """256 bytes and a few merges: the roles are one token each, and one token ends within a character."""
    letters = byte_letters()
    vocab = {letter: token for token, letter in enumerate(letters)}
    merges = []
    for word in (b"user", b"assistant", b"system", b"ab", " 你".encode()[:3]):
        spelled = "".join(letters[byte] for byte in word)
        for end in range(1, len(spelled)):
            merges.append(f"{spelled[:end]} {spelled[end]}")
            vocab.setdefault(spelled[: end + 1], len(vocab))
    return write_tokenizer(folder, vocab, merges, template=CHAT_TEMPLATE, leave_out=leave_out)
