"""The real Qwen tokenizer with all of its 151,676 tokens, loaded from the published layout."""

import unicodedata

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.processing.prompt import encode, expand, load_tokenizer, render
from omni_jax.processing.transcript import Transcript
from tests.support.real_tokenizer import load_ranks, write_qwen_tokenizer
from tests.support.tiny_tokenizer import CHAT_TEMPLATE

# Qwen's rule for splitting text before merging, for tiktoken, independent of transformers' copy.
WORDS = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

# Published ids of Qwen3-Omni.
IDS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|object_ref_start|>": 151646,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
    "<tool_call>": 151657,
    "</tool_call>": 151658,
    "<tool_response>": 151665,
    "<think>": 151667,
    "</think>": 151668,
    "<|audio_start|>": 151669,
    "<|audio_end|>": 151670,
    "<tts_pad>": 151671,
    "<tts_text_bos>": 151672,
    "<tts_text_eod>": 151673,
    "<|audio_pad|>": 151675,
    "system": 8948,
    "user": 872,
    "assistant": 77091,
    "\n": 198,
}

TEXTS = [
    "The quick brown fox doesn't jump; it'd rather sleep. WE'LL SEE!",
    "你好，世界！今天天气怎么样？我想听一段录音。",  # noqa: RUF001
    "日本語のテキストと한국어 텍스트, русский, العربية, हिन्दी",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 flags 🇨🇭, and thumbs 👍🏽",
    "def f(x):\n    return {k: v**2 for k, v in x.items()}  # squares\n\n\tif x != 3:\r\n\t\tpass\n",
    "3.14159 and 2024-12-31 and 1234567890 ½ ² Ⅷ ٣",
    "   leading,  double,   triple    spaces \t tabs \n\n\n newlines   \n  end   ",
    "cafe\u0301 is not decomposed: \u1e9b\u0323, \ufb01",
    "\u0000\u001f\u200b\ufeff\ufffd\U0010ffff",
]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_qwen_tokenizer(tmp_path_factory.mktemp("qwen"), template=CHAT_TEMPLATE))


@pytest.fixture(scope="session")
def by_ranks():
    """tiktoken with the same ranks, independent of the merges that we recovered from them."""
    return tiktoken.Encoding("qwen", pat_str=WORDS, mergeable_ranks=load_ranks(), special_tokens={})


def test_ids_are_the_published_ones(tokenizer):
    assert len(tokenizer) == 151676
    assert {text: encode(tokenizer, text) for text in IDS} == {text: [token] for text, token in IDS.items()}
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (151645, 151643, None)


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_merged_by_rank(tokenizer, by_ranks, text):
    tokens = encode(tokenizer, text)
    assert tokens == by_ranks.encode_ordinary(unicodedata.normalize("NFC", text))


@settings(deadline=None)
@given(text=st.text(st.characters(max_codepoint=0x2FFF, exclude_categories=("Cs", "Cn"))))
def test_any_text_is_merged_by_rank(tokenizer, by_ranks, text):
    text = text.replace("<", "")
    assert encode(tokenizer, text) == by_ranks.encode_ordinary(unicodedata.normalize("NFC", text))


@pytest.mark.parametrize("text", TEXTS)
def test_text_round_trips_token_by_token(tokenizer, text):
    transcript, tokens = Transcript(tokenizer), encode(tokenizer, text)
    pieces = [transcript.push([token]).text for token in tokens] + [transcript.finish().text]
    assert "".join(pieces) == transcript.text == unicodedata.normalize("NFC", text) == tokenizer.decode(tokens)


def test_a_rendered_conversation_with_audio_has_the_expected_ids(tokenizer):
    conversation = [
        {"role": "system", "content": "You are Qwen."},
        {
            "role": "user",
            "content": [
                {"type": "audio", "audio": "a.wav"},
                {"type": "text", "text": "What is said?"},
                {"type": "audio", "audio": "b.wav"},
            ],
        },
    ]
    tokens = encode(tokenizer, render(tokenizer, conversation))
    expanded = expand(tokens, {IDS["<|audio_pad|>"]: [31, 1]})
    ids = [
        IDS["<|im_start|>"],
        IDS["system"],
        198,
        *encode(tokenizer, "You are Qwen."),
        IDS["<|im_end|>"],
        198,
    ]
    ids += [
        IDS["<|im_start|>"],
        IDS["user"],
        198,
        IDS["<|audio_start|>"],
        *[151675] * 31,
        IDS["<|audio_end|>"],
    ]
    ids += [3838, 374, 1053, 30, IDS["<|audio_start|>"], 151675, IDS["<|audio_end|>"], IDS["<|im_end|>"], 198]
    ids += [IDS["<|im_start|>"], IDS["assistant"], 198]
    assert expanded == ids
