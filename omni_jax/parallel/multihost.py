"""One model on the devices of several hosts: each of them makes the same calls of its devices, in the same order.

So nothing that decides about a call may be one host's alone: neither its clock, nor its files, nor its errors.
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

from omni_jax.errors import UnreachedError, is_mistake

# Bytes that hosts exchange in one go; more take a second one.
BLOCK = 256


def fetch(tree: Any) -> Any:
    """``jax.device_get``, also of arrays that lie on devices of other hosts: all of these call it at the same place."""
    leaves, kind = jax.tree.flatten(tree)
    far = [number for number, leaf in enumerate(leaves) if isinstance(leaf, jax.Array) and not _here(leaf)]
    if far:
        # One program for all of them, which gathers them on every device.
        near = _gathering(leaves[far[0]].sharding.mesh)([leaves[number] for number in far])
        for number, leaf in zip(far, near, strict=True):
            leaves[number] = leaf
    return jax.device_get(kind.unflatten(leaves))


def sharing(count: int) -> list[Any]:
    """Of a job whose copies of a model take so many devices each, those that this host's copy may have: its own, or those of
    as many neighbouring hosts as it takes.

    Raises:
        ValueError: a copy does not take whole hosts, or the hosts do not make whole copies.
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
    # Neighbours on the last axis of a mesh, which sends the most, are devices of one host.
    return sorted(found, key=lambda device: (device.process_index, device.id))


@dataclass(frozen=True)
class Hosts:
    """The hosts that have one copy of a model together; mostly it is one, which has nobody to ask.

    Attributes:
        number, groups: which of the job's groups of hosts this is, from 0, and how many there are.
        first: whether this host speaks for its group.
        mesh: all devices of the group, those of a host in a row; None for one host.
    """

    number: int = 0
    groups: int = 1
    first: bool = True
    mesh: Mesh | None = None

    @classmethod
    def of(cls, parts: Mapping[str, Any]) -> "Hosts":
        """The hosts on whose devices the parts of a model lie.

        Raises:
            ValueError: they are no neighbours, or hold unlike parts of it.
        """
        processes, own = jax.process_count(), jax.process_index()
        leaves = jax.tree.leaves(dict(parts))
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
        """What each host of the group says, in their order. All of them call it at the same place."""
        if self.mesh is None:
            return [own]
        heads = self._exchange(len(own).to_bytes(4, "big") + own[: BLOCK - 4], BLOCK)
        lengths = [int.from_bytes(head[:4], "big") for head in heads]
        rest = max(lengths) - (BLOCK - 4)
        tails = self._exchange(own[BLOCK - 4 :], 1 << (rest - 1).bit_length()) if rest > 0 else [b""] * len(heads)
        return [(head[4:] + tail)[:length] for head, tail, length in zip(heads, tails, lengths, strict=True)]

    def by_first(self, action: Callable[[], Any]) -> Any:
        """Runs an action on the first host of the group. All of them get what it returns, as JSON has it, or stop with it."""
        if self.mesh is None:
            return action()
        said, error = b"", None
        if self.first:
            try:
                said = json.dumps({"made": action()}).encode()
            except Exception as raised:  # whatever it is, the others would wait for it
                error = raised
                said = json.dumps({"error": worded(raised)}).encode()
        found = json.loads(self.gather(said)[0])
        if error is not None:
            raise error
        if "error" in found:
            raise as_said(*found["error"])
        return found["made"]

    def _exchange(self, own: bytes, size: int) -> list[bytes]:
        assert self.mesh is not None
        rows = np.frombuffer(own.ljust(size, b"\0"), np.uint8)[None]
        where, shape = NamedSharding(self.mesh, PartitionSpec("host")), (self.mesh.shape["host"], size)
        return [row.tobytes() for row in fetch(jax.make_array_from_process_local_data(where, rows, shape))]


def worded(error: BaseException) -> tuple[str, str]:
    """An error as another host is told of it."""
    kind = "mistake" if is_mistake(error) else "trouble" if isinstance(error, OSError) else type(error).__name__
    return kind, str(error)


def as_said(kind: str, words: str, where: str = "") -> Exception:
    """The error that another host told of, so that its exit code is the same on all."""
    if kind == "mistake":
        return ValueError(f"{where}{words}")
    return UnreachedError(f"{where}{words}") if kind == "trouble" else RuntimeError(f"{where}{kind}: {words}")


def digest(tree: Any) -> str:
    """A checksum of the arrays, numbers and words in dataclasses, lists and dicts; functions are passed over."""
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
