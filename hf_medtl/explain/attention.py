"""Attention maps of vision transformers, and attention rollout."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hf_medtl.errors import MedtlError
from hf_medtl.explain.layers import Layer, Logits, eval_without_grads, find_layer


def attention_weights(model: PreTrainedModel, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Return the attention of each layer, (n, heads, from, to) over tokens; each row sums to 1.

    Args:
        model: a vision transformer of `transformers` or timm. A copy of it with the slow "eager" implementation of
            attention is used, since the others do not return weights.
        pixels: (n, C, H, W).

    Raises:
        MedtlError: the model has no attention, or none over the whole image.
    """
    with eval_without_grads(model) as copy, torch.no_grad():
        if hasattr(copy, "timm_model"):
            weights = _timm_attention(copy, pixels)
        else:
            copy.set_attn_implementation("eager")  # TRAP: SDPA silently returns no attention
            output: Any = copy(pixel_values=pixels.to(copy.device, copy.dtype), output_attentions=True)
            weights = list(output.get("attentions") or ())
    if not weights or any(a.ndim != 4 or a.shape[0] != len(pixels) or a.shape != weights[0].shape for a in weights):
        raise MedtlError(
            f"{type(model).__name__} has no attention that covers the whole image in every layer. Attention maps and "
            "rollout are for ViT, DeiT, DINOv2 and similar models; use gradcam here."
        )
    return [layer.float().cpu() for layer in weights]


def attention_rollout(attention: list[torch.Tensor]) -> torch.Tensor:
    """Return the flow from each input token to each output token, (n, tokens, tokens); rows sum to 1.

    Each layer contributes the mean over its heads, averaged with the identity for the residual connection; the
    layers are multiplied, the last one first.

    Source: Abnar and Zuidema 2020, Quantifying attention flow in transformers, https://arxiv.org/abs/2005.00928.

    Args:
        attention: result of `attention_weights`.
    """
    flow = torch.eye(attention[0].shape[-1])
    for layer in attention:
        flow = (layer.mean(dim=1) + torch.eye(layer.shape[-1])) / 2 @ flow
    return flow


def rollout_maps(model: PreTrainedModel, pixels: torch.Tensor) -> NDArray[np.float32]:
    """Return the flow from each patch to the class token, (n, rows, columns) of patches; the same for every class."""
    flow, layer = attention_rollout(attention_weights(model, pixels)), _class_token_layer(model, pixels)
    return flow[:, 0, layer.prefix :].reshape(-1, layer.height, layer.width).numpy()


def attention_head_maps(model: PreTrainedModel, pixels: torch.Tensor) -> NDArray[np.float32]:
    """Return the attention of the class token to the patches, (n, layers, heads, rows, columns) of patches."""
    weights, layer = torch.stack(attention_weights(model, pixels), dim=1), _class_token_layer(model, pixels)
    return weights[..., 0, layer.prefix :].unflatten(-1, (layer.height, layer.width)).numpy()


def _class_token_layer(model: PreTrainedModel, pixels: torch.Tensor) -> Layer:
    layer = find_layer(model, pixels)
    if layer.prefix < 1:
        raise MedtlError(
            f"{type(model).__name__} has no class token whose attention could be shown. Use gradcam, or "
            "`attention_weights`."
        )
    return layer


def _timm_attention(copy: PreTrainedModel, pixels: torch.Tensor) -> list[torch.Tensor]:
    """TRAP: `TimmWrapper` refuses output_attentions, and timm fuses attention: unfuse, and hook its dropout's input."""
    modules: list[Any] = [m for m in copy.modules() if hasattr(m, "fused_attn") and hasattr(m, "attn_drop")]
    weights: list[torch.Tensor] = []
    for module in modules:
        module.fused_attn = False
        module.attn_drop.register_forward_hook(lambda _, inputs, __: weights.append(inputs[0]))
    Logits(copy)(pixels)
    return weights
