"""Losses for classes of unequal number and for pictures of unequal difficulty, on labels, soft labels or several."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hf_medtl.errors import MedtlError

LOSSES = ("cross_entropy", "focal")
CLASS_WEIGHTS = ("none", "balanced", "effective")


def class_weights(kind: str, counts: Sequence[int], labels: Sequence[str], beta: float = 0.999) -> NDArray[np.float64]:
    """(K,) weight of each class, such that the mean over the counted pictures is 1: learning rates keep their meaning.

    Args:
        kind: "balanced": inverse to the number of pictures, as scikit-learn's compute_class_weight; "effective":
            inverse to the effective number (1 - beta^n) / (1 - beta) (Cui et al. 2019, https://arxiv.org/abs/1901.05555);
            "none": 1.
        counts: (K,) pictures of each class in the training split.
        labels: (K,) their names, for the message.
        beta: of "effective", 0 (no weights) to below 1 (balanced).

    Raises:
        MedtlError: an unknown kind, or a class without pictures.
    """
    if kind not in CLASS_WEIGHTS:
        raise MedtlError(f"--class_weights is one of {', '.join(CLASS_WEIGHTS)}, found {kind!r}.")
    number = np.asarray(counts, np.float64)
    if kind == "none":
        return np.ones_like(number)
    absent = [label for label, n in zip(labels, number, strict=True) if n == 0]
    if absent:
        raise MedtlError(
            f"No training picture of {', '.join(absent)}, so --class_weights {kind} has no weight for it. Use a split "
            "or data with all labels, or --class_weights none."
        )
    weights = 1 / number if kind == "balanced" else (1 - beta) / (1 - beta**number)
    return weights * number.sum() / (weights * number).sum()


class ClassificationLoss(nn.Module):
    """Cross entropy, class-weighted if asked, focal with `gamma` above 0; weighted and focal add up.

    For soft labels y it is -sum_k y_k w_k (1 - p_k)^gamma log p_k; with one label a picture that is the focal loss of
    Lin et al. 2017, https://arxiv.org/abs/1708.02002, and with gamma 0 the cross entropy of torch.

    Args:
        weights: (K,), or None for equal ones.
        gamma: of the focal loss; 0 for cross entropy.
        smoothing: share of each label that is spread over all classes.
    """

    def __init__(self, weights: torch.Tensor | None = None, gamma: float = 0.0, smoothing: float = 0.0) -> None:
        super().__init__()
        self.weights, self.gamma, self.smoothing = weights, gamma, smoothing

    def forward(
        self, logits: torch.Tensor, labels: torch.Tensor, number: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Sum over the pictures by `number`.

        The divisor is a number of pictures, not the sum of their weights as in torch, so that batches of an optimizer
        step, or of an evaluation, add up to the loss of all their pictures, however they were cut.

        Args:
            logits: (B, K).
            labels: (B,) class indices, or (B, K) soft.
            number: of pictures; B if None.
        """
        weights = None if self.weights is None else self.weights.to(logits)
        if self.gamma == 0:
            total = nn.functional.cross_entropy(
                logits, labels, weights, reduction="sum", label_smoothing=self.smoothing
            )
        else:
            classes = logits.shape[1]
            soft = nn.functional.one_hot(labels, classes).to(logits) if labels.ndim == 1 else labels
            soft = soft * (1 - self.smoothing) + self.smoothing / classes
            log_p = logits.log_softmax(dim=1)
            terms = soft * (1 - log_p.exp()) ** self.gamma * -log_p
            total = (terms if weights is None else terms * weights).sum()
        return total / (len(labels) if number is None else number)


class MultiLabelLoss(nn.Module):
    """Binary cross entropy of each label, with weights for its positives if asked, focal with `gamma` above 0.

    For targets y it is -(y w (1 - p)^gamma log p + (1 - y) p^gamma log(1 - p)): the focal loss of Lin et al. 2017,
    https://arxiv.org/abs/1708.02002, without its alpha, and with gamma 0 torch's binary_cross_entropy_with_logits.

    Args:
        weights: (K,) of the positives of each label, or None for 1.
        gamma: of the focal loss; 0 for cross entropy.
        smoothing: share of each target that becomes one half.
    """

    def __init__(self, weights: torch.Tensor | None = None, gamma: float = 0.0, smoothing: float = 0.0) -> None:
        super().__init__()
        self.weights, self.gamma, self.smoothing = weights, gamma, smoothing

    def forward(
        self, logits: torch.Tensor, labels: torch.Tensor, number: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Sum over pictures and labels by `number`: parts of an optimizer step add up to the loss of all its pictures.

        Args:
            logits: (B, K).
            labels: (B, K) from 0 to 1.
            number: of targets, as Trainer counts them: K a picture; B x K if None.
        """
        weights = None if self.weights is None else self.weights.to(logits)
        soft = labels.to(logits) * (1 - self.smoothing) + self.smoothing / 2
        if self.gamma == 0:
            total = nn.functional.binary_cross_entropy_with_logits(logits, soft, pos_weight=weights, reduction="sum")
        else:
            log_p, log_q = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
            found = soft * log_q.exp() ** self.gamma * -log_p
            total = (
                (found if weights is None else found * weights) + (1 - soft) * log_p.exp() ** self.gamma * -log_q
            ).sum()
        return total / (labels.numel() if number is None else number)
