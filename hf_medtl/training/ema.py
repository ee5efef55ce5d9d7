"""Exponential moving average (EMA) of the weights."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class Ema:
    """Moving average of a model's weights and buffers that can temporarily replace them.

    The decay rises as min(decay, (1 + step) / (10 + step)); otherwise short trainings would average their beginning.

    Source: Polyak and Juditsky 1992; rising decay as in TensorFlow's ExponentialMovingAverage.

    Args:
        model: model on its training device; its tensors are tracked.
        decay: decay per optimizer step, at least 0 and below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = dict(model.state_dict())  # shares memory with the model
        self.average = {name: tensor.clone() for name, tensor in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after optimizer step `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in self.live.items():
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor, 1 - decay)
            else:
                self.average[name].copy_(tensor)

    @torch.no_grad()
    def swap(self) -> None:
        """Swap the model's weights and the average."""
        for name, tensor in self.live.items():
            before = tensor.clone()
            tensor.copy_(self.average[name])
            self.average[name] = before

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Use the average as the model's weights inside this context."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
