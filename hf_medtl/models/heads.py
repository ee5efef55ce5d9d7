"""The last linear layer: the only part of a pretrained classifier that knows the labels."""

import functools
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_medtl.errors import MedtlError


def is_segmenter(model: nn.Module) -> bool:
    """Whether a model tells a class of each pixel: transformers calls the classes of such models so."""
    return type(model).__name__.endswith("ForSemanticSegmentation")


def find_head(model: PreTrainedModel) -> nn.Linear:
    """The linear layer that gives the logits.

    Raises:
        MedtlError: the model has none with as many outputs as labels, or two whose mean are the logits.
    """
    if any(name.endswith("head_dist") for name, _ in model.named_modules()):  # DeiT, LeViT and others in timm
        raise MedtlError(
            "This model has a second head, for distillation from a teacher, so its logits do not come from one head "
            "alone. Use the same architecture without distillation."
        )
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == model.config.num_labels]
    if not layers:
        raise MedtlError(
            f"{type(model).__name__} has no linear layer with {model.config.num_labels} outputs, so its probabilities "
            "can't be calibrated. Use a backbone with a linear classification head."
        )
    return layers[-1]


def drop_out(head: nn.Linear, share: float) -> None:
    """In training set a share of the head's inputs to zero, anew for each picture.

    A hook, not a layer: few configurations know dropout at this place, and so it is the same for every family and the
    saved model stays as stock classes have it. The hook itself is not saved.

    Source: Srivastava et al. 2014, Dropout, https://jmlr.org/papers/v15/srivastava14a.html.

    Raises:
        MedtlError: not a share below 1.
    """
    if not 0 <= share < 1:
        raise MedtlError(f"Dropout is a share of 0 or more and below 1 (0.5 is usual), found {share}.")
    if share:
        head.register_forward_pre_hook(functools.partial(_drop_inputs, share))


def _drop_inputs(share: float, head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (nn.functional.dropout(inputs[0], share, head.training), *inputs[1:])


def reset_head(model: PreTrainedModel, std: float = 0.02) -> None:
    """Draw the head anew, for labels that it has not seen."""
    head = find_head(model)
    nn.init.normal_(head.weight, std=std)
    if head.bias is not None:
        nn.init.zeros_(head.bias)


@torch.no_grad()
def divide_logits(model: PreTrainedModel, temperature: float) -> None:
    """Fold a temperature into the head (W/T, b/T), so that stock code returns calibrated probabilities.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks; the folding is plain algebra.
    """
    head = find_head(model)
    head.weight.div_(temperature)
    if head.bias is not None:
        head.bias.div_(temperature)
