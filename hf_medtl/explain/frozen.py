"""A model that is looked at, and is afterwards as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, with gradients that reach the pixels but no parameter; both as before when it ends."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


class Logits(nn.Module):
    """A model of `transformers` that takes and gives tensors: pixels (n, C, H, W) -> logits in float32."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (n, K), or (n, K, H, W) of a segmentation network."""
        return self.model(pixel_values=pixels.to(self.model.device, self.model.dtype)).logits.float()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: parameters get no gradients here, and those that the user has are not ours to clear."""
