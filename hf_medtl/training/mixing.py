"""Mixup and CutMix of a batch."""

import math

import numpy as np
import torch


def mix_batch(
    pixels: torch.Tensor, labels: torch.Tensor, mixup: float, cutmix: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each image of a batch with its neighbor, by mixup, by CutMix, or by each in half of the batches.

    Args:
        pixels: (B, 3, H, W).
        labels: (B, K), one-hot or soft.
        mixup: alpha of the weight's Beta(alpha, alpha), 0 disables it (Zhang et al. 2018, https://arxiv.org/abs/1710.09412).
        cutmix: alpha of the area's Beta(alpha, alpha), 0 disables it (Yun et al. 2019, https://arxiv.org/abs/1905.04899).
        rng: source of all random numbers.

    Returns:
        Pixels and labels (B, K), which are mixed as the pixels are.
    """
    cut = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    alpha = cutmix if cut else mixup
    kept = float(rng.beta(alpha, alpha))
    other = pixels.roll(1, 0)
    if cut:
        height, width = pixels.shape[-2:]
        half = math.sqrt(1 - kept) / 2
        y, x = rng.random(2)  # center; the box is clipped to the image
        top, bottom = (round(min(max(y + side, 0), 1) * height) for side in (-half, half))
        left, right = (round(min(max(x + side, 0), 1) * width) for side in (-half, half))
        pixels = pixels.clone()
        pixels[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        kept = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        pixels = torch.lerp(other, pixels, kept)
    return pixels, torch.lerp(labels.roll(1, 0), labels, kept)
