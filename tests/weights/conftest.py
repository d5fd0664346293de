"""Folders whose tensors are those of the tiny checkpoint, changed."""

import shutil

import pytest
from safetensors.numpy import load_file, save_file


@pytest.fixture(scope="session")
def tensors(tiny):
    """All tensors of the tiny checkpoint by their published names."""
    return {name: tensor for path in sorted(tiny.glob("*.safetensors")) for name, tensor in load_file(path).items()}


@pytest.fixture
def folder_of(tiny, tmp_path):
    """Makes a folder like the tiny one out of other tensors, in one file."""

    def make(tensors, name="changed"):
        folder = tmp_path / name
        shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make
