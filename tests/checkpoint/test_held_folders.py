"""Folders as users have them: a processor of Transformers 5, a thinker alone, a model without its talker."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from omni_jax import Omni, checkpoint
from omni_jax.checkpoint.describe import describe, missing
from omni_jax.testing import tiny_qwen2_5_config, write_tiny

ASKED = [{"role": "user", "content": "Hello"}]
SEEN = [{"role": "user", "content": [{"type": "image", "image": np.zeros((64, 64, 3), np.uint8)}]}]
HEARD = [{"role": "user", "content": [{"type": "audio", "audio": np.zeros(16_000, np.float32)}]}]


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the tiny folder; tests may change its small files."""
    return shutil.copytree(tiny, tmp_path / "copy")


def nested(folder):
    """Its preprocessor as Transformers 5 writes it."""
    flat = json.loads((folder / "preprocessor_config.json").read_text())
    image = {
        name: flat[name] for name in ("image_mean", "image_std", "patch_size", "merge_size", "temporal_patch_size")
    }
    image["size"] = {"shortest_edge": flat["min_pixels"], "longest_edge": flat["max_pixels"]}
    sound = {name: flat[name] for name in ("sampling_rate", "n_fft", "hop_length", "feature_size", "dither")}
    return {"feature_extractor": sound, "image_processor": image, "video_processor": dict(image)}


def numbers(reader):
    return reader.sound, reader.patches, reader.frames


def test_a_processor_config_of_transformers_5_is_read(copy, writer):
    (copy / "processor_config.json").write_text(json.dumps(nested(copy)))
    (copy / "preprocessor_config.json").unlink()
    omni = Omni(writer.parts, writer.config, copy)
    assert numbers(omni.reader) == numbers(writer.reader)
    for conversation in (ASKED, SEEN, HEARD):
        np.testing.assert_array_equal(omni.prepare(conversation).tokens, writer.prepare(conversation).tokens)


@pytest.mark.parametrize("part", ["image_processor", "video_processor"])
def test_a_nested_part_of_processor_config_wins_over_the_older_file(copy, writer, part):
    """As in Transformers: parts in processor_config.json are read from there, other parts from the older file."""
    bright = {**nested(copy)[part], "image_mean": [0.25, 0.25, 0.25]}
    (copy / "processor_config.json").write_text(json.dumps({"processor_class": "x", part: bright}))
    reader = Omni(writer.parts, writer.config, copy).reader
    means = [config.mean[0] for config in (reader.patches, reader.frames)]
    assert means == ([0.25, 0.5] if part == "image_processor" else [0.5, 0.25])
    assert reader.sound == writer.reader.sound


def test_videos_have_a_file_of_their_own(copy, writer):
    bright = {**nested(copy)["video_processor"], "image_mean": [0.25, 0.25, 0.25]}
    (copy / "video_preprocessor_config.json").write_text(json.dumps(bright))
    reader = Omni(writer.parts, writer.config, copy).reader
    assert (reader.patches.mean[0], reader.frames.mean[0]) == (0.5, 0.25)


def test_absent_media_need_no_preprocessor_file(copy, writer):
    (copy / "processor_config.json").write_text(json.dumps({"feature_extractor": nested(copy)["feature_extractor"]}))
    (copy / "preprocessor_config.json").unlink()
    omni = Omni(writer.parts, writer.config, copy)
    assert len(omni.prepare(HEARD).mel) == 1
    with pytest.raises(
        ValueError, match=r"^[^\n]*pictures cannot be read without preprocessor_config.json or processor_config"
    ):
        omni.prepare(SEEN)
    (copy / "processor_config.json").unlink()
    omni = Omni(writer.parts, writer.config, copy)
    omni.prepare(ASKED)
    with pytest.raises(ValueError, match="sound cannot be read without"):
        omni.prepare(HEARD)


def test_a_faulty_processor_part_is_named(copy, writer):
    (copy / "processor_config.json").write_text(json.dumps({"image_processor": {"patch_size": 10**400}}))
    with pytest.raises(ValueError, match=r"processor_config.json: image_processor: patch_size is") as caught:
        Omni(writer.parts, writer.config, copy).prepare(SEEN)
    assert len(str(caught.value)) < 1000


def tensors(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def rewrite(folder, held):
    for path in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        path.unlink()
    save_file(held, folder / "model.safetensors")


def test_a_model_saved_after_disable_talker_loads_without_speech(copy, writer, tmp_path):
    """The folder has no tensors of speech; config.json is unchanged."""
    rewrite(copy, {name: tensor for name, tensor in tensors(copy).items() if name.startswith("thinker.")})
    omni = Omni.load(copy)
    assert omni.config.talker is None
    assert "talker" not in omni.parts
    assert omni.speakers == ()
    wanted = writer.generate(ASKED, thinker_max_new_tokens=4)
    assert omni.generate(ASKED, thinker_max_new_tokens=4).tokens == wanted.tokens
    with pytest.raises(ValueError, match=r"^[^\n]*speech=True, but this checkpoint was saved without its talker"):
        Omni.load(copy, speech=True)
    found = describe(copy)
    assert found["speakers"] == []
    assert "talker" not in [part["name"] for part in found["parts"]]
    converted = checkpoint.convert(copy, tmp_path / "converted")
    assert json.loads((converted / "config.json").read_text())["enable_audio_output"] is False
    assert Omni.load(converted).config == omni.config
    back = checkpoint.export(converted, tmp_path / "back")
    assert tensors(back).keys() == tensors(copy).keys()


def test_a_qwen2_5_thinker_saved_alone_loads(tmp_path):
    folder = write_tiny(tmp_path / "thinker", config=tiny_qwen2_5_config())
    whole = Omni.load(folder, speech=False)
    wanted = whole.generate(ASKED, thinker_max_new_tokens=4)
    config = json.loads((folder / "config.json").read_text())["thinker_config"]
    config |= {"architectures": ["Qwen2_5OmniThinkerForConditionalGeneration"], "model_type": "qwen2_5_omni_thinker"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "spk_dict.pt").unlink()
    held = {name: tensor for name, tensor in tensors(folder).items() if name.startswith("thinker.")}
    rewrite(folder, {name.removeprefix("thinker."): tensor for name, tensor in held.items()})
    omni = Omni.load(folder)
    assert omni.config.talker is None
    assert "talker" not in omni.parts
    assert omni.generate(ASKED, thinker_max_new_tokens=4).tokens == wanted.tokens
    converted = checkpoint.convert(folder, tmp_path / "converted")
    assert Omni.load(converted).config == omni.config


def test_files_that_a_folder_lacks_are_reported(copy, capsys):
    assert missing(copy) == []
    for name in ("preprocessor_config.json", "generation_config.json", "chat_template.json"):
        (copy / name).unlink()
    said = describe(copy)["missing"]
    assert [line.split()[0] for line in said] == ["chat", "processor", "generation_config.json:"]
    (copy / "vocab.json").unlink()
    assert missing(copy)[0].startswith("tokenizer (tokenizer_config.json")
