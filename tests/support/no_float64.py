"""A faked accelerator without float64, such as Apple's: tensors are on it until `.cpu()` brings them to the host."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary


class _NoFloat64(TorchDispatchMode):
    """Raise where an operation makes float64 of a tensor that is not known to be on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.host, self.device = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        fresh = func is torch.ops.aten.lift_fresh.default  # of Python's or NumPy's numbers
        on_host = fresh or all(x in self.host or x.dtype == torch.float64 for x in inputs)
        of_model = any(isinstance(x, torch.nn.Parameter) or x in self.device for x in inputs)
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                if of_model:
                    self.device[tensor] = True
                if on_host:
                    self.host[tensor] = True
                elif tensor.dtype == torch.float64:
                    raise TypeError(f"the accelerator has no float64: {func}")
        return output


@contextmanager
def refuse_float64() -> Iterator[None]:
    """Raise TypeError for float64 on all tensors but those that `.cpu()` or NumPy brought to the host.

    Raise it also if what was computed from a model's parameters becomes an array without `.cpu()`.

    The device stays the CPU, so everything can be computed.
    """
    mode, original, to_numpy = _NoFloat64(), torch.Tensor.cpu, torch.Tensor.numpy

    def cpu(tensor, *args, **kwargs):
        moved = original(tensor, *args, **kwargs).clone()
        mode.host[moved] = True
        mode.device.pop(moved, None)
        return moved

    def numpy(tensor, *args, **kwargs):
        if tensor in mode.device:
            raise TypeError("a tensor of the accelerator can't become an array")
        return to_numpy(tensor, *args, **kwargs)

    with mode, mock.patch.object(torch.Tensor, "cpu", cpu), mock.patch.object(torch.Tensor, "numpy", numpy):
        yield
