"""Classifiers whose probabilities are averaged. This file travels with the weights, and cnn.py with it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import log_softmax, logsigmoid
from transformers import CONFIG_MAPPING, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

# Relative, so that it is found in hf_medtl and beside the weights alike; stock Auto classes do not know this one.
from .cnn import MedicalCnnConfig, MedicalCnnForImageClassification


class EnsembleConfig(PreTrainedConfig):
    """Members of an `EnsembleForImageClassification`.

    Args:
        members: for each its `config` as a dict, the `name` of the run that it is from, and the `mean` and `std` (per
            channel, of pixels in [0, 1]) that its pictures were normalised with.
        mean, std: those that the ensemble's own image processor normalises with.
        kwargs: what every configuration has, such as `id2label` and `problem_type`.
    """

    model_type = "medical_ensemble"

    def __init__(
        self,
        members: Sequence[dict[str, Any]] = (),
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        **kwargs: Any,
    ) -> None:
        self.members = [dict(member) for member in members]
        self.mean, self.std = list(mean), list(std)
        super().__init__(**kwargs)


class EnsembleForImageClassification(PreTrainedModel):
    """Members side by side; the logits are such that softmax (or sigmoid) gives the mean of their probabilities.

    Source: Lakshminarayanan et al. 2017, Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles,
    https://arxiv.org/abs/1612.01474.
    """

    config_class = EnsembleConfig
    config: EnsembleConfig
    base_model_prefix = "members"
    main_input_name = "pixel_values"
    input_modalities = "image"
    _no_split_modules: list[str] = []  # noqa: RUF012 - as transformers has it

    def __init__(self, config: EnsembleConfig) -> None:
        super().__init__(config)
        self.members = nn.ModuleList(build_member(member["config"]) for member in config.members)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput | tuple[torch.Tensor, ...]:
        """Logits (B, K) of pictures (B, 3, H, W), and with labels the loss, as stock classifiers have it.

        Args:
            pixel_values: as the ensemble's image processor makes them; each member gets its own normalisation.
            labels: (B,) class indices, or (B, K) with several labels a picture.
            return_dict: False for a tuple.
            kwargs: of the loss, such as `num_items_in_batch`.
        """
        own = zip(self.members, self.config.members, strict=True)
        each = torch.stack([model(self._normalised(pixel_values, its)).logits.float() for model, its in own])
        if self.config.problem_type == "multi_label_classification":
            logits = mean_of_logs(logsigmoid(each)) - mean_of_logs(logsigmoid(-each))
        else:
            logits = mean_of_logs(log_softmax(each, dim=-1))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def _normalised(self, pixel_values: torch.Tensor, member: dict[str, Any]) -> torch.Tensor:
        if (member["mean"], member["std"]) == (self.config.mean, self.config.std):
            return pixel_values
        theirs, ours = (
            [pixel_values.new_tensor(values).view(3, 1, 1) for values in pair]
            for pair in ((member["mean"], member["std"]), (self.config.mean, self.config.std))
        )
        return (pixel_values * ours[1] + ours[0] - theirs[0]) / theirs[1]


def build_member(settings: dict[str, Any]) -> PreTrainedModel:
    """Model of a configuration's dict, with new weights; nothing is downloaded."""
    if settings["model_type"] == MedicalCnnConfig.model_type:
        return MedicalCnnForImageClassification(MedicalCnnConfig.from_dict(settings))
    config: Any = CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
    return AutoModelForImageClassification.from_config(config)


def mean_of_logs(logs: torch.Tensor) -> torch.Tensor:
    """Logarithm (B, K) of the mean over members of what logs (members, B, K) are the logarithms of."""
    return logs.logsumexp(dim=0) - math.log(len(logs))
