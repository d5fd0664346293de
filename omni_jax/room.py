"""Whether a model has room: what it takes of disk and memory, and what there is, asked before its weights are downloaded."""

import gc
import math
import shutil
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omni_jax import weights
from omni_jax.checkpoint.hub import cache, locate, to_download
from omni_jax.models import parts as model_parts
from omni_jax.parallel import param_paths
from omni_jax.weights.published import float_dtype
from omni_jax.weights.safetensors_writer import size

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of a device, or of this host: bytes in all and bytes that are free now."""

    place: str
    total: int
    free: int


def look(model: str | Path, *, dtype: Any = None, speech: bool | None = None) -> str:
    """One line: what a model takes, and what this host has. Of a hub id only the small files are downloaded.

    Args:
        model, dtype, speech: as of ``Omni.load``, on this host's devices.

    Raises:
        ValueError: no checkpoint, said in one line.
    """
    config, kind = weights.config_of(locate(model, weights=False)), weights_dtype(dtype)
    speaks = config.talker is not None and speech is not False
    needed = _bytes(model_parts.abstract(config, kind, speech=speaks), None)
    said = [f"{size(needed)} of weights in {kind.name}"]
    if count := to_download(model):
        said.insert(0, f"{size(count)} to download, {size(shutil.disk_usage(cache()).free)} of disk free")
    devices = jax.local_devices()
    if devices[0].platform != "cpu" and (found := memory(devices[0])):
        many = f"{len(devices)} x " if len(devices) > 1 else ""
        said.append(f"{found.place} has {many}{size(found.free)} of {size(found.total)} free")
    if found := host():
        said.append(f"this host has {size(found.free)} of RAM free")
    return f"{model}: {', '.join(said)}"


def ensure_memory(
    name: str | Path, tree: Any, devices: Sequence[Any], placed: Mapping[str, jax.sharding.Sharding] | None = None
) -> None:
    """Refuses weights that are more than their devices hold; warns of ones that are more than is free now.

    Args:
        name: of the model, for the message.
        tree: abstract parameters.
        devices: of this host, that the parameters go to.
        placed: the sharding of each, by path; None for all of them on one device.

    Raises:
        ValueError: they cannot be loaded, whatever else is freed.
    """
    needed = _bytes(tree, placed)
    if devices[0].platform == "cpu":
        needed, found = needed * len(devices), host()
    else:
        found = min(filter(None, map(memory, devices)), key=lambda one: one.free, default=None)
    if found is None or needed <= found.free:
        return
    said = f"{name}: {size(needed)} of weights, and {found.place} has {size(found.total)} of memory"
    if needed > found.total:
        raise ValueError(
            f"{said}; take a smaller model, more devices (mesh=), dtype='bfloat16', or speech=False to load no talker"
        )
    warnings.warn(f"{said}, {size(found.free)} of it free; another model, or another process, holds it", stacklevel=3)


def forget() -> None:
    """Frees the device memory that deleted models still hold: compiled programs, and the stack frames of a failed call.

    For a second model in one process: ``del omni``, then this, then ``Omni.load``.
    """
    failed = getattr(sys, "last_traceback", None)  # what an interactive session keeps for its debugger
    for frame, _ in traceback.walk_tb(failed):
        with suppress(RuntimeError):  # it still runs
            frame.clear()
        _ = frame.f_locals  # before Python 3.13 a copy, which a debugger's look has left full; this one empties it
    jax.clear_caches()
    gc.collect()


def memory(device: Any) -> Memory | None:
    """A device's own memory; None where it does not tell."""
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    total = stats["bytes_limit"]
    return Memory(place=device.device_kind, total=total, free=total - stats.get("bytes_in_use", 0))


def host() -> Memory | None:
    """This host's RAM with its swap, or what a container may use of it; None where the system does not tell."""
    try:
        found = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in MEMINFO.read_text().splitlines()}
        total, free = found["MemTotal"] + found["SwapTotal"], found["MemAvailable"] + found["SwapFree"]
    except (OSError, LookupError, ValueError):
        return None
    with suppress(OSError, ValueError):  # "max" is no number: nothing but the host's own memory bounds it
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        total, free = min(total, limit), max(0, min(free, limit - used))
    return Memory(place="this host", total=total, free=free)


def _bytes(tree: Any, placed: Mapping[str, jax.sharding.Sharding] | None) -> int:
    """Of the parameters, on the device that has the most of them."""
    found = param_paths.leaves(tree)
    shapes = {path: placed[path].shard_shape(leaf.shape) if placed else leaf.shape for path, leaf in found.items()}
    return sum(math.prod(shapes[path]) * leaf.dtype.itemsize for path, leaf in found.items())


def weights_dtype(dtype: Any) -> np.dtype:
    """Of weights and arithmetic: the one asked for, or the one that this host's devices are fast in.

    Raises:
        ValueError: neither float32 nor bfloat16.
    """
    fast = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return float_dtype(fast if dtype is None else dtype)
