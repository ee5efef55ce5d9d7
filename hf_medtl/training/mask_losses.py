"""Segmentation losses: cross entropy, focal, Dice, Tversky and combinations."""

import torch
from torch import nn

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.masks import IGNORE_INDEX

LOSSES = ("cross_entropy", "dice", "bce_dice", "focal", "tversky")


class MaskLoss(nn.Module):
    """Segmentation loss by name, for logits (B, K, H, W) and masks (B, H, W).

    - cross_entropy: mean over the pixels.
    - focal: mean of -(1 - p)^gamma log p of the true class, by softmax (Lin et al. 2017,
      https://arxiv.org/abs/1708.02002).
    - dice: 1 - (TP + s) / (TP + (FP + FN) / 2 + s), mean over the foreground classes, with soft counts
      (Milletari et al. 2016, https://arxiv.org/abs/1606.04797).
    - tversky: 1 - (TP + s) / (TP + alpha FP + beta FN + s); with beta above alpha a missed pixel costs more than a
      false one (Salehi et al. 2017, https://arxiv.org/abs/1706.05721).
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
    ) -> None:
        super().__init__()
        if name not in LOSSES:
            raise MedtlError(f"Unknown segmentation loss {name!r}. Available: {', '.join(LOSSES)}.")
        if min(gamma, alpha, beta) < 0 or alpha + beta == 0 or not smooth > 0:
            raise MedtlError(
                "A segmentation loss needs gamma, alpha and beta of at least 0 (alpha and beta not both 0) and smooth "
                f"above 0, but has gamma {gamma}, alpha {alpha}, beta {beta}, smooth {smooth}."
            )
        self.name, self.smooth = name, smooth
        self.gamma = gamma if name == "focal" else 0.0
        self.alpha, self.beta = (alpha, beta) if name == "tversky" else (0.5, 0.5)

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
        if self.name in ("cross_entropy", "bce_dice", "focal"):
            total = total + self._pixel_loss(log_p, labels).sum()
        if self.name in ("dice", "bce_dice", "tversky"):
            total = total + self._overlap_loss(log_p, labels).sum()
        return total / (len(labels) if number is None else number / labels[0].numel())

    def _pixel_loss(self, log_p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the (B,) mean over the pixels that are not ignored."""
        loss = nn.functional.nll_loss(log_p, labels, ignore_index=IGNORE_INDEX, reduction="none")
        if self.gamma:
            missed = -torch.expm1(-loss)
            loss = loss * missed.clamp(min=1e-12) ** self.gamma  # at 0 the slope is infinite for a gamma below 1
        return loss.sum(dim=(1, 2)) / (labels != IGNORE_INDEX).sum(dim=(1, 2)).clamp(min=1)

    def _overlap_loss(self, log_p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return (B,) 1 - Tversky index, averaged over the foreground classes."""
        classes = torch.arange(1, log_p.shape[1], device=labels.device)
        truth = labels[:, None] == classes[:, None, None]
        p = log_p[:, 1:].exp() * (labels != IGNORE_INDEX)[:, None]
        hits, predicted, true = (x.sum(dim=(2, 3)) for x in (p * truth, p, truth))
        wrong = self.alpha * (predicted - hits) + self.beta * (true - hits)
        return (1 - (hits + self.smooth) / (hits + wrong + self.smooth)).mean(dim=1)
