"""What the tokens of a vision transformer attend to, and attention rollout."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hf_medtl.errors import MedtlError
from hf_medtl.explain.layers import Layer, Logits, find_layer, frozen


def attentions(model: PreTrainedModel, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Attention of each layer, (n, heads, tokens, tokens), rows from, columns to: each row has the sum 1.

    Args:
        model: a vision transformer of `transformers` or timm; while it is looked at, its attention is computed by the
            slow, "eager" implementation, for the others do not give it.
        pixels: (n, C, H, W).

    Raises:
        MedtlError: it has none, or not over the whole picture.
    """
    with frozen(model), torch.no_grad():
        if hasattr(model, "timm_model"):
            found = _of_timm(model, pixels)
        else:
            with _eager(model):
                answer: Any = model(pixel_values=pixels.to(model.device, model.dtype), output_attentions=True)
                found = list(answer.get("attentions") or ())
    if not found or any(a.ndim != 4 or a.shape[0] != len(pixels) or a.shape != found[0].shape for a in found):
        raise MedtlError(
            f"{type(model).__name__} has no attention that goes over the whole picture in every layer. Attention maps "
            "and rollout are for ViT, DeiT, DINOv2 and the like; use gradcam here."
        )
    return [attention.float().cpu() for attention in found]


def rollout(attention: list[torch.Tensor]) -> torch.Tensor:
    """How much of each token arrives in each token at the end, (n, tokens, tokens): rows have the sum 1.

    The mean over heads; half of it is the token itself, which the residual connection hands on; then the product over
    layers, the last one first.

    Source: Abnar and Zuidema 2020, Quantifying attention flow in transformers, https://arxiv.org/abs/2005.00928.

    Args:
        attention: as `attentions` gives it.
    """
    flow = torch.eye(attention[0].shape[-1])
    for layer in attention:
        flow = (layer.mean(dim=1) + torch.eye(layer.shape[-1])) / 2 @ flow
    return flow


def rollout_maps(model: PreTrainedModel, pixels: torch.Tensor) -> NDArray[np.float32]:
    """What arrives in the class token from each patch, (n, rows, columns) of patches; the same for every class."""
    flow, layer = rollout(attentions(model, pixels)), _class_tokens(model, pixels)
    return flow[:, 0, layer.prefix :].reshape(-1, layer.height, layer.width).numpy()


def head_maps(model: PreTrainedModel, pixels: torch.Tensor) -> NDArray[np.float32]:
    """What the class token attends to, (n, layers, heads, rows, columns) of patches; the other tokens are left out."""
    found, layer = torch.stack(attentions(model, pixels), dim=1), _class_tokens(model, pixels)
    return found[..., 0, layer.prefix :].unflatten(-1, (layer.height, layer.width)).numpy()


def _class_tokens(model: PreTrainedModel, pixels: torch.Tensor) -> Layer:
    with frozen(model):
        layer = find_layer(model, pixels)
    if layer.prefix < 1:
        raise MedtlError(
            f"{type(model).__name__} has no class token whose attention could be shown. Use gradcam, or `attentions`."
        )
    return layer


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """TRAP: SDPA gives no attention, without a word."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _of_timm(model: PreTrainedModel, pixels: torch.Tensor) -> list[torch.Tensor]:
    """TRAP: `TimmWrapper` refuses output_attentions, and timm's attention is fused: what goes into its dropout."""
    parts: list[Any] = [m for m in model.modules() if hasattr(m, "fused_attn") and hasattr(m, "attn_drop")]
    found: list[torch.Tensor] = []
    fused = [part.fused_attn for part in parts]
    hooks = [part.attn_drop.register_forward_hook(lambda _, inputs, __: found.append(inputs[0])) for part in parts]
    try:
        for part in parts:
            part.fused_attn = False
        Logits(model)(pixels)
    finally:
        for part, before, hook in zip(parts, fused, hooks, strict=True):
            part.fused_attn = before
            hook.remove()
    return found
