"""The tiny checkpoint, converted."""

import shutil
from pathlib import Path

import pytest

from omni_jax import checkpoint


@pytest.fixture(scope="session")
def converted(tiny, tmp_path_factory):
    return checkpoint.convert(tiny, tmp_path_factory.mktemp("converted") / "new" / "folder")


@pytest.fixture
def copy(converted, tmp_path):
    return Path(shutil.copytree(converted, tmp_path / "copy"))
