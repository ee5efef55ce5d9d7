"""Losses of masks: cross entropy, overlap, and both together."""

import torch
from torch import nn

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.masks import IGNORED

LOSSES = ("cross_entropy", "dice", "bce_dice", "focal", "tversky")


class MaskLoss(nn.Module):
    """A loss of logits (B, K, H, W) for masks (B, H, W), by name.

    - cross_entropy: mean over the pixels.
    - focal: mean of -(1 - p)^gamma log p of the true class, by softmax (Lin et al. 2017,
      https://arxiv.org/abs/1708.02002).
    - dice: 1 - (TP + s) / (TP + (FP + FN) / 2 + s), mean over the foreground classes, with probabilities for counts
      (Milletari et al. 2016, https://arxiv.org/abs/1606.04797).
    - tversky: 1 - (TP + s) / (TP + alpha FP + beta FN + s); with beta above alpha a missed pixel costs more than a
      false one (Salehi et al. 2017, https://arxiv.org/abs/1706.05721).
    - bce_dice: cross_entropy + dice (as nnU-Net, Isensee et al. 2021, Nat Methods 18:203-211).

    Each is computed for each picture by itself and averaged, so that parts of a batch add up to the loss of the whole,
    whether gradients are accumulated or processes share the batch. The losses of segmentation_models_pytorch don't:
    Dice and Tversky pool the pictures of a batch and leave a class that none of them shows without gradient, so a false
    lesion in healthy pictures costs nothing; focal is one sigmoid against the rest for each class, and NaN if all is
    ignored; the mean of SoftCrossEntropyLoss counts ignored pixels. Where they agree (one picture that shows every
    class) the tests compare them.

    Args:
        name: one of LOSSES.
        gamma: of focal.
        alpha, beta: of tversky, what false positives and false negatives cost.
        smooth: s, in pixels: what a picture without the class is measured by.

    Raises:
        MedtlError: an unknown name, or a number that can't be.
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
            raise MedtlError(f"Unknown loss of masks {name!r}. Known are: {', '.join(LOSSES)}.")
        if min(gamma, alpha, beta) < 0 or alpha + beta == 0 or not smooth > 0:
            raise MedtlError(
                f"The loss of masks takes gamma, alpha and beta of 0 or more (not both 0) and smooth above 0, found "
                f"gamma {gamma}, alpha {alpha}, beta {beta}, smooth {smooth}."
            )
        self.name, self.smooth = name, smooth
        self.gamma = gamma if name == "focal" else 0.0
        self.alpha, self.beta = (alpha, beta) if name == "tversky" else (0.5, 0.5)

    def forward(
        self, logits: torch.Tensor, labels: torch.Tensor, number: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Sum over the pictures by how many there are.

        A picture of which all pixels are ignored counts as one with a cross entropy of 0 and nothing to overlap.

        Args:
            logits: (B, K, H, W), K of at least 2: the background is class 0.
            labels: (B, H, W) class indices or IGNORED.
            number: of pixels, ignored ones included, in all the pictures of the optimizer step, as the Trainer counts
                labels for `num_items_in_batch`; those of this batch if None.

        Raises:
            ValueError: shapes other than these.
        """
        if logits.ndim != 4 or logits.shape[1] < 2 or labels.shape != (len(logits), *logits.shape[2:]):
            raise ValueError(
                "expected logits (B, K >= 2, H, W) and labels (B, H, W), "
                f"found {tuple(logits.shape)} and {tuple(labels.shape)}"
            )
        log_p = logits.float().log_softmax(dim=1)  # sums over many pixels: 16 bits would lose some
        total = torch.zeros((), device=logits.device)
        if self.name in ("cross_entropy", "bce_dice", "focal"):
            total = total + self.pixels(log_p, labels).sum()
        if self.name in ("dice", "bce_dice", "tversky"):
            total = total + self.overlap(log_p, labels).sum()
        return total / (len(labels) if number is None else number / labels[0].numel())

    def pixels(self, log_p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B,) mean over the pixels that are not ignored."""
        loss = nn.functional.nll_loss(log_p, labels, ignore_index=IGNORED, reduction="none")
        if self.gamma:
            missed = -torch.expm1(-loss)
            loss = loss * missed.clamp(min=1e-12) ** self.gamma  # at 0 the slope is infinite for a gamma below 1
        return loss.sum(dim=(1, 2)) / (labels != IGNORED).sum(dim=(1, 2)).clamp(min=1)

    def overlap(self, log_p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B,) mean over the foreground classes of 1 - the Tversky index."""
        classes = torch.arange(1, log_p.shape[1], device=labels.device)
        truth = labels[:, None] == classes[:, None, None]
        p = log_p[:, 1:].exp() * (labels != IGNORED)[:, None]
        hits, predicted, true = (x.sum(dim=(2, 3)) for x in (p * truth, p, truth))
        wrong = self.alpha * (predicted - hits) + self.beta * (true - hits)
        return (1 - (hits + self.smooth) / (hits + wrong + self.smooth)).mean(dim=1)
