"""Converted checkpoints equal their source, and damaged or foreign ones are refused."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from omni_jax import checkpoint, weights
from omni_jax.config import from_hf, read_json
from omni_jax.models import parts
from omni_jax.models.memory_layout import to_platform_layout
from omni_jax.testing import tiny_config, write_tiny
from tests.support.refused_folders import refuses
from tests.support.trees import same

CONFIG = from_hf(tiny_config())


def test_the_manifest_format_has_not_changed(converted):
    """Folders of older versions load, and a second conversion finds them complete."""
    manifest = json.loads((converted / "omni_jax.json").read_text())
    assert (manifest["format"], manifest["dtype"]) == (1, "float32")
    assert {tuple(leaf) for leaf in manifest["leaves"].values()} == {("shape", "stacked")}
    assert "spk_dict.pt" not in manifest["origin"]


def test_loads_what_was_converted(converted, tiny, loaded):
    assert checkpoint.is_converted(converted)
    assert not checkpoint.is_converted(tiny)
    same(checkpoint.load(converted, from_hf(converted), dtype="float32"), loaded)


def test_small_files_are_copied_and_weights_are_not(converted, tiny):
    small = {path.name for path in tiny.iterdir() if "safetensors" not in path.name}
    assert {path.name for path in converted.iterdir()} == small | {"omni_jax.json", "weights"}
    for name in small:
        assert (converted / name).read_bytes() == (tiny / name).read_bytes()


def test_one_orbax_checkpoint_a_part_and_a_layer(converted):
    found = {path.name for path in (converted / "weights").iterdir()}
    assert {"thinker", "thinker.000", "thinker.003", "audio_encoder.001", "code2wav.002", "code_predictor.002"} <= found
    assert "thinker.004" not in found
    assert len(found) == 6 + 4 + 2 + 4 + 3 + 3 + 3


def test_weights_are_cast_while_converting_and_while_loading(tiny, loaded, converted, tmp_path):
    brain = jax.tree.map(lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16), loaded)
    folder = checkpoint.convert(tiny, tmp_path / "brain", dtype="bfloat16")
    same(checkpoint.load(folder, CONFIG), brain)
    same(checkpoint.load(converted, CONFIG, dtype="bfloat16"), brain)


def test_converted_weights_are_sharded_over_eight_devices(converted, loaded):
    mesh = jax.make_mesh((2, 4), ("data", "expert"))
    where = NamedSharding(mesh, PartitionSpec(None, "expert"))
    made = checkpoint.load(converted, CONFIG, dtype="float32", shardings={"talker.decoder.experts.gate_up": where})
    same(made, loaded)
    assert parts.leaves(made)["talker.decoder.experts.gate_up"].sharding.is_equivalent_to(where, 4)


def test_progress_ends_at_all_bytes(tiny, tmp_path, loaded):
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))
    for action in (
        lambda progress: checkpoint.convert(tiny, tmp_path / "a", progress=progress),
        lambda progress: checkpoint.load(tmp_path / "a", CONFIG, progress=progress),
        lambda progress: checkpoint.export(tmp_path / "a", tmp_path / "b", progress=progress),
    ):
        calls = []
        action(lambda *call, calls=calls: calls.append(call))
        assert calls[-1][:2] == (total, total)
        assert [call[0] for call in calls] == sorted(call[0] for call in calls)


def test_without_speech_no_piece_of_it_is_read(copy, loaded):
    for path in (copy / "weights").iterdir():
        if parts.is_spoken(path.name.split(".")[0]):
            shutil.rmtree(path)
    made = checkpoint.load(copy, CONFIG, dtype="float32", speech=False)
    same(made, {name: part for name, part in loaded.items() if not parts.is_spoken(name)})
    refuses(copy, "12 of 25 pieces are gone", "convert the checkpoint again")


def test_converting_again_rewrites_nothing(tiny, copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    checkpoint.convert(tiny, copy)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_another_checkpoint_is_not_overwritten(tiny, copy, tmp_path):
    with pytest.raises(ValueError, match="already holds a converted checkpoint"):
        checkpoint.convert(tiny, copy, dtype="bfloat16")
    with pytest.raises(ValueError, match="already holds a converted checkpoint"):
        checkpoint.convert(write_tiny(tmp_path / "other", seed=1), copy)


def test_unsuitable_sources_and_targets_are_refused(tiny, converted, tmp_path):
    with pytest.raises(ValueError, match="got a converted one"):
        checkpoint.convert(converted, tmp_path / "new")
    with pytest.raises(ValueError, match="holds a checkpoint in safetensors"):
        checkpoint.convert(tiny, shutil.copytree(tiny, tmp_path / "hf"))
    with pytest.raises(ValueError, match="no such folder"):
        checkpoint.convert(tmp_path / "gone", tmp_path / "new")
    with pytest.raises(ValueError, match="gcloud storage cp -r FOLDER gs://b/model"):
        checkpoint.save({}, "gs://b/model", files_from=tiny)
    with pytest.raises(ValueError, match="which it is made from"):
        checkpoint.export(converted, converted / "new")
    (tmp_path / "mine" / "weights").mkdir(parents=True)
    with pytest.raises(ValueError, match="not of a conversion"):
        checkpoint.convert(tiny, tmp_path / "mine")
    assert not (tmp_path / "new").exists()


def test_a_folder_without_a_manifest_is_refused(tiny, tmp_path):
    refuses(tiny, "found no omni_jax.json")
    refuses(tmp_path / "gone", "no such folder")


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": None},
        {"dtype": "int8"},
        {"leaves": None},
        {"leaves": []},
        {"leaves": {"thinker.norm": {"shape": [64]}}},
        {"leaves": {"thinker.norm": {"shape": 64, "stacked": False}}},
        {"bytes": None},
        {"pieces": "elsewhere"},
        {"pieces": "http://127.0.0.1:9/x"},
        {"pieces": "gs://" + "x" * 5000},
    ],
)
def test_incomplete_manifests_are_refused(copy, change):
    manifest = json.loads((copy / "omni_jax.json").read_text()) | change
    kept = {name: value for name, value in manifest.items() if value is not None or name not in change}
    (copy / "omni_jax.json").write_text(json.dumps(kept))
    text = refuses(copy, "omni_jax.json: damaged; convert the checkpoint again")
    assert "\n" not in text


@pytest.mark.parametrize("content", ['{"format": 1, "leaves": {', '{"format": 1}', "[]"])
def test_a_damaged_manifest_is_refused(copy, content):
    (copy / "omni_jax.json").write_text(content)
    refuses(copy, "omni_jax.json: damaged; convert the checkpoint again")


def test_a_manifest_of_another_format_is_refused(copy):
    manifest = json.loads((copy / "omni_jax.json").read_text())
    (copy / "omni_jax.json").write_text(json.dumps(manifest | {"format": 99}))
    refuses(copy, "format 99")


def test_a_config_of_another_model_is_refused(copy):
    config = tiny_config()
    config["thinker_config"]["text_config"]["num_hidden_layers"] = 5
    text = refuses(
        copy, "thinker.decoder.experts.down: expected shape [5, 8, 32, 64], got [4, 8, 32, 64]", config=from_hf(config)
    )
    assert "not the model that config.json describes" in text
    assert "\n" not in text


def test_a_truncated_piece_is_named(copy):
    largest = max((copy / "weights" / "thinker.002").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    text = refuses(copy, "1 of 25 pieces", "truncated", "weights/thinker.002", "convert the checkpoint again")
    assert "\n" not in text


@pytest.mark.parametrize("other", ["talker", "thinker.001"])
def test_pieces_of_another_checkpoint_are_refused(copy, other):
    """The sizes are made equal, so that the content of the piece decides."""
    shutil.rmtree(copy / "weights" / "thinker")
    shutil.copytree(copy / "weights" / other, copy / "weights" / "thinker")
    manifest = json.loads((copy / "omni_jax.json").read_text())
    manifest["bytes"]["thinker"] = manifest["bytes"][other]
    (copy / "omni_jax.json").write_text(json.dumps(manifest))
    text = refuses(copy, "weights/thinker: damaged")
    assert "\n" not in text


def test_export_is_the_inverse_of_convert(converted, tiny, loaded, tmp_path):
    folder = checkpoint.export(converted, tmp_path / "hf", shard_bytes=1_000_000)
    assert len(list(folder.glob("*.safetensors"))) > 3
    same(weights.load(folder, from_hf(folder), dtype="float32"), loaded)
    assert not list(folder.glob("omni_jax*"))
    assert read_json(folder / "config.json") == read_json(tiny / "config.json")


def test_export_of_an_address_has_the_small_files_too(converted, tmp_path):
    folder = checkpoint.export(converted.as_uri(), tmp_path / "hf")
    small = {path.name for path in converted.iterdir()} - {"omni_jax.json", "weights"}
    assert small < {path.name for path in folder.iterdir()}
    assert read_json(folder / "config.json") == read_json(converted / "config.json")


def test_save_of_unstacked_layers_stacks_none(converted, loaded, tmp_path):
    """``Omni.load`` unstacks layers on a CPU; saving makes no second copy of a decoder."""
    apart = to_platform_layout(loaded, "cpu")
    before, most = sum(array.nbytes for array in jax.live_arrays()), []

    def watch(*_):
        most.append(sum(array.nbytes for array in jax.live_arrays()))

    same(
        checkpoint.load(checkpoint.save(apart, tmp_path / "saved", files_from=converted, progress=watch), CONFIG),
        loaded,
    )
    assert max(most) - before < max(leaf.nbytes for leaf in jax.tree.leaves(loaded.thinker.decoder))


def test_saved_parts_load_equal(converted, loaded, tmp_path):
    folder = checkpoint.save(loaded, tmp_path / "saved", files_from=converted)
    same(checkpoint.load(folder, from_hf(folder)), loaded)
    with pytest.raises(ValueError, match="already holds a converted checkpoint"):
        checkpoint.save(loaded, folder, files_from=converted)


def test_save_without_speech_says_so(converted, loaded, tmp_path):
    thinking = {name: part for name, part in loaded.items() if not parts.is_spoken(name)}
    folder = checkpoint.save(thinking, tmp_path / "saved", files_from=converted)
    assert from_hf(folder).talker is None
    same(checkpoint.load(folder, from_hf(folder)), thinking)


def test_save_refuses_parts_of_another_model(tiny, loaded, tmp_path):
    config = tiny_config()
    config["thinker_config"]["text_config"]["vocab_size"] = 600
    other = weights.load(write_tiny(tmp_path / "other", config=config), from_hf(config), dtype="float32")
    with pytest.raises(ValueError, match=r"thinker\.head\.kernel: expected shape \[64, 512\], got \[64, 600\]"):
        checkpoint.save(other, tmp_path / "saved", files_from=tiny)
