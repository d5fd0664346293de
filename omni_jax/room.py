"""Whether a model fits: the disk and memory it needs and what is free, checked before its weights are downloaded."""

import gc
import math
import shutil
import sys
import traceback
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
from omni_jax.environment import warn
from omni_jax.models import parts as model_parts
from omni_jax.parallel import param_paths
from omni_jax.weights.published import float_dtype
from omni_jax.weights.safetensors_writer import size

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of a device or of this host, in bytes: in all, and free now."""

    place: str
    total: int
    free: int


def look(model: str | Path, *, dtype: Any = None, speech: bool | None = None) -> str:
    """One line: what a model needs, and what this host has. Of a hub id only the small files are downloaded.

    Args:
        model: as in ``Omni.load``, on this host's devices.
        dtype: as in ``Omni.load``.
        speech: as in ``Omni.load``.

    Raises:
        ValueError: there is no checkpoint; in one line.
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
    """Raises for weights that exceed their devices' memory; warns of weights that exceed what is free now.

    Args:
        name: of the model, for the message.
        tree: abstract parameters.
        devices: those of this host that the parameters go to.
        placed: the sharding of each parameter, by path; None for all of them on one device.

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
    warn(f"{said}, {size(found.free)} of it free; another model, or another process, holds it")


def forget() -> None:
    """Frees the device memory that deleted models still hold: compiled programs, and the stack frames of a failed call.

    For a second model in one process: ``del omni``, then ``forget()``, then ``Omni.load``.
    """
    failed = getattr(sys, "last_traceback", None)  # an interactive session keeps it for its debugger
    for frame, _ in traceback.walk_tb(failed):
        with suppress(RuntimeError):  # the frame is still running
            frame.clear()
        _ = frame.f_locals  # before Python 3.13 a copy, which a debugger may have filled; this empties it
    jax.clear_caches()
    gc.collect()


def memory(device: Any) -> Memory | None:
    """A device's memory; None if it does not report it."""
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    total = stats["bytes_limit"]
    return Memory(place=device.device_kind, total=total, free=total - stats.get("bytes_in_use", 0))


def host() -> Memory | None:
    """This host's RAM and swap, or a container's limit; None if the system does not report them."""
    try:
        found = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in MEMINFO.read_text().splitlines()}
        total, free = found["MemTotal"] + found["SwapTotal"], found["MemAvailable"] + found["SwapFree"]
    except (OSError, LookupError, ValueError):
        return None
    with suppress(OSError, ValueError):  # "max" is no number: then only the host's memory is the limit
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        total, free = min(total, limit), max(0, min(free, limit - used))
    return Memory(place="this host", total=total, free=free)


def _bytes(tree: Any, placed: Mapping[str, jax.sharding.Sharding] | None) -> int:
    """Bytes of the parameters on the device that has the most of them."""
    found = param_paths.leaves(tree)
    shapes = {path: placed[path].shard_shape(leaf.shape) if placed else leaf.shape for path, leaf in found.items()}
    return sum(math.prod(shapes[path]) * leaf.dtype.itemsize for path, leaf in found.items())


def weights_dtype(dtype: Any) -> np.dtype:
    """The dtype of weights and arithmetic: the given one, or the one that this host's devices are fast in.

    Raises:
        ValueError: it is neither float32 nor bfloat16.
    """
    fast = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return float_dtype(fast if dtype is None else dtype)
