"""Reading safetensors: lazy reading, and one clear line for every broken folder."""

import json
import re
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from omni_jax.weights.safetensors_reader import INDEX, Safetensors

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.ones(4, ml_dtypes.bfloat16)


@pytest.fixture
def sharded(tmp_path):
    save_file({"a": A}, tmp_path / "one.safetensors")
    save_file({"b": B}, tmp_path / "two.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    return tmp_path


def test_a_single_file_is_read(tmp_path):
    save_file({"a": A, "b": B}, tmp_path / "model.safetensors")
    found = Safetensors(tmp_path)
    assert {name: (stored.shape, stored.dtype) for name, stored in found.tensors.items()} == {
        "a": ((2, 3), "F32"),
        "b": ((4,), "BF16"),
    }
    np.testing.assert_array_equal(found.read("a"), A)
    assert found.read("b").dtype == ml_dtypes.bfloat16


def test_shards_are_read_separately_and_together(sharded):
    found = Safetensors(sharded)
    with found:
        np.testing.assert_array_equal(found.read("a"), A)
        np.testing.assert_array_equal(found.read("b"), B)
    np.testing.assert_array_equal(found.read("a"), A)
    assert [path.name for path in found.files] == ["one.safetensors", "two.safetensors"]


def test_a_shard_without_wanted_tensors_may_be_absent(sharded):
    (sharded / "two.safetensors").unlink()
    assert list(Safetensors(sharded, wanted=lambda name: name == "a").tensors) == ["a"]


def fails(folder, *words):
    with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
        Safetensors(folder)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_a_missing_folder_is_refused(tmp_path):
    fails(tmp_path / "gone", "gone", "nothing there")


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    fails(tmp_path / "file", "expected a model folder", "a file")


def test_a_folder_without_weights_is_refused(tmp_path):
    fails(tmp_path, "found no weights", INDEX)


def test_pickles_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    fails(tmp_path, "pytorch_model.bin", "code that runs on loading", "save_pretrained")


def test_shards_without_an_index_are_refused(sharded):
    (sharded / INDEX).unlink()
    fails(sharded, "found shards but no", INDEX)


def test_an_index_that_names_absent_files_is_refused(sharded):
    (sharded / "two.safetensors").unlink()
    fails(sharded, INDEX, "not there", "two.safetensors")


def test_an_index_that_names_an_absent_tensor_is_refused(sharded):
    shutil.copy(sharded / "one.safetensors", sharded / "two.safetensors")
    fails(sharded, "disagree", "b")


def test_a_tensor_outside_the_index_is_refused(sharded):
    save_file({"b": B, "c": B}, sharded / "two.safetensors")
    fails(sharded, "disagree", "c")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 100_000,
        "[]",
        "{}",
        '{"weight_map": 3}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../one.safetensors"}}',
        json.dumps({"weight_map": {"a": "y" * 100_000}}),
    ],
)
def test_a_broken_index_is_refused(sharded, text):
    (sharded / INDEX).write_text(text)
    fails(sharded, INDEX, "not a safetensors index")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:20],
        lambda data: b"",
        lambda data: data[:8] + b"garbage " + data[16:],
        lambda data: (1 << 40).to_bytes(8, "little") + data[8:],
        lambda data: data + b"more",
    ],
    ids=["truncated", "header cut", "empty", "header corrupt", "header too long", "too long"],
)
def test_a_damaged_file_is_named(sharded, damage):
    path = sharded / "two.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    fails(sharded, "two.safetensors", "truncated or corrupt")


def test_a_file_that_disappears_while_reading_is_reported(sharded):
    found = Safetensors(sharded)
    (sharded / "two.safetensors").unlink()
    with pytest.raises(ValueError, match=r"two\.safetensors: cannot read b"):
        found.read("b")
