"""Segmentation losses: cross entropy, focal, Dice, Tversky and combinations, and weights of pixel classes."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.masks import IGNORE_INDEX

PIXEL_LOSSES = ("cross_entropy", "bce_dice", "focal")  # those with a term for each pixel, which class weights apply to
OVERLAP_LOSSES = ("dice", "bce_dice", "tversky", "focal_tversky")
LOSSES = ("cross_entropy", "dice", "bce_dice", "focal", "tversky", "focal_tversky")
MAX_WEIGHT_RATIO = 50.0


def pixel_class_weights(pixels: ArrayLike, labels: Sequence[str]) -> NDArray[np.float64]:
    """Return (K,) class weights that are inverse to the pixels of each class, with a mean of 1 over all pixels.

    No weight is more than MAX_WEIGHT_RATIO times another, as in ENet (Paszke et al. 2016,
    https://arxiv.org/abs/1606.02147): a lesion of one pixel in 10,000 would else count as much as all healthy tissue,
    and an image with it would have a gradient thousands of times that of others.

    Args:
        pixels: (K,) pixels of each class in the training masks.
        labels: (K,) names of the classes, for the error.

    Raises:
        MedtlError: a class without pixels.
    """
    number = np.asarray(pixels, np.float64)
    if absent := [label for label, n in zip(labels, number, strict=True) if n == 0]:
        raise MedtlError(
            f"The training masks have no pixel of {', '.join(absent)}, so --class_weights balanced is undefined. Use a "
            "split or data with all classes, or --class_weights none."
        )
    weights = np.minimum(number.max() / number, MAX_WEIGHT_RATIO)
    return weights * number.sum() / (weights * number).sum()


class MaskLoss(nn.Module):
    """Segmentation loss by name, for logits (B, K, H, W) and masks (B, H, W).

    - cross_entropy: mean over the pixels, with `weights` each times that of its true class.
    - focal: mean of -(1 - p)^gamma log p of the true class, by softmax (Lin et al. 2017,
      https://arxiv.org/abs/1708.02002), with `weights` as in cross_entropy.
    - dice: 1 - (TP + s) / (TP + (FP + FN) / 2 + s), mean over the foreground classes, with soft counts
      (Milletari et al. 2016, https://arxiv.org/abs/1606.04797).
    - tversky: 1 - (TP + s) / (TP + alpha FP + beta FN + s); with beta above alpha a missed pixel costs more than a
      false one (Salehi et al. 2017, https://arxiv.org/abs/1706.05721).
    - focal_tversky: the tversky loss of each class to the power 3/4, whose slope does not fade as a class gets right
      (Abraham & Khan 2019, https://arxiv.org/abs/1810.07842, with their gamma of 4/3).
    - bce_dice: cross_entropy + dice (as nnU-Net, Isensee et al. 2021, Nat Methods 18:203-211).

    Each loss is computed per image and averaged, so that parts of a batch add up to the loss of the whole, with
    gradient accumulation and with several processes. The losses of segmentation_models_pytorch do not: Dice and Tversky
    pool the images of a batch and give no gradient to a class that none of them shows, so a false lesion in healthy
    images costs nothing; focal is a one-vs-rest sigmoid for each class, and NaN if all pixels are ignored; the mean of
    SoftCrossEntropyLoss counts ignored pixels. Where they agree (one image with every class) tests compare them.

    Args:
        name: one of LOSSES.
        gamma: parameter of the focal loss.
        alpha: cost of false positives in tversky.
        beta: cost of false negatives in tversky.
        smooth: smoothing term s in pixels, which matters for images without the class.
        weights: (K,) weights of the classes in cross_entropy (also that of bce_dice) and focal; None for equal ones.
            Dice and Tversky count each class the same, however few its pixels are.

    Raises:
        MedtlError: an unknown name, or an invalid parameter.
    """

    def __init__(
        self,
        name: str = "bce_dice",
        gamma: float = 2.0,
        alpha: float = 0.3,
        beta: float = 0.7,
        smooth: float = 1.0,
        weights: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        if name not in LOSSES:
            raise MedtlError(f"Unknown segmentation loss {name!r}. Available: {', '.join(LOSSES)}.")
        if min(gamma, alpha, beta) < 0 or alpha + beta == 0 or not smooth > 0:
            raise MedtlError(
                "A segmentation loss needs gamma, alpha and beta of at least 0 (alpha and beta not both 0) and smooth "
                f"above 0, but has gamma {gamma}, alpha {alpha}, beta {beta}, smooth {smooth}."
            )
        self.name, self.smooth, self.weights = name, smooth, weights
        self.gamma = gamma if name == "focal" else 0.0
        self.alpha, self.beta = (alpha, beta) if name in ("tversky", "focal_tversky") else (0.5, 0.5)
        self.power = 0.75 if name == "focal_tversky" else 1.0

    def forward(
        self, logits: torch.Tensor, labels: torch.Tensor, number: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Return the sum over the images divided by their number.

        An image whose pixels are all ignored counts as one with a cross entropy of 0 and nothing to overlap.

        Args:
            logits: (B, K, H, W), K of at least 2: the background is class 0.
            labels: (B, H, W) class indices or IGNORE_INDEX.
            number: number of pixels, including ignored ones, in all images of the optimizer step, as Trainer counts
                labels for `num_items_in_batch`; the pixels of this batch if None.

        Raises:
            ValueError: shapes other than these.
        """
        if logits.ndim != 4 or logits.shape[1] < 2 or labels.shape != (len(logits), *logits.shape[2:]):
            raise ValueError(
                "expected logits (B, K >= 2, H, W) and labels (B, H, W), "
                f"found {tuple(logits.shape)} and {tuple(labels.shape)}"
            )
        log_p = logits.float().log_softmax(dim=1)  # sums over many pixels need more than 16 bits
        total = torch.zeros((), device=logits.device)
        if self.name in PIXEL_LOSSES:
            total = total + self._pixel_loss(log_p, labels).sum()
        if self.name in OVERLAP_LOSSES:
            total = total + self._overlap_loss(log_p, labels).sum()
        return total / (len(labels) if number is None else number / labels[0].numel())

    def _pixel_loss(self, log_p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the (B,) mean over the pixels that are not ignored: divided by their number, not by their weights."""
        loss = nn.functional.nll_loss(log_p, labels, ignore_index=IGNORE_INDEX, reduction="none")
        if self.gamma:
            missed = -torch.expm1(-loss)
            loss = loss * missed.clamp(min=1e-12) ** self.gamma  # at 0 the slope is infinite for a gamma below 1
        if self.weights is not None:
            loss = loss * self.weights.to(loss)[labels.masked_fill(labels == IGNORE_INDEX, 0)]
        return loss.sum(dim=(1, 2)) / (labels != IGNORE_INDEX).sum(dim=(1, 2)).clamp(min=1)

    def _overlap_loss(self, log_p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return (B,) 1 - Tversky index to the power, averaged over the foreground classes."""
        classes = torch.arange(1, log_p.shape[1], device=labels.device)
        truth = labels[:, None] == classes[:, None, None]
        p = log_p[:, 1:].exp() * (labels != IGNORE_INDEX)[:, None]
        hits, predicted, true = (x.sum(dim=(2, 3)) for x in (p * truth, p, truth))
        wrong = self.alpha * (predicted - hits) + self.beta * (true - hits)
        missed = wrong / (hits + wrong + self.smooth)
        if self.power != 1:
            missed = missed * missed.clamp(min=1e-6) ** (self.power - 1)  # linear near 0, where the slope is infinite
        return missed.mean(dim=1)
