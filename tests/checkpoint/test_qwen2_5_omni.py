"""Qwen2.5-Omni converted: two dtypes in one checkpoint, with voices beside them; the shell prints both."""

import json
import re
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from omni_jax import checkpoint, weights
from omni_jax.checkpoint.describe import describe
from omni_jax.config import from_hf, read_json
from omni_jax.models import parts
from omni_jax.testing import tiny_qwen2_5_config, write_tiny
from omni_jax.testing.qwen2_5_omni import three_b, tiny_speakers
from omni_jax.weights.speakers import FILE, write_speakers
from tests.support.shell_calls import call
from tests.support.trees import same

CONFIG = from_hf(tiny_qwen2_5_config())
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """As published: bfloat16, and float32 for token2wav."""
    return write_tiny(tmp_path_factory.mktemp("published"), config=tiny_qwen2_5_config(), dtype="bfloat16")


@pytest.fixture(scope="module")
def loaded(published):
    return weights.load(published, CONFIG, dtype="bfloat16")


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory):
    return checkpoint.convert(published, tmp_path_factory.mktemp("converted") / "folder")


@pytest.fixture
def copy(published, tmp_path):
    return Path(shutil.copytree(published, tmp_path / "copy"))


def everything(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_loads_what_was_converted(converted, loaded):
    same(checkpoint.load(converted, CONFIG), loaded)


def test_token2wav_stays_float32_in_another_dtype(converted, loaded, published, tmp_path):
    whole = jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float32), loaded)
    same(checkpoint.load(converted, CONFIG, dtype="float32"), whole)
    large = checkpoint.convert(published, tmp_path / "large", dtype="float32")
    same(checkpoint.load(large, CONFIG), whole)
    same(checkpoint.load(large, CONFIG, dtype="bfloat16"), loaded)


@pytest.mark.parametrize("change", [dict, three_b], ids=["as the 7B", "as the 3B"])
def test_convert_and_export_are_bit_exact(tmp_path, change):
    source = write_tiny(tmp_path / "source", config=change(tiny_qwen2_5_config()), dtype="bfloat16", shards=6)
    there = checkpoint.convert(source, tmp_path / "there")
    back = checkpoint.export(there, tmp_path / "back", shard_bytes=280_000)
    assert len(list(source.glob("*.safetensors"))) == len(list(back.glob("*.safetensors"))) == 5
    tensors, again = everything(source), everything(back)
    assert tensors.keys() == again.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == again[name].dtype == (np.float32 if name.startswith("token2wav.") else BFLOAT16), name
        assert tensor.tobytes() == again[name].tobytes(), name
    small = {path.name for path in source.iterdir() if "safetensors" not in path.name}
    assert FILE in small
    for folder, others in ((there, {"omni_jax.json", "weights"}), (back, set())):
        names = {path.name for path in folder.iterdir() if "safetensors" not in path.name}
        assert names == small | others
        for name in small:
            assert (folder / name).read_bytes() == (source / name).read_bytes(), name


def test_the_manifest_records_the_dtype_of_each_exception(converted):
    manifest = json.loads((converted / "omni_jax.json").read_text())
    assert manifest["dtype"] == "bfloat16"
    wanted = parts.leaves(parts.abstract(CONFIG, BFLOAT16))
    for path, leaf in manifest["leaves"].items():
        assert leaf.get("dtype", "bfloat16") == wanted[path].dtype.name


def test_a_manifest_of_an_unknown_dtype_is_damaged(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "copy")
    manifest = json.loads((folder / "omni_jax.json").read_text())
    manifest["leaves"]["dit.out.bias"]["dtype"] = "int8"
    (folder / "omni_jax.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"omni_jax\.json: damaged; convert the checkpoint again"):
        checkpoint.load(folder, CONFIG)


def test_progress_and_disk_space_count_bytes_of_both_dtypes(published, converted, loaded, tmp_path, monkeypatch):
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))
    for action in (
        lambda progress: checkpoint.convert(published, tmp_path / "a", progress=progress),
        lambda progress: checkpoint.load(converted, CONFIG, progress=progress),
        lambda progress: checkpoint.export(converted, tmp_path / "b", progress=progress),
    ):
        calls = []
        action(lambda *call, calls=calls: calls.append(call))
        assert calls[-1][:2] == (total, total)
        assert [call[0] for call in calls] == sorted(call[0] for call in calls)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=total - 1))
    with pytest.raises(OSError, match=f"{total / 1e6:.2f} MB are needed"):
        checkpoint.convert(published, tmp_path / "c")


def test_saved_parts_load_equal(published, loaded, tmp_path):
    folder = checkpoint.save(loaded, tmp_path / "saved", files_from=published)
    same(checkpoint.load(folder, from_hf(folder)), loaded)
    assert (folder / FILE).read_bytes() == (published / FILE).read_bytes()


def test_a_model_cast_to_one_dtype_is_saved_in_its_two(published, loaded, tmp_path):
    brain = jax.tree.map(lambda leaf: leaf.astype(BFLOAT16), loaded)
    folder = checkpoint.save(brain, tmp_path / "saved", files_from=published)
    found = parts.leaves(checkpoint.load(folder, CONFIG))
    assert found["dit.out.kernel"].dtype == np.float32
    np.testing.assert_array_equal(found["dit.out.kernel"], brain.dit.out.kernel[...])


