"""Files of ``torch.save``, read and written without torch, and read without running anything in them.

Such a file is a zip archive of a pickle and of raw storages. A pickle is a program for a stack machine and may call any
function. Here a small interpreter runs it, which has only the few instructions that dictionaries of strings, numbers
and tensors need, and only the names that a tensor needs. Everything else is refused. Sizes are bounded too: nothing is
decompressed, and no tensor may be larger than its storage.
"""

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from omni_jax.errors import shown

MAX_BYTES, MAX_PICKLE_BYTES = 64 << 20, 1 << 20

# The storages that may be read, by torch's names.
_STORAGES = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch IntStorage": np.dtype("<i4"),
    "torch LongStorage": np.dtype("<i8"),
}
_TENSOR, _ORDERED = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_NAMES = {_TENSOR, _ORDERED, *_STORAGES}


def read_torch(path: Path) -> Any:
    """Reads a file: a tree of dictionaries by strings, which hold numbers, strings, tuples and arrays.

    The arrays are views of the storages, and many may share one. Check their total size before copying them.

    Raises:
        ValueError: the file is damaged, too large, or holds anything else.
        OSError: the file does not exist or cannot be read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    try:
        program, storages = _records(path.read_bytes())
    except (EOFError, OverflowError, RuntimeError, struct.error, zipfile.BadZipFile) as error:
        raise ValueError(f"it is a damaged zip archive ({shown(error, 200)}); copy it anew") from None
    return _run(program, storages)


def _records(content: bytes) -> tuple[bytes, dict[str, bytes]]:
    """The pickle, and the storages by key."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError(
            "it is no zip archive, or a truncated one; copy it anew, or save it with a torch of 1.6 or later"
        )
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found = archive.infolist()
        names = [info.filename for info in found]
        root = names[0].split("/")[0] if names else ""
        for info in found:
            first, *rest = info.filename.split("/")
            if first != root or not rest or not {"", ".", ".."}.isdisjoint((first, *rest)) or "\\" in info.filename:
                raise ValueError(
                    f"it has a record called {shown(info.filename)}, not a path in the folder {shown(root)}"
                )
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
                raise ValueError(f"{shown(info.filename)} is compressed or encrypted, which torch.save never does")
        if len(set(names)) < len(names):
            raise ValueError("it has two records of the same name")
        if sum(info.file_size for info in found) > len(content):
            raise ValueError("its records are larger together than the file")
        program, order, data = f"{root}/data.pkl", f"{root}/byteorder", f"{root}/data/"
        if program not in names:
            raise ValueError("it has no data.pkl; it is another zip archive")
        if archive.getinfo(program).file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"its data.pkl has more than {MAX_PICKLE_BYTES:,} bytes")
        if order in names and archive.read(order) != b"little":
            raise ValueError("its numbers are not little-endian; save it on a little-endian machine")
        storages = {name.removeprefix(data): archive.read(name) for name in names if name.startswith(data)}
        return archive.read(program), storages


@dataclass(frozen=True, eq=False)
class _Name:
    """A global that a pickle may name. It is only a name: nothing is imported."""

    text: str


@dataclass(frozen=True, eq=False)
class _Storage:
    values: np.ndarray


_MARK = object()
_CARRIED = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Stack(list[Any]):
    def pop_value(self) -> Any:
        if not self or self[-1] is _MARK:
            raise ValueError("its data.pkl takes values that are not there")
        return self.pop()

    def pop_to_mark(self) -> list[Any]:
        values = []
        while self and self[-1] is not _MARK:
            values.append(self.pop())
        if not self:
            raise ValueError("its data.pkl takes values that are not there")
        self.pop()
        return values[::-1]

    def fill(self, items: list[Any]) -> None:
        """Puts alternating keys and values into the dictionary on top."""
        made = self.pop_value()
        if type(made) is not dict or len(items) % 2 or not all(type(key) is str for key in items[::2]):
            raise ValueError("its data.pkl fills what is no dictionary by strings")
        made.update(zip(items[::2], items[1::2], strict=True))
        self.append(made)


def _instructions(program: bytes) -> Iterator[tuple[str, Any]]:
    """The instructions' names and arguments, parsed without running them."""
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(program)):
            yield opcode.name, argument
    except ValueError as error:
        raise ValueError(f"its data.pkl is damaged ({shown(error, 200)})") from None


