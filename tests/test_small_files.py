"""A load reports every damaged file beside the weights, in one line; absent files are no fault."""

import json
import re
import shutil

import pytest

from omni_jax import Omni, checkpoint, small_files, weights
from omni_jax.testing import tiny_qwen2_5_config, write_tiny


def edited(name, **values):
    def edit(folder):
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**found, **values}))

    return edit


def written(name, content):
    return lambda folder: (folder / name).write_text(content)


PROCESSOR, SAMPLING = "preprocessor_config.json", "generation_config.json"
UNREADABLE = "the tokenizer's files cannot be read"
DAMAGE = {
    "a processor that is no JSON": (written(PROCESSOR, '{"n_fft": '), f"{PROCESSOR}: expected a JSON object"),
    "a processor's impossible sound": (edited(PROCESSOR, n_fft=-1), f"{PROCESSOR}: .*n_fft"),
    "a processor's impossible pictures": (edited(PROCESSOR, patch_size="x"), f"{PROCESSOR}: .*patch_size"),
    "a generation config that is no JSON": (written(SAMPLING, "[]"), f"{SAMPLING}: expected a JSON object"),
    "an impossible sampling option": (written(SAMPLING, '{"top_p": 3}'), f"{SAMPLING}: top_p: expected"),
    "a torn tokenizer": (written("vocab.json", '{"a": 0'), UNREADABLE),
    "a tokenizer's config that is no JSON": (written("tokenizer_config.json", "{"), UNREADABLE),
    "a chat template that is no program": (
        written("chat_template.jinja", "line\n{% for x in messages %}"), "the chat template is damaged in line 2"
    ),
}  # fmt: skip


@pytest.fixture
def folder(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "model")


@pytest.fixture
def unread(monkeypatch):
    """Weights may not be read."""

    def read(*_, **__):
        raise AssertionError("weights are read")

    monkeypatch.setattr(weights, "load", read)
    monkeypatch.setattr(checkpoint, "load", read)


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.usefixtures("unread")
def test_a_damaged_file_is_reported_before_the_weights_are_read(folder, case):
    damage, said = DAMAGE[case]
    damage(folder)
    with pytest.raises(ValueError, match=said) as error:
        Omni.load(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.usefixtures("unread")
def test_several_damaged_files_are_reported_in_one_line(folder):
    for name in ("preprocessor_config.json", "generation_config.json"):
        (folder / name).write_text("{")
    with pytest.raises(ValueError, match=r"preprocessor_config.json.*; .*generation_config.json") as error:
        Omni.load(folder)
    assert str(error.value).count("preprocessor_config.json") == 1
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("unread")
def test_a_converted_folder_is_checked_too(tiny, tmp_path):
    folder = checkpoint.convert(tiny, tmp_path / "converted")
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"preprocessor_config.json: expected a JSON object"):
        Omni.load(folder)


@pytest.mark.usefixtures("unread")
def test_damaged_speakers_are_reported_where_speech_is_loaded(tmp_path):
    folder = write_tiny(tmp_path, config=tiny_qwen2_5_config())
    (folder / "spk_dict.pt").write_bytes(b"no voices")
    with pytest.raises(ValueError, match=r"spk_dict.pt: expected speakers"):
        Omni.load(folder)
    with pytest.raises(AssertionError, match="weights are read"):
        Omni.load(folder, speech=False)


def test_absent_files_are_no_fault_and_the_tokenizer_is_read_once(folder, tiny, monkeypatch):
    read, calls = small_files.load_tokenizer, []
    monkeypatch.setattr("omni_jax.small_files.load_tokenizer", lambda place: calls.append(place) or read(place))
    monkeypatch.setattr("omni_jax.omni.load_tokenizer", lambda place: calls.append(place) or read(place))
    assert Omni.load(folder, speech=False).tokenizer.encode("Hi")
    assert len(calls) == 1
    for path in folder.iterdir():
        if path.name != "config.json" and not re.search("safetensors", path.name):
            path.unlink()
    bare = Omni.load(folder, speech=False)
    with pytest.raises(ValueError, match="holds no whole tokenizer"):
        bare.tokenizer.encode("Hi")
