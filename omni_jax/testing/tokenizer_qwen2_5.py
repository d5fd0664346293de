"""The added tokens of Qwen2.5-Omni's tokenizer, and a chat template with the published behaviour."""

from omni_jax.testing.tokenizer import Dialect, token_ids

# The added tokens, in the order and spelling of this family's published tokenizer.
_ADDED = """
<|endoftext|> <|im_start|> <|im_end|> <|AUDIO|> <|audio_bos|> <|audio_eos|> <|box_end|> <|quad_start|> <|quad_end|>
<|vision_bos|> <|vision_eos|> <|vision_pad|> <|IMAGE|> <|VIDEO|> <tool_call> </tool_call> <|fim_prefix|> <|fim_middle|>
<|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>
"""
ADDED_TOKENS_QWEN2_5 = _ADDED.split()

# A conversation without a system turn gets one; options number pictures, sounds and videos; tools are ignored.
CHAT_TEMPLATE = """\
{%- set seen = namespace(pictures=0, sounds=0, videos=0) -%}
{%- if messages and messages[0].role != 'system' -%}
  {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {{- '<|im_start|>' + message.role + '\\n' -}}
  {%- if message.content is string -%}
    {{- message.content -}}
  {%- else -%}
    {%- for part in message.content -%}
      {%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
        {%- set seen.pictures = seen.pictures + 1 -%}
        {%- if add_vision_id -%}{{- 'Picture ' ~ seen.pictures ~ ': ' -}}{%- endif -%}
        {{- '<|vision_bos|><|IMAGE|><|vision_eos|>' -}}
      {%- elif part.type == 'audio' or 'audio' in part or 'audio_url' in part -%}
        {%- set seen.sounds = seen.sounds + 1 -%}
        {%- if add_audio_id -%}{{- 'Audio ' ~ seen.sounds ~ ': ' -}}{%- endif -%}
        {{- '<|audio_bos|><|AUDIO|><|audio_eos|>' -}}
      {%- elif part.type == 'video' or 'video' in part -%}
        {%- set seen.videos = seen.videos + 1 -%}
        {%- if add_vision_id -%}{{- 'Video ' ~ seen.videos ~ ': ' -}}{%- endif -%}
        {{- '<|vision_bos|><|VIDEO|><|vision_eos|>' -}}
      {%- elif 'text' in part -%}
        {{- part.text -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

QWEN2_5 = Dialect(
    added=tuple(ADDED_TOKENS_QWEN2_5),
    shown=tuple(ADDED_TOKENS_QWEN2_5[14:]),
    named={
        "image_token": "<|IMAGE|>",
        "audio_token": "<|AUDIO|>",
        "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    },
    context=32768,
    template=CHAT_TEMPLATE,
)


def token_ids_qwen2_5() -> dict[str, int]:
    """Every token's id: bytes and words as in Qwen3-Omni's, and the added tokens numbered on after them."""
    return token_ids(QWEN2_5)
