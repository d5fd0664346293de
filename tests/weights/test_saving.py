"""Writing the published layout: the inverse of loading, and nothing left behind by a full disk."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from omni_jax import weights
from omni_jax.config import from_hf, read_json
from omni_jax.errors import RetryableError
from omni_jax.models import parts
from omni_jax.testing import tiny_config
from omni_jax.weights import layerwise, safetensors_writer
from tests.support.trees import same

CONFIG = from_hf(tiny_config())


def everything(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("shard_bytes", [10**9, 500_000])
def test_save_is_the_inverse_of_load(tiny, loaded, tensors, tmp_path, shard_bytes):
    folder = weights.save(
        loaded, tmp_path / "saved", read_json(tiny / "config.json"), files_from=tiny, shard_bytes=shard_bytes
    )
    saved = everything(folder)
    assert saved.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(saved[name], tensor, err_msg=name)
    for name in ("config.json", "vocab.json", "merges.txt", "chat_template.json", "preprocessor_config.json"):
        assert (folder / name).read_text() == (tiny / name).read_text()
    files = sorted(folder.glob("*.safetensors"))
    if shard_bytes == 10**9:
        assert [path.name for path in files] == ["model.safetensors"]
    else:
        assert len(files) > 5
        assert all(path.stat().st_size < 500_000 + 60_000 for path in files)  # and the head
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
        assert set(index["weight_map"]) == set(tensors)
    with safe_open(files[0], "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert not list(folder.glob("*.partial"))


def test_save_casts_and_records_the_dtype(tiny, loaded, tmp_path):
    folder = weights.save(loaded, tmp_path / "saved", read_json(tiny / "config.json"), dtype="bfloat16")
    assert {tensor.dtype for tensor in everything(folder).values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert read_json(folder / "config.json")["dtype"] == "bfloat16"


def test_parts_without_speech_are_saved_as_a_text_model(tiny, loaded, tmp_path):
    thinking = {name: part for name, part in loaded.items() if not parts.is_spoken(name)}
    folder = weights.save(thinking, tmp_path / "saved", read_json(tiny / "config.json"))
    assert all(name.startswith("thinker.") for name in everything(folder))
    config = from_hf(folder)
    assert config.talker is None
    same(weights.load(folder, config, dtype="float32"), thinking)


def test_large_leaves_are_saved_layer_by_layer(tiny, loaded, tensors, tmp_path, monkeypatch):
    monkeypatch.setattr(layerwise, "SMALL_BYTES", 0)
    thinking = {name: part for name, part in loaded.items() if not parts.is_spoken(name)}
    saved = everything(weights.save(thinking, tmp_path / "saved", read_json(tiny / "config.json")))
    assert all(np.array_equal(saved[name], tensors[name]) for name in saved)
    assert "thinker.lm_head.weight" in saved


def test_save_refuses_a_folder_with_weights(tiny, loaded, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny, folder)
    with pytest.raises(ValueError, match="already holds safetensors"):
        weights.save(loaded, folder, read_json(tiny / "config.json"))
    same(weights.load(folder, CONFIG, dtype="float32"), loaded)


def test_save_refuses_parts_of_another_shape(tiny, loaded, tmp_path):
    config = tiny_config()
    config["talker_config"]["text_config"]["num_hidden_layers"] = 2
    with pytest.raises(
        ValueError, match=r"talker\.decoder\.experts\.down: expected shape \[2, .*, got \[3, "
    ) as caught:
        weights.save(loaded, tmp_path / "saved", config)
    assert "not the model that config.json describes" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "saved").exists()


def test_a_full_disk_leaves_nothing_behind(tiny, loaded, tmp_path, monkeypatch):
    written = []
    write_shard = safetensors_writer._write_shard

    def full(path, shard, stream):
        if written:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        written.append(path)
        write_shard(path, shard, stream)

    monkeypatch.setattr(safetensors_writer, "_write_shard", full)
    with pytest.raises(OSError, match=r"cannot be written .No space left on device"):
        weights.save(loaded, tmp_path / "saved", read_json(tiny / "config.json"), shard_bytes=500_000)
    assert list((tmp_path / "saved").iterdir()) == []
    monkeypatch.undo()
    weights.save(loaded, tmp_path / "saved", read_json(tiny / "config.json"))


def without_room_for(monkeypatch, name):
    """Makes renaming to a given file name fail as on a full disk, by rename and by replace."""

    def refusing(give):
        def full(path, target):
            if target.name == name:
                raise OSError(28, "No space left on device")
            return give(path, target)

        return full

    for method in ("rename", "replace"):
        monkeypatch.setattr(Path, method, refusing(getattr(Path, method)))


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    "name", ["vocab.json", "config.json", f"{INDEX}.partial", "model-00002-of-00004.safetensors", INDEX]
)
def test_the_same_command_runs_again_after_a_disk_filled_at_the_end(tiny, loaded, tmp_path, monkeypatch, name):
    folder, how = tmp_path / "saved", {"files_from": tiny, "shard_bytes": 1_000_000}
    without_room_for(monkeypatch, name)
    with pytest.raises(
        OSError, match=r"cannot be written \(No space left on device\); .*run the same command again"
    ) as said:
        weights.save(loaded, folder, read_json(tiny / "config.json"), **how)
    assert said.value.errno == 28
    assert str(folder) in str(said.value)
    assert "\n" not in str(said.value)
    assert len(str(said.value)) < 500
    left = [path.name for path in folder.iterdir()]
    assert not [name for name in left if "safetensors" in name or name.endswith(".partial")]
    monkeypatch.undo()
    weights.save(loaded, folder, read_json(tiny / "config.json"), **how)
    assert len(list(folder.glob("*.safetensors"))) == 4
    same(weights.load(folder, CONFIG, dtype="float32"), loaded)
    assert (folder / "vocab.json").read_bytes() == (tiny / "vocab.json").read_bytes()


def test_unreadable_weights_are_not_called_a_full_disk(tiny, loaded, tmp_path, monkeypatch):
    def late(*_):
        raise RetryableError("gs://bucket/thinker: cannot be read now; try again")
        yield

    monkeypatch.setattr(layerwise, "drain", late)
    with pytest.raises(RetryableError, match=r"^gs://bucket/thinker: cannot be read now; try again$"):
        weights.save(loaded, tmp_path / "saved", read_json(tiny / "config.json"))
    assert list((tmp_path / "saved").iterdir()) == []


def test_missing_disk_space_is_reported_before_writing(tiny, loaded, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match="are needed"):
        weights.save(loaded, tmp_path / "saved", read_json(tiny / "config.json"))
    assert list((tmp_path / "saved").iterdir()) == []


@pytest.mark.parametrize(
    ("needed", "free", "words"),
    [
        (2_540_000, 10_000, "2.54 MB are needed, 0.01 MB are free"),
        (70_500_000_000, 100_000_000, "70.50 GB are needed, 0.10 GB are free"),
    ],
)
def test_disk_space_is_reported_in_a_fitting_unit(tmp_path, monkeypatch, needed, free, words):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    with pytest.raises(OSError, match=words):
        weights.ensure_room(tmp_path, needed)
