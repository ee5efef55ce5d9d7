"""The layer whose features a class activation map weighs: the last one that still knows places."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_medtl.errors import MedtlError
from hf_medtl.models.heads import is_segmenter


class Layer(NamedTuple):
    """A module, and how its output (n, C, h, w), (n, h, w, C) or (n, tokens, C) is a map.

    Attributes:
        name, module: in the model.
        height, width: of the map.
        prefix: tokens before those of the patches: class, distillation, registers; -1 where there are no tokens.
        channels_last: of four axes the last one is that of the channels.
    """

    name: str
    module: nn.Module
    height: int
    width: int
    prefix: int
    channels_last: bool

    def reshape(self, output: torch.Tensor) -> torch.Tensor:
        """The module's output as (n, C, h, w) in float32."""
        if self.prefix >= 0:
            output = output[:, self.prefix :].unflatten(1, (self.height, self.width))
        elif not self.channels_last:
            return output.float()
        return output.permute(0, 3, 1, 2).float()


class _Output(NamedTuple):
    """What a module gave, in the order in which modules end."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    tensor: int  # containers give the tensor of their last part


def find_layer(model: PreTrainedModel, pixels: torch.Tensor, name: str | None = None) -> Layer:
    """The layer to explain `model` by.

    - convolutional networks: the last feature map, before the last pooling, as Selvaraju et al. 2017 have it,
      https://arxiv.org/abs/1610.02391
    - transformers with a class token: the first norm of the last block. After that block patches no longer reach the
      logits, so that their gradients are 0.
    - those without one, such as Swin: the last norm
    - segmentation networks: the end of the encoder, as Vinogradova et al. 2020 have it, https://arxiv.org/abs/2002.11434

    Maps of a single place or a single channel do not count.

    Args:
        model: any classifier or segmentation network.
        pixels: (n, C, H, W), of which one is looked at.
        name: of a module, as `model.named_modules()` has it, to use that one.

    Raises:
        MedtlError: there is no such module, or none that knows places.
    """
    outputs = _outputs(model, pixels[:1])
    patches = _patches(outputs)
    last = getattr(getattr(model, "timm_model", None), "output_fmt", None) == "NHWC"
    encoder = f"{model.base_model_prefix}." if is_segmenter(model) else ""
    pooled = {o.tensor for o in outputs if isinstance(o.module, nn.MaxPool2d | nn.AvgPool2d)}
    found = {o.name: layer for o in outputs if (layer := _layer(o, patches, last))}
    if name is not None:
        if name not in found:
            raise _unknown(model, f"no module {name!r} that gives a map", list(found), name)
        return found[name]
    usable = [o for o in outputs if o.name in found and o.tensor not in pooled and o.name.startswith(encoder)]
    if not usable:
        raise _unknown(model, "no layer that knows places", list(found), None)
    chosen = usable[-1]
    if found[chosen.name].prefix > 0:
        block = _last_block(model)
        norms = [o for o in usable if o.name.startswith(f"{block}.") and "norm" in type(o.module).__name__.lower()]
        chosen = norms[0] if norms else chosen
    return found[chosen.name]


def _outputs(model: PreTrainedModel, pixels: torch.Tensor) -> list[_Output]:
    outputs: list[_Output] = []
    kept: list[torch.Tensor] = []  # so that no two have the same id

    def keep(name: str, module: nn.Module, output: object) -> None:
        if isinstance(output, torch.Tensor):
            kept.append(output)
            outputs.append(_Output(name, module, tuple(output.shape), id(output)))

    hooks = [
        module.register_forward_hook(lambda m, _, output, name=name: keep(name, m, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            Logits(model)(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _patches(outputs: list[_Output]) -> tuple[int, int] | None:
    """Rows and columns of patches: what the last convolution before the first tokens gives."""
    grid = None
    for output in outputs:
        if len(output.shape) == 3:
            return grid
        if isinstance(output.module, nn.Conv2d):
            grid = (output.shape[2], output.shape[3])
    return None


def _layer(output: _Output, patches: tuple[int, int] | None, channels_last: bool) -> Layer | None:
    """How an output is a map; None if it is none."""
    shape = output.shape
    if shape[0] != 1:  # windows of a picture
        return None
    if len(shape) == 4 and shape[3 if channels_last else 1] > 1:
        height, width = shape[1:3] if channels_last else shape[2:]
        return Layer(output.name, output.module, height, width, -1, channels_last) if height * width > 1 else None
    if len(shape) == 3 and shape[2] > 1 and patches:
        (height, width), few = patches, 64  # no model has as many tokens besides its patches
        while height * width > shape[1]:  # stages halve the resolution
            height, width = -(-height // 2), -(-width // 2)
        if height * width > 1 and shape[1] - height * width < few:
            return Layer(output.name, output.module, height, width, shape[1] - height * width, False)
    return None


def _last_block(model: nn.Module) -> str:
    """Name of the last of the blocks, which are the list of modules with the most parameters."""
    lists = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1
    }
    name = max(lists, key=lambda key: lists[key], default="")
    return f"{name}.{len(model.get_submodule(name)) - 1}" if name else ""  # type: ignore[arg-type]


def _unknown(model: nn.Module, what: str, candidates: list[str], name: str | None) -> MedtlError:
    close = difflib.get_close_matches(name or "", candidates) or candidates[-8:]
    advice = f"Name one of its layers: {', '.join(close)}." if close else "Use a method that needs no layer."
    return MedtlError(f"{type(model).__name__} has {what}. {advice}")


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
