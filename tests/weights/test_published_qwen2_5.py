"""Qwen2.5-Omni in the published layout: two dtypes in one folder, voices beside the weights, ignored tensors."""

import json
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from omni_jax import weights
from omni_jax.config import from_hf, read_json
from omni_jax.models import parts
from omni_jax.testing import tiny_qwen2_5_config, write_tiny
from omni_jax.testing.qwen2_5_omni import three_b, tiny_speakers
from omni_jax.weights.safetensors_reader import Safetensors
from omni_jax.weights.speakers import FILE, read_speakers, write_speakers
from tests.support.trees import same

CONFIG = from_hf(tiny_qwen2_5_config())
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def everything(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def equal(left, right):
    """Tensors by name: the same names, dtypes and bytes."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert (tensor.dtype, tensor.shape) == (right[name].dtype, right[name].shape), name
        assert tensor.tobytes() == right[name].tobytes(), name


@pytest.fixture(scope="module")
def qwen2_5(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("qwen2_5"), config=tiny_qwen2_5_config())


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """As published: five files, bfloat16 for thinker and talker, float32 for token2wav."""
    folder = tmp_path_factory.mktemp("published")
    return write_tiny(folder, config=tiny_qwen2_5_config(), dtype="bfloat16", shards=6)


@pytest.fixture(scope="module")
def tensors(qwen2_5):
    return everything(qwen2_5)


@pytest.fixture(scope="module")
def loaded(qwen2_5):
    return weights.load(qwen2_5, CONFIG, dtype="float32")


@pytest.fixture
def folder_of(qwen2_5, tmp_path):
    """Makes a folder like the tiny one out of other tensors, in one file."""

    def make(tensors, name="changed"):
        folder = tmp_path / name
        shutil.copytree(qwen2_5, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


def faults(folder, *lines, **options):
    with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
        weights.load(folder, options.pop("config", CONFIG), dtype="float32", **options)
    text = str(caught.value)
    for line in lines:
        assert line in text
    assert "\n" not in text


def test_leaves_have_the_values_of_their_tensors(loaded, tensors):
    """A few leaves, assembled by hand."""
    found = parts.leaves(loaded)
    bias = tensors["thinker.model.layers.2.self_attn.k_proj.bias"]
    np.testing.assert_array_equal(found["thinker.decoder.layers.attention.k.bias"][2], bias.reshape(2, 16))
    conv = tensors["thinker.audio_tower.conv2.weight"]
    np.testing.assert_array_equal(found["audio_encoder.conv2.kernel"], conv.transpose(2, 1, 0))
    v = tensors["thinker.visual.blocks.3.attn.v.weight"]
    np.testing.assert_array_equal(found["vision_encoder.layers.qkv.kernel"][3, :, 2], v.T.reshape(32, 2, 16))
    up = tensors["thinker.visual.blocks.0.mlp.up_proj.bias"]
    np.testing.assert_array_equal(found["vision_encoder.layers.ffn.gate_up.bias"][0, 1], up)
    projection = tensors["talker.thinker_to_talker_proj.weight"]
    np.testing.assert_array_equal(found["talker.projection.kernel"], projection.T)
    dit = "token2wav.code2wav_dit_model"
    modulation = tensors[f"{dit}.transformer_blocks.1.attn_norm.linear.weight"]
    np.testing.assert_array_equal(found["dit.layers.modulation.kernel"][1, :, 4], modulation[4 * 32 : 5 * 32].T)
    before = tensors[f"{dit}.input_embed.spk_encoder.blocks.3.tdnn1.conv.weight"]
    np.testing.assert_array_equal(found["dit.speaker_encoder.blocks.2.before.kernel"], before[..., 0].T)
    upsample = tensors["token2wav.code2wav_bigvgan_model.ups.1.0.weight"]
    np.testing.assert_array_equal(found["bigvgan.upsamples.1.kernel"], upsample.transpose(2, 0, 1))
    dilated = tensors["token2wav.code2wav_bigvgan_model.resblocks.5.convs1.2.weight"]
    np.testing.assert_array_equal(found["bigvgan.residuals.5.dilated.kernel"][2], dilated.transpose(2, 1, 0))


def test_the_audio_encoders_bos_eos_table_is_kept(loaded, tensors, folder_of):
    """audio_bos_eos_token affects no feature, but is published and counted."""
    name = "thinker.audio_tower.audio_bos_eos_token.weight"
    np.testing.assert_array_equal(parts.leaves(loaded)["audio_encoder.bos_eos.table"], tensors[name])
    faults(folder_of({other: tensor for other, tensor in tensors.items() if other != name}), f"{name}: missing")


# --- two dtypes


def test_token2wav_is_float32_in_a_bfloat16_model(qwen2_5, loaded):
    made = parts.leaves(weights.load(qwen2_5, CONFIG, dtype="bfloat16"))
    for path, leaf in parts.leaves(loaded).items():
        kind = np.dtype(np.float32) if path.startswith(("dit.", "bigvgan.")) else BFLOAT16
        assert made[path].dtype == kind, path
        np.testing.assert_array_equal(made[path], np.asarray(leaf).astype(kind))


def test_the_stored_dtype_ignores_token2wav(qwen2_5, published, tensors, folder_of):
    def stored(folder, **options):
        return weights.published(folder, CONFIG, **options)[0].dtype

    assert stored(qwen2_5) == np.float32
    assert stored(published) == BFLOAT16
    brain = {name: tensor.astype(BFLOAT16) for name, tensor in tensors.items()}
    assert stored(folder_of(brain, "sound too")) == BFLOAT16
    one = {"talker.model.norm.weight": tensors["talker.model.norm.weight"]}
    assert stored(folder_of(brain | one, "one")) == np.float32
    assert stored(folder_of(brain | one, "one again"), speech=False) == BFLOAT16


def test_the_folder_of_two_dtypes_has_five_files(published):
    assert len(list(published.glob("*.safetensors"))) == 5
    for name, tensor in everything(published).items():
        assert tensor.dtype == (np.float32 if name.startswith("token2wav.") else BFLOAT16), name


def test_progress_counts_bytes_of_both_dtypes(published, tmp_path):
    calls = []
    made = weights.load(published, CONFIG, dtype="bfloat16", progress=lambda *call: calls.append(call))
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(made))
    assert total == sum(tensor.nbytes for tensor in everything(published).values())
    weights.save(made, tmp_path, tiny_qwen2_5_config(), progress=lambda *call: calls.append(call))
    assert {call[1] for call in calls} == {total}
    done = [call[0] for call in calls]
    assert done[-1] == total
    assert done[: len(done) // 2] == done[len(done) // 2 :] == sorted(set(done))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_save_is_the_inverse_of_load(qwen2_5, published, tmp_path, dtype):
    source = qwen2_5 if dtype == "float32" else published
    made = weights.load(source, CONFIG, dtype=dtype)
    folder = weights.save(
        made, tmp_path / "saved", read_json(source / "config.json"), files_from=source, shard_bytes=10**6
    )
    equal(everything(folder), everything(source))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    held = everything(folder)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in held.values())
    assert set(index["weight_map"]) == set(held)
    # Shards are as large as possible, whatever the dtypes: the next file's first tensor would not have fitted.
    sizes = [sum(tensor.nbytes for tensor in load_file(path).values()) for path in sorted(folder.glob("*.safetensors"))]
    largest = max(tensor.nbytes for tensor in held.values())
    assert all(10**6 - largest < size <= 10**6 for size in sizes[:-1])
    small = {path.name for path in source.iterdir() if "safetensors" not in path.name}
    for name in small:
        assert (folder / name).read_bytes() == (source / name).read_bytes(), name


def test_missing_disk_space_counts_bytes_of_both_dtypes(published, tmp_path, monkeypatch):
    made = weights.load(published, CONFIG, dtype="bfloat16")
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(made))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=total - 1))
    with pytest.raises(OSError, match=f"{total / 1e6:.2f} MB are needed"):
        weights.save(made, tmp_path / "saved", tiny_qwen2_5_config())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=total))
    weights.save(made, tmp_path / "saved", tiny_qwen2_5_config())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_config_json_states_the_written_dtype(loaded, tmp_path, dtype):
    """The dtype is written in each object that names one, in either spelling; that of token2wav is kept."""
    config = tiny_qwen2_5_config() | {"torch_dtype": "bfloat16"}
    config["thinker_config"]["torch_dtype"] = config["talker_config"]["dtype"] = "bfloat16"
    config["thinker_config"]["text_config"]["torch_dtype"] = "bfloat16"
    config["token2wav_config"]["dtype"] = "bfloat16"
    config["token2wav_config"]["dit_config"]["torch_dtype"] = "float32"
    written = read_json(weights.save(loaded, tmp_path, config, dtype=dtype) / "config.json")
    found = {}

    def visit(values, path=""):
        for name, value in values.items():
            if "dtype" in name:
                found[f"{path}{name}"] = value
            if isinstance(value, dict):
                visit(value, f"{path}{name}.")

    visit(written)
    assert found == {
        "dtype": dtype,
        "thinker_config.dtype": dtype,
        "thinker_config.text_config.dtype": dtype,
        "talker_config.dtype": dtype,
        "token2wav_config.dtype": "float32",
        "token2wav_config.dit_config.dtype": "float32",
    }
    assert from_hf(written) == CONFIG


# --- names


def test_computed_buffers_are_ignored_wherever_they_are(tensors, folder_of, loaded):
    names = (
        "token2wav.code2wav_dit_model.rotary_embed",
        "thinker.model.rotary_emb",
        "thinker.visual.rotary_pos_emb",
        "talker.model.rotary_emb",
        "talker.surprise",
    )
    extra = {f"{name}.inv_freq": np.zeros(32, np.float32) for name in names}
    extra["thinker.audio_tower.positional_embedding.positional_embedding"] = np.zeros((100, 32), np.float32)
    same(weights.load(folder_of(tensors | extra), CONFIG, dtype="float32"), loaded)


@pytest.mark.parametrize(
    "name",
    [
        "token2wav.code2wav_dit_model.rotary_embed.freqs",
        "token2wav.code2wav_bigvgan_model.ups.6.0.weight",
        "thinker.audio_tower.layers.0.self_attn.k_proj.bias",  # the family has no bias here
        "thinker.model.layers.0.self_attn.o_proj.bias",
        "code2wav.decoder.0.conv.weight",
    ],
)
def test_unknown_tensors_are_refused(tensors, folder_of, name):
    extra = {name: np.zeros(32, np.float32)}
    faults(folder_of(tensors | extra), "0 missing, 1 unknown, 0 wrong", f"{name}: unknown tensor")


def test_a_missing_bias_is_refused(tensors, folder_of):
    name = "talker.model.layers.1.self_attn.v_proj.bias"
    faults(folder_of({other: tensor for other, tensor in tensors.items() if other != name}), f"{name}: missing")


def test_in_memory_names_of_transformers_are_read(tensors, folder_of, loaded):
    moved = {}
    for name, tensor in tensors.items():
        name = name.replace("thinker.model.", "thinker.model.language_model.")
        moved[re.sub(r"^thinker\.(audio_tower|visual)\.", r"thinker.model.\1.", name)] = tensor
    assert moved.keys() != tensors.keys()
    same(weights.load(folder_of(moved), CONFIG, dtype="float32"), loaded)


def test_the_3bs_talker_heads_are_read(tmp_path):
    """As in the 3B, the talker's heads fill its width. The 7B's heads are refused in their place."""
    config = three_b(tiny_qwen2_5_config())
    folder = write_tiny(tmp_path / "small", config=config, dtype="bfloat16")
    made = weights.load(folder, from_hf(folder), dtype="bfloat16")
    assert parts.leaves(made)["talker.decoder.layers.attention.q.kernel"].shape == (2, 40, 10, 4)
    again = weights.save(made, tmp_path / "again", config)
    equal(everything(again), everything(folder))
    faults(folder, "talker.model.layers.[0..1].self_attn.q_proj.bias: expected shape [64], got [40] (2 times)")


# --- without speech


def test_without_speech_its_tensors_and_voices_may_be_absent(published, tmp_path, monkeypatch):
    folder = tmp_path / "thinking"
    shutil.copytree(published, folder)
    (folder / FILE).unlink()
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    speaking = set(index.values()) - {file for name, file in index.items() if name.startswith("thinker.")}
    assert speaking
    for file in speaking:
        (folder / file).unlink()
    names = []
    read = Safetensors.read
    monkeypatch.setattr(
        Safetensors, "read", lambda self, name, spans=None: names.append(name) or read(self, name, spans)
    )
    made = weights.load(folder, CONFIG, dtype="bfloat16", speech=False)
    assert set(made) == {"thinker", "audio_encoder", "vision_encoder"}
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {BFLOAT16}
    assert names
    assert all(name.startswith("thinker.") for name in names)
    saved = weights.save(made, tmp_path / "saved", read_json(folder / "config.json"), files_from=published)
    assert from_hf(saved).talker is None
    assert not (saved / FILE).exists()
    same(weights.load(saved, from_hf(saved), dtype="bfloat16"), made)


# --- voices


def zipped_anew(path):
    """The same voices in a file of other bytes: another folder in the archive, and an unused record."""
    with zipfile.ZipFile(path) as archive:
        records = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {**records, ".data/serialization_id": b"17"}.items():
            archive.writestr(f"other/{name}", content)


def test_voices_are_read_and_written_anew(qwen2_5, loaded, tmp_path):
    folder = tmp_path / "published"
    shutil.copytree(qwen2_5, folder)
    zipped_anew(folder / FILE)
    assert (folder / FILE).read_bytes() != (qwen2_5 / FILE).read_bytes()
    saved = weights.save(loaded, tmp_path / "saved", tiny_qwen2_5_config(), files_from=folder)
    assert (saved / FILE).read_bytes() == (qwen2_5 / FILE).read_bytes()
    assert list(read_speakers(saved, CONFIG)) == ["Chelsie", "Ethan"]


def test_the_same_command_runs_again_after_no_space_for_voices(qwen2_5, loaded, tmp_path, monkeypatch):
    replace_file, saved = Path.replace, tmp_path / "saved"

    def full(path, target):
        if target.name == FILE:
            raise OSError(28, "No space left on device")
        return replace_file(path, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=rf"{FILE}: cannot be written .No space left on device.; make room and run"):
        weights.save(loaded, saved, tiny_qwen2_5_config(), files_from=qwen2_5)
    assert not [path for path in saved.iterdir() if path.suffix in (".safetensors", ".partial")]
    monkeypatch.undo()
    weights.save(loaded, saved, tiny_qwen2_5_config(), files_from=qwen2_5)
    assert list(read_speakers(saved, CONFIG)) == ["Chelsie", "Ethan"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "found no such file; copy it there"),
        (b"cposix\nsystem\n(S'true'\ntR.", "expected speakers, saved by torch.save, and nothing else; refused"),
        ("others", "cond has 7 numbers, expected 24 as in config.json"),
    ],
)
def test_weights_are_not_written_without_the_models_voices(qwen2_5, loaded, tmp_path, content, words):
    folder = tmp_path / "published"
    shutil.copytree(qwen2_5, folder)
    (folder / FILE).unlink()
    if content == "others":
        voices = tiny_speakers()
        write_speakers(folder, voices | {"Ethan": replace(voices["Ethan"], cond=np.zeros((1, 7), np.float32))})
    elif content is not None:
        (folder / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        weights.save(loaded, tmp_path / "saved", tiny_qwen2_5_config(), files_from=folder)
    assert str(folder / FILE) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "saved").exists()


def test_qwen3_omni_has_no_voices_file(tiny):
    assert weights.voices(tiny, from_hf(tiny)) == {}
