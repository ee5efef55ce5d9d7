"""Classification losses: cross entropy and focal loss with class weights, for single labels and multilabel."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hf_medtl.errors import MedtlError

LOSSES = ("cross_entropy", "focal")
CLASS_WEIGHTS = ("none", "balanced", "effective")


def class_weights(kind: str, counts: Sequence[int], labels: Sequence[str], beta: float = 0.999) -> NDArray[np.float64]:
    """Return (K,) class weights with a mean of 1 over the counted images, so that learning rates keep their meaning.

    Args:
        kind: "balanced": inverse to the number of images, as scikit-learn's compute_class_weight; "effective":
            inverse to the effective number (1 - beta^n) / (1 - beta) (Cui et al. 2019, https://arxiv.org/abs/1901.05555);
            "none": 1.
        counts: (K,) images of each class in the training split.
        labels: (K,) names of the classes, for error messages.
        beta: parameter of "effective", from 0 (no weights) to below 1 (balanced).

    Raises:
        MedtlError: an unknown kind, or a class without images.
    """
    if kind not in CLASS_WEIGHTS:
        raise MedtlError(f"--class_weights must be one of {', '.join(CLASS_WEIGHTS)}, but is {kind!r}.")
    number = np.asarray(counts, np.float64)
    if kind == "none":
        return np.ones_like(number)
    absent = [label for label, n in zip(labels, number, strict=True) if n == 0]
    if absent:
        raise MedtlError(
            f"The training split has no images of {', '.join(absent)}, so --class_weights {kind} is undefined. Use a "
            "split or data with all labels, or --class_weights none."
        )
    weights = 1 / number if kind == "balanced" else (1 - beta) / (1 - beta**number)
    return weights * number.sum() / (weights * number).sum()


class _WeightedFocalLoss(nn.Module):
    """Parameters of a loss on labels.

    Args:
        weights: (K,) weights of the classes, or of the positives of each label; None for equal weights.
        gamma: parameter of the focal loss; 0 for cross entropy.
        smoothing: fraction of each label that is spread over all classes, or target fraction that becomes one half.
    """

    def __init__(self, weights: torch.Tensor | None = None, gamma: float = 0.0, smoothing: float = 0.0) -> None:
        super().__init__()
        self.weights, self.gamma, self.smoothing = weights, gamma, smoothing


class ClassificationLoss(_WeightedFocalLoss):
    """Cross entropy or, with `gamma` above 0, focal loss of one label per image, with optional class weights.

    For soft labels y it is -sum_k y_k w_k (1 - p_k)^gamma log p_k; with hard labels this is the focal loss of Lin et
    al. 2017, https://arxiv.org/abs/1708.02002, and with gamma 0 the cross entropy of torch.
    """

    def forward(
        self, logits: torch.Tensor, labels: torch.Tensor, number: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Return the sum over the images divided by `number`.

        The divisor is a number of images, not the sum of their weights as in torch, so that the batches of an optimizer
        step, or of an evaluation, add up to the loss of all images, however they are split.

        Args:
            logits: (B, K).
            labels: (B,) class indices, or (B, K) soft labels.
            number: number of images; B if None.
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


class MultiLabelLoss(_WeightedFocalLoss):
    """Binary cross entropy or, with `gamma` above 0, focal loss of each label, with optional weights of positives.

    For targets y it is -(y w (1 - p)^gamma log p + (1 - y) p^gamma log(1 - p)): the focal loss of Lin et al. 2017,
    https://arxiv.org/abs/1708.02002, without its alpha, and with gamma 0 torch's binary_cross_entropy_with_logits.
    """

    def forward(
        self, logits: torch.Tensor, labels: torch.Tensor, number: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Return the sum over images and labels divided by `number`, so that parts of an optimizer step add up.

        Args:
            logits: (B, K).
            labels: (B, K) targets from 0 to 1.
            number: number of targets, as Trainer counts them: K per image; B x K if None.
        """
        weights = None if self.weights is None else self.weights.to(logits)
        soft = labels.to(logits) * (1 - self.smoothing) + self.smoothing / 2
        if self.gamma == 0:
            total = nn.functional.binary_cross_entropy_with_logits(logits, soft, pos_weight=weights, reduction="sum")
        else:
            log_p, log_q = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
            positives = soft * log_q.exp() ** self.gamma * -log_p
            total = (
                (positives if weights is None else positives * weights)
                + (1 - soft) * log_p.exp() ** self.gamma * -log_q
            ).sum()
        return total / (labels.numel() if number is None else number)
