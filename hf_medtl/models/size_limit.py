"""Limit to the size of a model while it is built, from the size of its weights."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules import module as torch_module
from transformers.utils.hub import cached_file

from hf_medtl.errors import MedtlError
from hf_medtl.models.processor import LUNG_MODEL
from hf_medtl.models.weight_files import weight_files

MAX_TENSORS = 200_000  # and layers
SLACK = 256 * 2**20  # bytes that a model may have beyond its weights, such as a new decoder

_building = threading.local()  # bytes, objects and limit of the model that this thread builds
_lock = threading.Lock()


@contextmanager
def limited_size(name: str | Path, revision: str | None = None) -> Iterator[None]:
    """Stop the building of a model in this thread as soon as it is much larger than the weights of a folder or Hub id.

    `transformers` builds models without memory, on torch's meta device, and fills in the weights. What the weights lack
    it would then allocate, whatever its size.

    Raises:
        MedtlError: the model has more tensors or bytes than the weights explain.
    """
    _register_hooks()
    if Path(name).is_dir():
        patterns = ("*.safetensors", f"{LUNG_MODEL}/*.safetensors")
        stored = sum(path.stat().st_size for pattern in patterns for path in Path(name).glob(pattern))
    else:
        options: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}

        def find(file: str) -> Path | None:
            path = cached_file(name, file, **options)
            return Path(path) if path else None

        stored = sum(path.stat().st_size for path in map(find, weight_files(find)) if path)
    # 16 bits become 32, and each tensor is registered twice: without and with its values.
    _building.limit, _building.bytes, _building.objects, _building.source = 4 * stored + SLACK, 0, 0, name
    try:
        yield
    finally:
        _building.limit = None


def _register_hooks() -> None:
    """Count what is registered in modules from now on. TRAP: removing hooks would disturb models built in threads."""
    with _lock:
        if _count not in torch_module._global_module_registration_hooks.values():
            torch_module.register_module_module_registration_hook(_count)
            torch_module.register_module_parameter_registration_hook(_count)
            torch_module.register_module_buffer_registration_hook(_count)


def _count(module: torch.nn.Module, name: str, item: Any) -> None:
    limit = getattr(_building, "limit", None)
    if limit is None:
        return
    _building.objects += 1
    _building.bytes += item.numel() * item.element_size() if isinstance(item, torch.Tensor) else 0
    if _building.bytes > limit or _building.objects > MAX_TENSORS:
        raise MedtlError(
            f"{_building.source} describes a model that is much larger than its weights. Use a complete checkpoint "
            "whose config.json belongs to its weights."
        )
