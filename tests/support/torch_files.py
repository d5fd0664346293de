"""Files as torch.save writes them, assembled by hand."""

import struct
import zipfile

import numpy as np

REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
HOOKS = b"ccollections\nOrderedDict\n)R"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integers(*values):
    return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"


def integer(value):
    return b"J" + struct.pack("<i", value)


def storage(count, key="0", kind="FloatStorage", device="cpu"):
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text(device) + integer(count) + b"tQ"


def tensor(shape, strides, *, count, key="0", kind="FloatStorage", device="cpu", start=0):
    parts = storage(count, key, kind, device) + integer(start) + integers(*shape) + integers(*strides)
    return REBUILD + b"(" + parts + b"\x89" + HOOKS + b"tR"


def mapping(**items):
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


COND = tensor((1, 2), (2, 1), count=2)
MEL = tensor((1, 5, 2), (10, 2, 1), count=10, key="1")
VOICE = mapping(bos_token=integer(7), cond=COND, ref_mel=MEL)
DATA = {"0": np.arange(2, dtype="<f4").tobytes(), "1": np.arange(10, dtype="<f4").tobytes()}


def program(body):
    return b"\x80\x02" + body + b"."


def save(path, body=None, data=DATA, *, root="spk_dict", pickled=None, compression=zipfile.ZIP_STORED, more=()):
    """A file as torch.save writes it, from a pickle's opcodes and from storages."""
    body = mapping(Ethan=VOICE) if body is None else body
    records = {"data.pkl": program(body) if pickled is None else pickled, "byteorder": b"little"}
    records |= {f"data/{key}": content for key, content in data.items()} | {"version": b"3\n"}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(f"{root}/{name}", content)
        for name, content in more:
            archive.writestr(name, content)
    return path


def cond(made):
    return mapping(Ethan=mapping(bos_token=integer(7), cond=made, ref_mel=MEL))