def _run(program: bytes, storages: Mapping[str, bytes]) -> Any:
    """The result of a pickle's instructions."""
    stack, memo = _Stack(), dict[int, Any]()
    for name, argument in _instructions(program):
        if name in _CARRIED:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in _TUPLES:
            stack.append(tuple([stack.pop_value() for _ in range(_TUPLES[name])][::-1]))
        elif name == "TUPLE":
            stack.append(tuple(stack.pop_to_mark()))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack.pop_value()
            stack.append(memo[argument])
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in memo:
                raise ValueError("its data.pkl recalls what it never held")
            stack.append(memo[argument])
        elif name == "GLOBAL":
            if argument not in _NAMES:
                raise ValueError(f"its data.pkl names {argument.replace(' ', '.')[:80]}, which may run code")
            stack.append(_Name(argument))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop_value(), storages))
        elif name == "REDUCE":
            arguments = stack.pop_value()
            stack.append(_called(stack.pop_value(), arguments))
        elif name == "SETITEM":
            value = stack.pop_value()
            stack.fill([stack.pop_value(), value])
        elif name == "SETITEMS":
            stack.fill(stack.pop_to_mark())
        elif name == "STOP":
            made = stack.pop_value()
            if stack:
                raise ValueError("its data.pkl leaves values behind")
            return made
        elif name != "PROTO":
            raise ValueError(f"its data.pkl has the instruction {name}, which dictionaries of tensors never need")
    raise ValueError("its data.pkl does not end")


def _storage(identity: Any, storages: Mapping[str, bytes]) -> _Storage:
    """The storage that a persistent id ("storage", kind, key, device, count) refers to."""
    if type(identity) is not tuple or len(identity) != 5 or type(identity[1]) is not _Name:
        raise ValueError("its data.pkl refers to what is no storage")
    _, kind, key, _, count = identity
    if kind.text not in _STORAGES or type(key) is not str or key not in storages:
        raise ValueError(f"its data.pkl refers to a storage that is not there ({shown(key)})")
    dtype, held = _STORAGES[kind.text], storages[key]
    if type(count) is not int or count * dtype.itemsize != len(held):
        raise ValueError(
            f"storage {shown(key)} of {len(held):,} bytes: expected {shown(count)} numbers of {dtype.name}"
        )
    return _Storage(np.frombuffer(held, dtype))


def _called(called: Any, arguments: Any) -> Any:
    """The two calls that a tensor needs: of OrderedDict without arguments (for its hooks), and of its constructor."""
    name = called.text if type(called) is _Name else ""
    if type(arguments) is not tuple or name not in (_ORDERED, _TENSOR):
        raise ValueError(f"its data.pkl calls {name.replace(' ', '.') or shown(called)}, which is never called")
    if name == _ORDERED:
        if arguments:
            raise ValueError("its data.pkl has an OrderedDict of arguments, which torch.save never writes")
        return {}
    if not 5 <= len(arguments) <= 7 or type(arguments[0]) is not _Storage:
        raise ValueError("its data.pkl has a tensor without a storage")
    values, (start, shape, strides) = arguments[0].values, arguments[1:4]
    sized = type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides) <= 8
    if not sized or not all(type(number) is int and 0 <= number <= MAX_BYTES for number in (start, *shape, *strides)):
        raise ValueError("its data.pkl has a tensor of no shape, offset and strides that could be")
    end = start + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    if 0 in shape or end > values.size or math.prod(shape) > values.size:
        raise ValueError(f"a tensor of shape {list(shape)} does not lie in its storage of {values.size:,} numbers")
    steps = [stride * values.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(values[start:], shape, steps, writeable=False)


def write_torch(path: Path, tree: Mapping[str, Any]) -> None:
    """Writes dictionaries of ids and float32 arrays in a format that torch.load and ``read_torch`` can read."""
    storages: list[bytes] = []
    program = b"\x80\x02" + _pickled(tree, storages) + b"."
    records = {"data.pkl": program, "byteorder": b"little", "version": b"3\n"}
    records |= {f"data/{number}": storage for number, storage in enumerate(storages)}
    temporary = path.with_name(f"{path.name}.partial")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(
                zipfile.ZipInfo(f"{path.stem}/{name}"), content
            )  # with a fixed date, so that the bytes are the same each time
    temporary.replace(path)


def _pickled(value: Any, storages: list[bytes]) -> bytes:
    """Instructions that build a value. The storages that they refer to are appended to ``storages``."""
    if isinstance(value, Mapping):
        items = (_pickled(item, storages) for pair in value.items() for item in pair)
        return b"}(" + b"".join(items) + b"u"
    if isinstance(value, str):
        encoded = value.encode()
        return b"X" + struct.pack("<I", len(encoded)) + encoded
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, tuple):
        return b"(" + b"".join(_pickled(item, storages) for item in value) + b"t"
    array = np.ascontiguousarray(value, "<f4")
    strides = tuple(stride // array.itemsize for stride in array.strides)
    key, count, places = (_pickled(item, storages) for item in (str(len(storages)), array.size, (array.shape, strides)))
    storages.append(array.tobytes())
    storage = b"(" + _pickled("storage", storages) + b"ctorch\nFloatStorage\n" + key + _pickled("cpu", storages) + count
    # The function, its arguments (storage, offset, shape, strides, no gradient, no hooks), and the call.
    return b"".join(
        (
            b"ctorch._utils\n_rebuild_tensor_v2\n(",
            storage,
            b"tQK\x00",
            places[1:-1],
            b"\x89ccollections\nOrderedDict\n)RtR",
        )
    )
