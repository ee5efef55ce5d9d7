"""Tensors of modules that PyTorch before 1.6 pickled whole, without their classes: no code of the file is run.

`torch.load(weights_only=True)` does not read these files, which hold the source code of the classes, too. The layout is
that of `torch.serialization._legacy_load`: a magic number, a version, facts of the system, the object, the keys of its
storages, and each storage as its length and its bytes.
"""

import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
DTYPES = {
    **{"FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16},
    **{"LongStorage": torch.int64, "IntStorage": torch.int32, "ByteStorage": torch.uint8, "BoolStorage": torch.bool},
}


def read_old_module(path: Path, stand_ins: dict[str, type]) -> Any:
    """Return the object in a file, with empty classes in the place of its own.

    Args:
        path: The file.
        stand_ins: Full name of a class or function -> the class in its place, which must accept any arguments.

    Raises:
        pickle.UnpicklingError: It needs another class or function, or is no such file.
        EOFError, OSError, ValueError, RuntimeError: It is damaged.
    """
    with path.open("rb") as stream:
        for expected in (MAGIC, VERSION):
            if _Reader(stream, {}, 0).load() != expected:
                raise pickle.UnpicklingError("it is no file of torch.save")
        _Reader(stream, {}, 0).load()
        reader = _Reader(stream, stand_ins, path.stat().st_size)
        content = reader.load()
        for key in _Reader(stream, {}, 0).load():
            _fill(reader.storages[key], stream)
    return content


class _Reader(pickle.Unpickler):
    """Unpickler that knows tensors, dicts and stand-ins alone."""

    def __init__(self, stream: BinaryIO, stand_ins: dict[str, type], limit: int) -> None:
        super().__init__(stream)
        self.stand_ins, self.limit = stand_ins, limit
        self.storages: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        allowed = {
            "collections.OrderedDict": OrderedDict,
            "__builtin__.set": set,  # by the name of Python 2, as in all pickles of protocol 2
            "torch._utils._rebuild_tensor": _view,
            "torch._utils._rebuild_tensor_v2": _view,
            "torch._utils._rebuild_parameter": _data,
            **{f"torch.{storage}": dtype for storage, dtype in DTYPES.items()},
            **self.stand_ins,
        }
        if full not in allowed:
            raise pickle.UnpicklingError(f"GLOBAL {full} was not an allowed global")
        return allowed[full]

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # a class, the file it was in, and its source code
            return pid[1]
        _, dtype, key, _, size, _ = pid
        if key not in self.storages:
            self.limit -= size * dtype.itemsize
            if size < 0 or self.limit < 0:
                raise ValueError("its tensors are larger than the file")
            self.storages[key] = torch.zeros(size, dtype=dtype)
        return self.storages[key]


def _view(storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Any:
    return storage.as_strided(size, stride, offset)


def _data(data: torch.Tensor, *rest: Any) -> torch.Tensor:
    return data


def _fill(storage: torch.Tensor, stream: BinaryIO) -> None:
    """Read the bytes of a storage, whose tensors are views of it."""
    (length,) = struct.unpack("<q", stream.read(8))
    content = stream.read(storage.nbytes)
    if length != len(storage) or len(content) < storage.nbytes:
        raise ValueError("it ends too early")
    if length:
        storage.copy_(torch.frombuffer(bytearray(content), dtype=storage.dtype))
