"""The last linear layer: the only part of a pretrained classifier that knows the labels."""

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_medtl.errors import MedtlError


def find_head(model: PreTrainedModel) -> nn.Linear:
    """The linear layer that gives the logits.

    Raises:
        MedtlError: the model has none with as many outputs as labels.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == model.config.num_labels]
    if not layers:
        raise MedtlError(
            f"{type(model).__name__} has no linear layer with {model.config.num_labels} outputs, so its probabilities "
            "can't be calibrated. Use a backbone with a linear classification head."
        )
    return layers[-1]


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
