"""Describing a hub id costs its small files alone; loading one takes its weights too."""

import fnmatch
import shutil

import huggingface_hub
import pytest
import tensorstore
from huggingface_hub.errors import HFValidationError

from omni_jax.describe import describe
from omni_jax.hub import locate
from omni_jax.mistakes import is_mistake
from omni_jax.testing import tiny_config, tiny_qwen2_5_config, write_tiny


@pytest.fixture(params=[tiny_config, tiny_qwen2_5_config])
def hub(request, tmp_path, monkeypatch):
    """A hub that holds one sharded checkpoint and gives the files asked for."""
    held, cache = write_tiny(tmp_path / "held", config=request.param(), shards=2), tmp_path / "cache"

    def snapshot_download(name, *, allow_patterns):
        assert name == "owner/name"
        cache.mkdir(exist_ok=True)
        for path in held.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, cache)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return held


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_with_weights(hub):
    assert names(locate("owner/name")) == names(hub)


def test_describing_downloads_no_weights(hub):
    found, whole = describe("owner/name"), describe(hub)
    folder = locate("owner/name", weights=False)
    assert names(folder) == {name for name in names(hub) if not name.endswith(".safetensors")}
    assert "model.safetensors.index.json" in names(folder)
    assert found["parameters"] == whole["parameters"]
    assert found["speakers"] == whole["speakers"] != []
    assert {part["stored"] for part in found["parts"]} == {"not here"}
    assert {part["stored"] for part in whole["parts"]} == {"float32"}


def test_what_may_pass_is_no_mistake(monkeypatch):
    """A hub and a store that do not answer, and ones that say that there is no such thing."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def found(path, error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        monkeypatch.setattr(tensorstore.KvStore, "open", fail)
        with pytest.raises(ValueError, match=r"no such folder here|cannot be read") as raised:
            locate(path)
        return is_mistake(raised.value)

    assert not found("owner/name", ConnectionResetError("reset by peer"))
    assert not found("gs://b/model", ValueError("ABORTED: All 32 retry attempts failed: CURL error Timeout"))
    assert not found("gs://b/model", ConnectionResetError("reset by peer"))
    assert found("owner/name", HFValidationError("no name"))
    assert found("gs://b/model", ValueError("PERMISSION_DENIED: not yours"))
