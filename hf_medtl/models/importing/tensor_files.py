"""Tensors in files of other libraries: safetensors, and PyTorch's pickles, of which no code is run."""

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file

from hf_medtl.common.text import first_line
from hf_medtl.errors import MedtlError
from hf_medtl.models.importing.old_modules import read_old_module

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors")


class _StandIn:
    """Object of a pickle whose class is not imported: it only keeps its attributes."""

    def __new__(cls, *args: Any, **options: Any) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


# What checkpoints hold beside weights: options and numbers.
_HARMLESS = (
    *("argparse.Namespace", "_codecs.encode", "numpy.dtype", "numpy.core.multiarray.scalar"),
    *("numpy._core.multiarray.scalar", "numpy.dtypes.Float32DType", "numpy.dtypes.Float64DType"),
    "numpy.dtypes.Int64DType",
)


def read_tensors(path: Path, classes: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """Read all tensors of a file; those of nested dicts and modules are called by dotted names.

    Args:
        path: A file of safetensors, or of `torch.save`, which is read with `weights_only`: nothing in it is run.
        classes: Full names of classes of modules whose tensors are read, too, without importing the classes.

    Raises:
        MedtlError: There is no such file, it is damaged, has no tensors, or holds objects that only code could make.
    """
    if not path.is_file():
        raise MedtlError(f"There is no file {path}. Give a file of weights ({', '.join(SUFFIXES)}).")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        stand_ins = {name: type("StandIn", (_StandIn,), {}) for name in (*_HARMLESS, *classes)}
        if classes and not zipfile.is_zipfile(path):
            content = read_old_module(path, stand_ins)
        else:
            allowed: list[Any] = [(stand_in, name) for name, stand_in in stand_ins.items()]
            with torch.serialization.safe_globals(allowed):
                content = torch.load(path, map_location="cpu", weights_only=True)
        tensors = dict(_flatten(content, set()))
    except Exception as error:  # torch.load raises what zipfile, pickle and its own readers do
        raise MedtlError(_explain(path, error)) from error
    if not tensors:
        raise MedtlError(f"{path} has no tensors. Give a file of weights, such as of torch.save(model.state_dict()).")
    return tensors


def _explain(path: Path, error: Exception) -> str:
    """Say in one sentence why a file was not read."""
    if needs := re.search(r"GLOBAL (\S+)|reduce for unrecognized function (.+)|unsupported class (.+)", str(error)):
        name = next(filter(None, needs.groups()))
        return (
            f"{path} is a pickle that needs code to be opened ({name}), which could do anything, so it was not: save "
            "the weights alone where it was made, with torch.save(model.state_dict(), ...) or safetensors."
        )
    reason = "it is no file of torch.save" if isinstance(error, UnpicklingError) else first_line(error) or "it is empty"
    return f"{path} can't be read as weights ({reason}). Download it again, or give another file."


def _flatten(content: Any, seen: set[int], prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of nested dicts and of modules that were pickled whole; each dict once."""
    if isinstance(content, torch.Tensor):
        yield prefix.removesuffix("."), content.detach()
        return
    parts: list[Mapping[Any, Any]] = []
    if isinstance(content, _StandIn):
        parts = [part for key in ("_parameters", "_buffers", "_modules")
                 if isinstance(part := vars(content).get(key), Mapping)]  # fmt: skip
    elif isinstance(content, Mapping):
        parts = [content]
    for part in parts:
        if id(part) in seen:  # a file may nest dicts in themselves
            continue
        seen.add(id(part))
        for name, value in part.items():
            yield from _flatten(value, seen, f"{prefix}{name}.")
