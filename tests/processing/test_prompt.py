"""The prompt: rendering of a conversation, and its placeholders."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.processing.prompt import encode, expand, load_tokenizer, render
from tests.support.tiny_tokenizer import CHAT_TEMPLATE, write_tiny_tokenizer

AUDIO = "<|audio_start|><|audio_pad|><|audio_end|>"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


# --- rendering


def test_a_prompt_with_audio_is_written_by_the_template(tokenizer):
    text = render(tokenizer, user({"type": "audio", "audio": b"wav"}, {"type": "text", "text": "Describe."}))
    assert text == f"<|im_start|>user\n{AUDIO}Describe.<|im_end|>\n<|im_start|>assistant\n"


def test_every_spelling_of_a_medium_renders_the_same(tokenizer):
    parts = [
        {"audio_url": "a"},
        {"type": "image_url", "image_url": {"url": "i"}},
        {"type": "video_url", "video_url": "v"},
    ]
    assert f"user\n{AUDIO}{IMAGE}{VIDEO}<|im_end|>" in render(tokenizer, user(*parts))


def test_a_key_with_none_renders_no_placeholder(tokenizer):
    assert AUDIO not in render(tokenizer, user({"type": "text", "text": "hi", "audio": None}))


def test_the_template_gets_no_payloads(tokenizer):
    tokenizer = load_tokenizer(tokenizer.name_or_path)
    tokenizer.chat_template = "{{ messages | tojson }}"
    conversation = user({"type": "audio", "audio": "secret" * 1000}, {"type": "text", "text": "hi"})
    seen = json.loads(render(tokenizer, conversation))
    assert seen == user({"type": "audio", "audio": ""}, {"type": "text", "text": "hi"})
    assert conversation[0]["content"][0]["audio"] == "secret" * 1000


def test_tools_and_options_reach_the_template(tokenizer):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    hello = [{"role": "user", "content": "hi"}]
    assert json.dumps(tool) in render(tokenizer, hello, tools=[tool])
    assert "Tools" not in render(tokenizer, hello, tools=[])
    assert render(tokenizer, hello, template={"enable_thinking": False}).endswith("assistant\n<think>\n\n</think>\n\n")
    with pytest.raises(ValueError, match="tools: expected a list"):
        render(tokenizer, hello, tools=["weather"])


def test_tool_calls_and_their_answers_are_rendered(tokenizer):
    calls = [{"name": "weather", "arguments": {"city": "Bern"}}]
    text = render(
        tokenizer,
        [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "reasoning_content": "Ask.", "tool_calls": calls},
            {"role": "tool", "content": "sunny"},
        ],
    )
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call><|im_end|>' in text
    assert "<think>\nAsk.\n</think>" in text
    assert text.endswith("<tool_response>\nsunny\n</tool_response><|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("content", ["", "Sure, ", "ends with a line\n", [{"type": "text", "text": "parts"}]])
def test_a_last_assistant_message_is_not_closed(tokenizer, content):
    conversation = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}]
    said = content if isinstance(content, str) else content[0]["text"]
    turn = f"<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{said}"
    assert render(tokenizer, conversation) == turn
    assert render(tokenizer, conversation, template={"add_generation_prompt": False}) == turn + "<|im_end|>\n"
    assert (
        render(tokenizer, conversation, template={"add_generation_prompt": True})
        == turn + "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.apply_chat_template(conversation, tokenize=False, continue_final_message=True) == turn


def test_a_template_that_raises_or_writes_no_end_is_refused(tokenizer):
    tokenizer = load_tokenizer(tokenizer.name_or_path)
    hello = [{"role": "user", "content": "hi"}]
    tokenizer.chat_template = "{{ raise_exception('no users here') }}"
    with pytest.raises(ValueError, match=r"chat template refuses.*no users here"):
        render(tokenizer, hello)
    for template in ("{{ messages[0].content }}", "{{ messages[0].content }}<|im_end|>tail"):
        tokenizer.chat_template = template
        with pytest.raises(ValueError, match=r"does not close its last turn with <\|im_end\|>"):
            render(tokenizer, [{"role": "assistant", "content": "hi"}])


# --- tokens and placeholders


@pytest.mark.parametrize(
    "name", ["chat_template", "documents", "tokenize", "return_dict", "messages", "conversations", "self"]
)
def test_arguments_of_transformers_are_not_template_variables(tokenizer, name):
    with pytest.raises(ValueError, match=f"{name}: an argument of Transformers' apply_chat_template"):
        render(tokenizer, [{"role": "user", "content": "hi"}], template={name: "{% for a in range(9) %}{% endfor %}"})


@pytest.mark.parametrize("template", [[1], "x", 3, {1: 2}, b"x", np.zeros(3)])
def test_template_variables_of_the_wrong_type_raise_one_line(tokenizer, template):
    with pytest.raises(ValueError, match="template: expected variables of the chat template by name"):
        render(tokenizer, [{"role": "user", "content": "hi"}], template=template)


def test_template_variables_may_have_any_other_name(tokenizer):
    hello = [{"role": "user", "content": "hi"}]
    assert render(tokenizer, hello, template={"tokenizer": 1, "reader": 2}) == render(tokenizer, hello)


@pytest.mark.parametrize("text", ["{{ 1 + 'a' }}", "{{ messages[0].x.y }}", "{% if %}", "{{ '%d' % 'a' }}"])
def test_a_failing_template_raises_one_line(tokenizer, text):
    tokenizer = load_tokenizer(tokenizer.name_or_path)
    tokenizer.chat_template = text
    with pytest.raises(ValueError, match=r"the chat template (fails|refuses)") as error:
        render(tokenizer, [{"role": "user", "content": "hi"}])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("name", "value"), [("tool_calls", [{"name": "f", "arguments": {}}]), ("reasoning_content", "First the roof.")]
)
def test_content_that_a_template_would_drop_silently_is_refused(tokenizer, name, value):
    tokenizer = load_tokenizer(tokenizer.name_or_path)
    conversation = [{"role": "user", "content": "warm"}, {"role": "assistant", "content": "", name: value}]
    render(tokenizer, conversation)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    with pytest.raises(ValueError, match=f"message 1: {name}: this checkpoint's chat template ignores them"):
        render(tokenizer, conversation)
    assert render(tokenizer, [conversation[0], {**conversation[1], name: None}]) == "user: warm<|im_end|>assistant: "


def test_a_lone_surrogate_in_a_tool_call_raises_one_line(tokenizer):
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": "\ud800"}}]}
    with pytest.raises(ValueError, match="lone surrogates"):
        encode(tokenizer, render(tokenizer, [{"role": "user", "content": "hi"}, call]))


def test_a_prompt_is_encoded_to_tokens(tokenizer):
    special = tokenizer.convert_tokens_to_ids
    tokens = encode(tokenizer, f"<|im_start|>user\n{AUDIO}")
    names = ["<|im_start|>", "user", "Ċ", "<|audio_start|>", "<|audio_pad|>", "<|audio_end|>"]
    assert tokens == special(names)
    assert encode(tokenizer, "") == []


def test_expand_repeats_each_placeholder_by_its_own_count():
    assert expand([7, 1, 8, 1, 9, 2, 1], {1: [3, 0, np.int64(1)], 2: [2]}) == [7, 1, 1, 1, 8, 9, 2, 2, 1]
    assert expand([7, 8], {}) == [7, 8]
    assert expand([7, 2, 8, 2], {1: [], 2: [[3, 1, 2, 1, 4], 2]}) == [7, 3, 1, 2, 1, 4, 8, 2, 2]


def test_expand_reports_the_numbers_of_placeholders_and_media():
    with pytest.raises(ValueError, match="token 1 stands 2 times for 1 media; token 2 stands 0 times for 1 media"):
        expand([1, 5, 1], {1: [4], 2: [4]})


def test_a_placeholder_in_the_text_is_refused(tokenizer):
    text = render(tokenizer, user({"audio": "a.wav"}, {"text": "What is <|audio_pad|>?"}))
    with pytest.raises(ValueError, match="stands 2 times for 1 media"):
        expand(encode(tokenizer, text), {tokenizer.convert_tokens_to_ids("<|audio_pad|>"): [5]})


@settings(deadline=None)
@given(st.lists(st.integers(0, 5)), st.data())
def test_expand_keeps_other_tokens_and_adds_up_sizes(tokens, data):
    sizes = [data.draw(st.integers(0, 9)) for token in tokens if token == 1]
    expanded = expand(tokens, {1: sizes})
    assert [token for token in expanded if token != 1] == [token for token in tokens if token != 1]
    assert expanded.count(1) == sum(sizes)


# --- loading


def test_loading_takes_the_template_from_the_first_file_that_has_one(tmp_path):
    folder = write_tiny_tokenizer(tmp_path)
    assert load_tokenizer(folder).chat_template == CHAT_TEMPLATE
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "from the config"}))
    assert load_tokenizer(str(folder)).chat_template == CHAT_TEMPLATE
    (folder / "chat_template.jinja").write_text("from jinja")
    assert load_tokenizer(folder).chat_template == "from jinja"
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").unlink()
    assert load_tokenizer(folder).chat_template == "from the config"


def test_vocabulary_and_tokenizer_json_read_the_same(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    assert (tmp_path / "tokenizer.json").is_file()
    text = f"<|im_start|>user\n{AUDIO}你好, é é 123  <think>\n"
    assert encode(load_tokenizer(tmp_path), text) == encode(tokenizer, text)


def test_merges_with_a_version_line_read_the_same(tmp_path, tokenizer):
    folder = write_tiny_tokenizer(tmp_path)
    merges = (folder / "merges.txt").read_text(encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    assert encode(load_tokenizer(folder), "user ab system") == encode(tokenizer, "user ab system")


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (["vocab.json"], "missing vocab.json;"),
        (["merges.txt", "tokenizer_config.json"], "missing tokenizer_config.json, merges.txt;"),
        (["chat_template.json"], "missing a chat template"),
    ],
)
def test_missing_files_are_named(tmp_path, gone, said):
    folder = write_tiny_tokenizer(tmp_path)
    for name in gone:
        (folder / name).unlink()
    with pytest.raises(ValueError, match=said):
        load_tokenizer(folder)


def test_a_missing_folder_names_all_files(tmp_path):
    with pytest.raises(ValueError, match=r"missing tokenizer_config.json, vocab.json, merges.txt"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "template",
    [5, True, {}, {"a": "b"}, [1], [{}], [{"name": "default"}], [{"name": 1, "template": "x"}], "[" * 100_000],
)
@pytest.mark.parametrize("name", ["chat_template.json", "tokenizer_config.json"])
def test_a_template_of_the_wrong_type_raises_one_line(tmp_path, name, template):
    folder = write_tiny_tokenizer(tmp_path)
    (folder / "chat_template.json").unlink()
    whole = json.loads((folder / "tokenizer_config.json").read_text()) if name == "tokenizer_config.json" else {}
    deep = isinstance(template, str)
    (folder / name).write_text(template if deep else json.dumps(whole | {"chat_template": template}))
    with pytest.raises(ValueError, match="not a JSON object" if deep else "chat_template: expected a text") as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_named_templates_are_read_by_name(tmp_path):
    folder = write_tiny_tokenizer(tmp_path)
    named = [{"name": "default", "template": "{{ 1 }}"}, {"name": "tool_use", "template": "{{ 2 }}{{ tools }}"}]
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": named}))
    tokenizer = load_tokenizer(folder)
    assert render(tokenizer, [{"role": "user", "content": "hi"}]) == "1"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": named[1:]}))
    with pytest.raises(ValueError, match="the chat template fails") as error:
        render(load_tokenizer(folder), [{"role": "user", "content": "hi"}])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.json"])
def test_a_corrupt_file_raises_one_line(tmp_path, name):
    folder = write_tiny_tokenizer(tmp_path)
    (folder / name).write_text("{ broken")
    with pytest.raises(ValueError, match=r"copy (it|them) anew") as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value)
