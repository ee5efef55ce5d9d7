"""Target layers of class activation maps: the last layer with spatial features."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_medtl.errors import MedtlError
from hf_medtl.models.copies import Model, shared_copy
from hf_medtl.models.heads import is_segmenter


class Layer(NamedTuple):
    """A module whose output (n, C, h, w), (n, h, w, C) or (n, tokens, C) is a feature map.

    Attributes:
        name: of the module in the model.
        module: the module itself.
        height: rows of the map.
        width: columns of the map.
        prefix: number of tokens before the patches (class, distillation, registers); -1 if the output has no tokens.
        channels_last: the last of four axes holds the channels.
    """

    name: str
    module: nn.Module
    height: int
    width: int
    prefix: int
    channels_last: bool

    def reshape(self, output: torch.Tensor) -> torch.Tensor:
        """Reshape the module's output to (n, C, h, w) in float32."""
        if self.prefix >= 0:
            output = output[:, self.prefix :].unflatten(1, (self.height, self.width))
        elif not self.channels_last:
            return output.float()
        return output.permute(0, 3, 1, 2).float()


class _Output(NamedTuple):
    """Output of a module; outputs are listed in the order in which modules finish."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    tensor: int  # id of the tensor: containers return that of their last module


def find_layer(model: PreTrainedModel, pixels: torch.Tensor, name: str | None = None) -> Layer:
    """Find the target layer for class activation maps of `model`.

    - convolutional networks: the last feature map before the last pooling (Selvaraju et al. 2017,
      https://arxiv.org/abs/1610.02391)
    - transformers with a class token: the first norm of the last block. After that block patches no longer reach the
      logits, so their gradients are 0.
    - transformers without one, such as Swin: the last norm
    - segmentation networks: the end of the encoder (Vinogradova et al. 2020, https://arxiv.org/abs/2002.11434)

    Feature maps with a single position or a single channel are ignored.

    Args:
        model: any classifier or segmentation network. It is left as it is, so other threads can use it meanwhile.
        pixels: (n, C, H, W); the first image is used.
        name: name of a module in `model.named_modules()`, to use that one.

    Raises:
        MedtlError: there is no such module, or no layer with spatial features.
    """
    outputs = _outputs(model, pixels[:1])
    patches = _patches(outputs)
    channels_last = getattr(getattr(model, "timm_model", None), "output_fmt", None) == "NHWC"
    encoder = f"{model.base_model_prefix}." if is_segmenter(model) else ""
    pooled = {o.tensor for o in outputs if isinstance(o.module, nn.MaxPool2d | nn.AvgPool2d)}
    layers = {o.name: layer for o in outputs if (layer := _as_layer(o, patches, channels_last))}
    if name is not None:
        if name not in layers:
            raise _no_layer(model, f"no module {name!r} with a feature map", list(layers), name)
        return layers[name]
    usable = [o for o in outputs if o.name in layers and o.tensor not in pooled and o.name.startswith(encoder)]
    if not usable:
        raise _no_layer(model, "no layer with spatial features", list(layers), None)
    chosen = usable[-1]
    if layers[chosen.name].prefix > 0:
        block = _last_block(model)
        norms = [o for o in usable if o.name.startswith(f"{block}.") and "norm" in type(o.module).__name__.lower()]
        chosen = norms[0] if norms else chosen
    return layers[chosen.name]


def _outputs(model: PreTrainedModel, pixels: torch.Tensor) -> list[_Output]:
    outputs: list[_Output] = []
    kept: list[torch.Tensor] = []  # keeps the tensors alive, so that ids stay unique

    def keep(name: str, module: nn.Module, output: object) -> None:
        if isinstance(output, torch.Tensor):
            kept.append(output)
            outputs.append(_Output(name, module, tuple(output.shape), id(output)))

    with eval_without_grads(model) as hooked, torch.no_grad():
        for (name, module), twin in zip(model.named_modules(), hooked.modules(), strict=True):
            if name:
                twin.register_forward_hook(lambda _, __, output, n=name, m=module: keep(n, m, output))
        Logits(hooked)(pixels)
    return outputs


def _patches(outputs: list[_Output]) -> tuple[int, int] | None:
    """Return the rows and columns of the patch grid: the output of the last convolution before the first tokens."""
    grid = None
    for output in outputs:
        if len(output.shape) == 3:
            return grid
        if isinstance(output.module, nn.Conv2d):
            grid = (output.shape[2], output.shape[3])
    return None


def _as_layer(output: _Output, patches: tuple[int, int] | None, channels_last: bool) -> Layer | None:
    """Interpret an output as a feature map; None if it is none."""
    shape = output.shape
    if shape[0] != 1:  # windows of an image
        return None
    if len(shape) == 4 and shape[3 if channels_last else 1] > 1:
        height, width = shape[1:3] if channels_last else shape[2:]
        return Layer(output.name, output.module, height, width, -1, channels_last) if height * width > 1 else None
    if len(shape) == 3 and shape[2] > 1 and patches:
        (height, width), max_prefix = patches, 64  # no model has as many tokens besides its patches
        while height * width > shape[1]:  # stages halve the resolution
            height, width = -(-height // 2), -(-width // 2)
        if height * width > 1 and shape[1] - height * width < max_prefix:
            return Layer(output.name, output.module, height, width, shape[1] - height * width, False)
    return None


def _last_block(model: nn.Module) -> str:
    """Return the name of the last block; the blocks are the list of modules with the most parameters."""
    lists = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1
    }
    name = max(lists, key=lambda key: lists[key], default="")
    return f"{name}.{len(model.get_submodule(name)) - 1}" if name else ""  # type: ignore[arg-type]


def _no_layer(model: nn.Module, problem: str, candidates: list[str], name: str | None) -> MedtlError:
    close = difflib.get_close_matches(name or "", candidates) or candidates[-8:]
    advice = f"Name one of its layers: {', '.join(close)}." if close else "Use a method that needs no layer."
    return MedtlError(f"{type(model).__name__} has {problem}. {advice}")


@contextmanager
def eval_without_grads(model: Model) -> Iterator[Model]:
    """Yield a copy with the same weights in eval mode, whose pixels have gradients and whose parameters have none.

    The copy can be hooked and changed; the model itself is left as it is, and other threads can use it meanwhile.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield shared_copy(model).eval()


class Logits(nn.Module):
    """Wrapper of a `transformers` model that maps a tensor of pixels (n, C, H, W) to logits in float32."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits (n, K), or (n, K, H, W) of a segmentation network."""
        return self.model(pixel_values=pixels.to(self.model.device, self.model.dtype)).logits.float()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: parameters get no gradients here, and existing gradients belong to the user."""
