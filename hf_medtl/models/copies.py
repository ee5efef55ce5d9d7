"""Copies of a model that share its weights, and inputs of a module captured by thread: threads can share one model."""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)
HOOKS = threading.Lock()  # held while a shared model is copied, or its hooks change


def shared_copy(model: Model) -> Model:
    """Return a copy of a model for one call: it shares the weights, but has its own hooks, modes and settings.

    So a call can hook layers, switch dropout on or ask for another attention implementation while other threads use
    the model. Parameters of the copy have no gradients.

    Args:
        model: any model. It is left as it is.
    """
    shared: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    with HOOKS, torch.inference_mode(False):
        for parameter in model.parameters():
            fixed = nn.Parameter(parameter.detach(), requires_grad=False) if parameter.requires_grad else parameter
            shared[id(parameter)] = fixed
        return copy.deepcopy(model, shared)


@contextmanager
def captured_inputs(module: nn.Module | None) -> Iterator[list[torch.Tensor]]:
    """Collect the inputs (B, d), flattened, of a module in the forward passes of this thread, and of no other.

    Args:
        module: part of a model that other threads may use; with None nothing is collected.
    """
    inputs: list[torch.Tensor] = []
    thread = threading.get_ident()

    def capture(_: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() == thread:
            inputs.append(args[0].flatten(1))

    if module is None:
        yield inputs
        return
    with HOOKS:
        hook = module.register_forward_pre_hook(capture)
    try:
        yield inputs
    finally:
        with HOOKS:
            hook.remove()