def test_without_speech_its_pieces_and_voices_may_be_absent(published, converted, loaded, tmp_path):
    folder = Path(shutil.copytree(converted, tmp_path / "copy"))
    (folder / FILE).unlink()
    for path in (folder / "weights").iterdir():
        if parts.is_spoken(path.name.split(".")[0]):
            shutil.rmtree(path)
    thinking = {name: part for name, part in loaded.items() if not parts.is_spoken(name)}
    same(checkpoint.load(folder, CONFIG, speech=False), thinking)
    saved = checkpoint.save(thinking, tmp_path / "saved", files_from=published)
    assert from_hf(saved).talker is None
    assert not (saved / FILE).exists()
    same(checkpoint.load(saved, from_hf(saved)), thinking)


def test_a_text_model_needs_no_voices(tmp_path):
    folder = write_tiny(tmp_path / "text", config=tiny_qwen2_5_config(), speech=False)
    (folder / FILE).write_bytes(b"whatever lies here is not read")
    there = checkpoint.convert(folder, tmp_path / "there")
    assert not (there / FILE).exists()
    assert describe(there)["speakers"] == []


# --- voices


@pytest.mark.parametrize("content", [None, b"not voices"])
def test_voices_are_checked_before_anything_is_written(copy, tmp_path, monkeypatch, content):
    if content is None:
        (copy / FILE).unlink()
    else:
        (copy / FILE).write_bytes(content)
    monkeypatch.setattr(checkpoint, "write_group", lambda *_: pytest.fail("a piece was written"))
    with pytest.raises(ValueError, match=re.escape(str(copy / FILE))) as caught:
        checkpoint.convert(copy, tmp_path / "target")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "target").exists()


def test_exporting_without_voices_is_refused(converted, tmp_path):
    folder = Path(shutil.copytree(converted, tmp_path / "copy"))
    (folder / FILE).unlink()
    with pytest.raises(ValueError, match=re.escape(f"{folder / FILE}: expected the speakers of a Qwen2.5-Omni")):
        checkpoint.export(folder, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_changed_voices_make_another_checkpoint(copy, tmp_path):
    target = checkpoint.convert(copy, tmp_path / "target")
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    checkpoint.convert(copy, target)
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before
    write_speakers(copy, tiny_speakers(seed=1))
    with pytest.raises(ValueError, match="already holds a converted checkpoint"):
        checkpoint.convert(copy, target)


# --- descriptions


def test_describe_lists_parts_dtypes_and_speakers(published, converted, tmp_path):
    stored = dict.fromkeys(("thinker", "audio_encoder", "vision_encoder", "talker"), "bfloat16")
    stored |= {"dit": "float32", "bigvgan": "float32"}
    abstract = {kind: parts.leaves(parts.abstract(CONFIG, kind)) for kind in ("bfloat16", "float32")}
    for folder in (published, converted):
        found = describe(folder)
        assert {part["name"]: part["stored"] for part in found["parts"]} == stored
        assert found["speakers"] == ["Chelsie", "Ethan"]
        assert (found["family"], found["converted"]) == ("qwen2_5_omni", folder == converted)
        for kind, leaves in abstract.items():
            assert found["bytes"][kind] == sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())
    (folder := tmp_path / "small").mkdir()
    shutil.copy(published / "config.json", folder)
    with pytest.raises(ValueError, match=re.escape(f"{folder / FILE}: expected the speakers of a Qwen2.5-Omni")):
        describe(folder)
    shutil.copy(published / FILE, folder)
    assert {part["stored"] for part in describe(folder)["parts"]} == {"not here"}


def row(line):
    """The name and the other cells of a line of a table."""
    name, *cells = (cell.strip() for cell in line.split("│")[1:-1])
    return name, cells


def test_inspect_prints_parts_and_sizes(published, monkeypatch, capsys):
    code, out, err = call(monkeypatch, capsys, "inspect", published)
    assert (code, err) == (0, "")
    assert "speakers: Chelsie, Ethan" in out
    rows = dict(row(line) for line in out.splitlines() if "│" in line)
    # Parts that are float32 in any model have the same size in a bfloat16 model.
    assert rows["bigvgan"] == ["32,528", "float32", "0.13 MB", "0.13 MB"]
    assert rows["talker"] == ["49,008", "bfloat16", "0.10 MB", "0.20 MB"]
    assert rows["all"] == ["455,924", "", "1.15 MB", "1.82 MB"]


def test_the_published_size_in_bytes(tmp_path):
    """Bytes of the 7B, computed from its configuration: the size of its files without their headers."""
    facts = read_json(Path(__file__).parents[1] / "configs" / "qwen2_5_omni_7b.json")
    (tmp_path / "config.json").write_text(json.dumps(facts["config"]))
    write_speakers(tmp_path, tiny_speakers(dit=from_hf(facts["config"]).token2wav.dit))
    found = describe(tmp_path)
    assert (found["parameters"], found["bytes"]["bfloat16"]) == (10_732_225_408, 22_362_553_344)
