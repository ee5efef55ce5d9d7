"""An exponential moving average of the weights."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class Ema:
    """Running average of a model's weights and buffers, which can take their place for a while.

    The decay starts low, min(decay, (1 + step) / (10 + step)), or short trainings would end as averages of their start.

    Source: Polyak and Juditsky 1992; the rising decay is that of TensorFlow's ExponentialMovingAverage.

    Args:
        model: where it will be trained: its tensors are followed.
        decay: 0 to below 1, of each optimizer step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = dict(model.state_dict())  # the same memory as the model's
        self.average = {name: tensor.clone() for name, tensor in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after optimizer step `step` (from 1) into the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in self.live.items():
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor, 1 - decay)
            else:
                self.average[name].copy_(tensor)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average."""
        for name, tensor in self.live.items():
            before = tensor.clone()
            tensor.copy_(self.average[name])
            self.average[name] = before

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The average is in the model inside this context."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
