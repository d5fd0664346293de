"""Describing a hub id downloads only its small files; loading one downloads its weights too."""

import fnmatch
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import tensorstore
from huggingface_hub.errors import HFValidationError
from safetensors.numpy import load_file, save_file

from omni_jax import Omni, room
from omni_jax.checkpoint.describe import describe
from omni_jax.checkpoint.hub import locate, to_download
from omni_jax.errors import RetryableError, UserError, is_user_error
from omni_jax.testing import tiny_config, tiny_qwen2_5_config, write_tiny


@pytest.fixture(params=[tiny_config, tiny_qwen2_5_config])
def hub(request, tmp_path, monkeypatch):
    """A hub with one sharded checkpoint that returns the requested files."""
    held, cache = write_tiny(tmp_path / "held", config=request.param(), shards=2), tmp_path / "cache"

    def snapshot_download(name, *, allow_patterns, dry_run=False, tqdm_class=None):
        assert name == "owner/name"
        asked = [path for path in held.iterdir() if any(fnmatch.fnmatch(path.name, one) for one in allow_patterns)]
        if dry_run:
            return [
                SimpleNamespace(file_size=path.stat().st_size, will_download=not (cache / path.name).exists())
                for path in asked
            ]
        cache.mkdir(exist_ok=True)
        for path in asked:
            shutil.copy(path, cache)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache / "hub"))  # not downloaded yet
    return held


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_locate_downloads_the_weights(hub):
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


@pytest.fixture
def free(tmp_path, monkeypatch):
    """Says how many bytes of the disk are free."""
    usage = shutil.disk_usage(tmp_path)
    return lambda count: monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=count))


def test_a_download_that_the_disk_has_no_room_for_is_not_begun(hub, free, tmp_path):
    total = sum(path.stat().st_size for path in hub.iterdir())
    assert to_download("owner/name") == total
    free(total - 1)
    with pytest.raises(OSError, match=rf"{tmp_path}: .* are needed, .* free; make room for owner/name, or set HF_HOME"):
        locate("owner/name")
    assert not (tmp_path / "cache").exists()
    # Files that are here already need no room.
    small = locate("owner/name", weights=False)
    rest = total - sum(path.stat().st_size for path in small.iterdir())
    free(rest - 1)
    with pytest.raises(OSError, match="make room"):
        Omni.load("owner/name")
    free(rest)
    assert names(locate("owner/name")) == names(hub)
    free(0)
    assert Omni.load("owner/name", speech=False).config.family


def test_a_model_that_no_device_holds_is_not_downloaded(hub, tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 9 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n")
    monkeypatch.setattr(room, "MEMINFO", tmp_path / "meminfo")
    with pytest.raises(
        ValueError, match=r"owner/name: .* of weights, and this host has 1.02 MB of memory; take a small"
    ):
        Omni.load("owner/name")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".safetensors"]


def test_look_reports_the_size_of_a_hub_id(hub, free):
    free(30_000_000_000)
    total = sum(path.stat().st_size for path in hub.iterdir())
    small = sum(path.stat().st_size for path in locate("owner/name", weights=False).iterdir())
    said = room.look("owner/name")
    assert said.startswith(f"owner/name: {(total - small) / 1e6:.2f} MB to download, 30.00 GB of disk free, ")
    assert "to download" not in room.look(hub)


def test_an_unreachable_hub_counts_no_bytes_to_download(monkeypatch):
    def fail(*_, **__):
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert to_download("owner/name") == to_download("gs://b/model") == 0


def test_connection_errors_are_retryable(monkeypatch):
    """A hub and a store that do not answer, and ones that answer that there is no such model."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def found(path, error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        monkeypatch.setattr(tensorstore.KvStore, "open", fail)
        with pytest.raises((ValueError, OSError), match=r"no such folder here|cannot be read") as raised:
            locate(path)
        assert type(raised.value) in (UserError, RetryableError)
        return is_user_error(raised.value)

    assert not found("owner/name", ConnectionResetError("reset by peer"))
    assert not found("gs://b/model", ValueError("ABORTED: All 32 retry attempts failed: CURL error Timeout"))
    assert not found("gs://b/model", ConnectionResetError("reset by peer"))
    assert found("owner/name", HFValidationError("no name"))
    assert found("gs://b/model", ValueError("PERMISSION_DENIED: not yours"))


def test_a_single_file_without_a_talker_is_recognised_after_its_download(hub):
    """As a model that was saved after ``disable_talker()``: config.json still has one."""
    tensors = {}
    for path in sorted(hub.glob("*.safetensors")):
        tensors |= {name: value for name, value in load_file(path).items() if name.startswith("thinker.")}
        path.unlink()
    (hub / "model.safetensors.index.json").unlink()
    save_file(tensors, hub / "model.safetensors")
    assert Omni.load("owner/name").config.talker is None


def test_a_wrong_dtype_is_refused_before_the_download(hub):
    with pytest.raises(ValueError, match="dtype: expected float32 or bfloat16, got 'float16'"):
        Omni.load("owner/name", dtype="float16")
    assert not list(hub.parent.glob("cache/*.safetensors"))
