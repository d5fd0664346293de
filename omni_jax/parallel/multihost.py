"""One model on the devices of several hosts: every host must make the same calls in the same order.

So no call may depend on something that differs between hosts: not on a clock, nor on local files, nor on an error.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omni_jax.errors import RetryableError, UserError, is_user_error

# Bytes that hosts exchange in a first collective; larger messages need a second one.
HEAD_BYTES = 256
_KINDS = {"user": UserError, "retryable": RetryableError}


def to_host(tree: Any) -> Any:
    """``jax.device_get``, also for arrays on devices of other hosts. All hosts must call it at the same point."""
    leaves, kind = jax.tree.flatten(tree)
    far = [number for number, leaf in enumerate(leaves) if isinstance(leaf, jax.Array) and not _here(leaf)]
    if far:
        # One program gathers all of these arrays on every device.
        near = _gathering(leaves[far[0]].sharding.mesh)([leaves[number] for number in far])
        for number, leaf in zip(far, near, strict=True):
            leaves[number] = leaf
    return jax.device_get(kind.unflatten(leaves))


def devices_of_copy(count: int) -> list[Any]:
    """The devices of this host's copy of the model: its own, or those of several neighbouring hosts.

    Args:
        count: devices of each copy of the model in the job.

    Raises:
        ValueError: a copy needs several hosts but not whole ones, or the hosts do not make up whole copies.
    """
    own, processes = jax.local_devices(), jax.process_count()
    hosts = -(-count // len(own))
    if hosts == 1:
        return own
    if count % len(own) or processes % hosts:
        raise ValueError(
            f"mesh: {count} devices for each copy of the model, of {processes} hosts with {len(own)} each; expected at most "
            f"{len(own)}, or all devices of 2 hosts or more by which {processes} can be divided"
        )
    first = jax.process_index() // hosts * hosts
    found = [device for device in jax.devices() if first <= device.process_index < first + hosts]
    # Sorted so that neighbours on the mesh's last axis, which communicates the most, are devices of one host.
    return sorted(found, key=lambda device: (device.process_index, device.id))


@dataclass(frozen=True)
class HostGroup:
    """The group of hosts that share one copy of a model. Usually it is a single host, which need not communicate.

    Attributes:
        number: index of this group among the job's groups, from 0.
        groups: number of groups in the job.
        first: whether this host is the first of its group, which decides for all.
        mesh: all devices of the group, a row for each host; None for one host.
    """

    number: int = 0
    groups: int = 1
    first: bool = True
    mesh: Mesh | None = None

    @classmethod
    def of(cls, parts: Any) -> "HostGroup":
        """The group of hosts whose devices hold the parts of a model, or any tree of arrays.

        Raises:
            ValueError: they are not neighbours, hold unequal numbers of devices, or do not divide the job's hosts.
        """
        processes, own = jax.process_count(), jax.process_index()
        leaves = jax.tree.leaves(parts)
        devices = (
            sorted(leaves[0].sharding.device_set, key=lambda device: (device.process_index, device.id))
            if leaves
            else []
        )
        held = [device.process_index for device in devices]
        hosts = sorted(set(held))
        if len(hosts) <= 1:
            return cls(own, processes)
        number, count = own // len(hosts), len(hosts)
        if (
            hosts != list(range(number * count, (number + 1) * count))
            or processes % count
            or len({held.count(host) for host in hosts}) > 1
        ):
            raise ValueError(
                f"mesh: expected devices of neighbouring hosts, as many of each, and a number of hosts that divides all "
                f"{processes}, got hosts {hosts}"
            )
        return cls(
            number, processes // count, own == hosts[0], Mesh(np.array(devices).reshape(count, -1), ("host", "device"))
        )

    @property
    def alone(self) -> bool:
        return self.mesh is None

    def gather(self, own: bytes) -> list[bytes]:
        """The bytes that each host of the group passes, in their order. All hosts must call it at the same point."""
        if self.mesh is None:
            return [own]
        heads = self._exchange(len(own).to_bytes(4, "big") + own[: HEAD_BYTES - 4], HEAD_BYTES)
        lengths = [int.from_bytes(head[:4], "big") for head in heads]
        rest = max(lengths) - (HEAD_BYTES - 4)
        tails = self._exchange(own[HEAD_BYTES - 4 :], 1 << (rest - 1).bit_length()) if rest > 0 else [b""] * len(heads)
        return [(head[4:] + tail)[:length] for head, tail, length in zip(heads, tails, lengths, strict=True)]

    def by_first(self, action: Callable[[], Any]) -> Any:
        """Runs an action on the group's first host. All hosts get its result, by way of JSON, or raise its error."""
        if self.mesh is None:
            return action()
        said, error = b"", None
        if self.first:
            try:
                said = json.dumps({"made": action()}).encode()
            except Exception as raised:  # of any kind: otherwise the other hosts would wait forever
                error = raised
                said = json.dumps({"error": to_wire(raised)}).encode()
        found = json.loads(self.gather(said)[0])
        if error is not None:
            raise error
        if "error" in found:
            raise from_wire(*found["error"])
        return found["made"]

    def _exchange(self, own: bytes, size: int) -> list[bytes]:
        assert self.mesh is not None
        rows = np.frombuffer(own.ljust(size, b"\0"), np.uint8)[None]
        where, shape = NamedSharding(self.mesh, PartitionSpec("host")), (self.mesh.shape["host"], size)
        return [row.tobytes() for row in to_host(jax.make_array_from_process_local_data(where, rows, shape))]


def to_wire(error: BaseException) -> tuple[str, str]:
    """An error's kind and message, to be sent to other hosts."""
    kind = "user" if is_user_error(error) else "retryable" if isinstance(error, OSError) else type(error).__name__
    return kind, str(error)


def from_wire(kind: str, words: str, where: str = "") -> Exception:
    """The error that another host sent, of a type that gives the same exit code on all hosts."""
    if kind in _KINDS:
        return _KINDS[kind](f"{where}{words}")
    return RuntimeError(f"{where}{kind}: {words}")


def digest(tree: Any) -> str:
    """A checksum of the arrays, numbers and strings in dataclasses, lists and dicts. Functions are ignored."""
    found = hashlib.blake2b(digest_size=12)

    def visit(node: Any) -> None:
        if is_dataclass(node):
            node = [getattr(node, field.name) for field in fields(node)]
        elif isinstance(node, Mapping):
            node = list(node.items())
        if isinstance(node, np.ndarray):
            found.update(f"{node.dtype}{node.shape}".encode())
            found.update(np.ascontiguousarray(node).tobytes())
        elif isinstance(node, list | tuple):
            found.update(f"{len(node)}:".encode())
            for part in node:
                visit(part)
        elif not callable(node):
            found.update(f"{node!r};".encode())

    visit(tree)
    return found.hexdigest()


def _here(leaf: jax.Array) -> bool:
    return leaf.is_fully_addressable or leaf.is_fully_replicated


@cache
def _gathering(mesh: Mesh) -> Any:
    return jax.jit(lambda leaves: leaves, out_shardings=NamedSharding(mesh, PartitionSpec()))
