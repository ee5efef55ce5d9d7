"""Classification heads: the last linear layer, the only part of a pretrained classifier that depends on the labels."""

import functools
import re
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_medtl.errors import MedtlError

HEAD = re.compile(r"(?:^|[._])heads?(?:\.\d+)?$")  # name of a layer of logits where there may be several


def is_segmenter(model: nn.Module) -> bool:
    """Return True for semantic segmentation models, by the class-name suffix that transformers uses for them."""
    return type(model).__name__.endswith("ForSemanticSegmentation")


def is_sigmoid(config: PreTrainedConfig) -> bool:
    """Return True if each probability is the sigmoid of its logit: multilabel models, and those with one output.

    The softmax of a single logit is always 1; stock `pipeline()` takes the sigmoid, too.
    """
    return config.problem_type == "multi_label_classification" or config.num_labels == 1


def to_probabilities(logits: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """Return probabilities (..., K) of logits (..., K) in float64 on the CPU: Apple's accelerator has no float64."""
    logits = logits.detach().cpu().double()
    return logits.sigmoid() if is_sigmoid(config) else logits.softmax(dim=-1)


def find_head(model: PreTrainedModel) -> nn.Linear:
    """Return the linear layer that computes the logits.

    Raises:
        MedtlError: no linear layer has as many outputs as there are labels, or the logits come from several heads.
    """
    named = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    layers = [(name, m) for name, m in named if m.out_features == model.config.num_labels]
    more = [name for name, _ in layers if HEAD.search(name)][1:]  # CrossViT, VOLO and others in timm, SwiftFormer
    more += [name for name, _ in model.named_modules() if name.endswith("head_dist")]  # DeiT, LeViT and others in timm
    if more:
        raise MedtlError(
            f"This model has a second head ({more[-1]}), often for distillation from a teacher, so its "
            "logits do not come from one head alone. Use an architecture with one head."
        )
    if not layers:
        raise MedtlError(
            f"{type(model).__name__} has no linear layer with {model.config.num_labels} outputs, so its probabilities "
            "can't be calibrated. Use a backbone with a linear classification head."
        )
    return layers[-1][1]


def add_head_dropout(head: nn.Linear, rate: float) -> None:
    """Apply dropout to the inputs of the head during training.

    Uses a hook instead of a layer: few configurations support dropout at this position, so a hook works the same for
    every model family and leaves the saved model loadable by stock classes. The hook itself is not saved.

    Source: Srivastava et al. 2014, Dropout, https://jmlr.org/papers/v15/srivastava14a.html.

    Raises:
        MedtlError: the rate is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise MedtlError(f"The dropout rate must be at least 0 and below 1 (0.5 is usual), found {rate}.")
    if rate:
        head.register_forward_pre_hook(functools.partial(_dropout_inputs, rate))


def _dropout_inputs(rate: float, head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (nn.functional.dropout(inputs[0], rate, head.training), *inputs[1:])


def reset_head(model: PreTrainedModel) -> None:
    """Reinitialise the head for new labels."""
    head = find_head(model)
    nn.init.normal_(head.weight, std=0.02)
    if head.bias is not None:
        nn.init.zeros_(head.bias)


@torch.no_grad()
def fold_temperature(model: PreTrainedModel, temperature: float) -> None:
    """Fold a temperature into the head (W/T, b/T), so that stock code returns calibrated probabilities.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks; the folding is plain algebra.
    """
    head = find_head(model)
    head.weight.div_(temperature)
    if head.bias is not None:
        head.bias.div_(temperature)
