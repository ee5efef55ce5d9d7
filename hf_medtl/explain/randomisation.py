"""Do maps depend on what the model has learnt? Its layers are drawn anew, from the head down, and maps compared."""

import copy
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import nn
from transformers import PreTrainedModel

from hf_medtl.explain.maps import Maps, Method, heatmaps

SIDE = 64  # maps are compared at this size at most: they come from fewer places


class Similarity(NamedTuple):
    """Of two maps: 1 for equal ones.

    Attributes:
        spearman: rank correlation, -1 to 1.
        ssim: structural similarity, -1 to 1.
    """

    spearman: float
    ssim: float


def cascade(
    model: PreTrainedModel,
    pixels: torch.Tensor,
    classes: NDArray[np.int64],
    method: str | Method = "gradcam",
    layer: str | None = None,
    steps: int = 4,
    repeats: int = 2,
    seed: int = 0,
) -> list[dict[str, float]]:
    """How similar maps stay when a copy's layers are drawn anew, from the head down, until nothing learnt is left.

    Weights are drawn from a normal distribution with the mean and deviation of the tensor they replace, so that
    activations keep their order of magnitude. Source: Adebayo et al. 2018, Sanity checks for saliency maps,
    https://arxiv.org/abs/1810.03292.

    Args:
        model, pixels, classes, method, layer: as for `heatmaps`.
        steps: the head, then the other layers in steps - 1 parts.
        repeats: of the whole, with other draws; the values are means.
        seed: of the draws.

    Returns:
        A row a step: share (of parameters drawn anew), spearman, ssim (means over pictures).
    """
    before = heatmaps(model, pixels, classes, method, layer)
    total = sum(p.numel() for p in model.parameters())
    found = []
    for repeat in range(repeats):
        draws, other = torch.Generator().manual_seed(seed + repeat), copy.deepcopy(model)
        last_first = [m for m in other.modules() if any(True for _ in m.parameters(recurse=False))][::-1]
        ends = [1, *np.linspace(1, len(last_first), steps).round().astype(int)[1:].tolist()]
        done = 0
        for start, end in pairwise([0, *ends]):
            done += sum(_draw(module, draws) for module in last_first[start:end])
            after = heatmaps(other, pixels, classes, method, layer)
            alike = [similarity(*pair) for pair in zip(before, after, strict=True)]
            found.append((done / total, *np.mean(alike, axis=0)))
    means = np.mean(np.reshape(found, (repeats, -1, 3)), axis=0)
    return [dict(zip(("share", "spearman", "ssim"), map(float, row), strict=True)) for row in means]


@torch.no_grad()
def _draw(module: nn.Module, generator: torch.Generator) -> int:
    """Draw a module's own parameters anew; returns how many there are."""
    number = 0
    for parameter in module.parameters(recurse=False):
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        deviation = parameter.std() if parameter.numel() > 1 else torch.zeros_like(parameter)
        parameter.copy_(parameter.mean() + deviation * noise)
        number += parameter.numel()
    return number


def similarity(one: Maps, other: Maps) -> Similarity:
    """How alike two maps (H, W) are. Constant ones are alike (1) to each other and to nothing else (0)."""
    pair = [_shrink(values) for values in (one, other)]
    constant = [bool(np.ptp(values) == 0) for values in pair]
    if any(constant):
        alike = float(all(constant) and np.allclose(pair[0], pair[1]))
        return Similarity(alike, alike)
    rank: Any = spearmanr(pair[0].ravel(), pair[1].ravel())
    return Similarity(float(rank.statistic), ssim(*pair))


def ssim(one: Maps, other: Maps) -> float:
    """Structural similarity of two maps (H, W) in [0, 1], by Gaussian windows of sigma 1.5.

    Source: Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861.
    """
    a, b = one.astype(np.float64), other.astype(np.float64)

    def mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return gaussian_filter(x, 1.5, truncate=3.5)

    ma, mb = mean(a), mean(b)
    va, vb, covariance = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return float(((2 * ma * mb + c1) * (2 * covariance + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


def _shrink(values: Maps) -> Maps:
    height, width = (min(SIDE, length) for length in values.shape)
    pool = torch.nn.AdaptiveAvgPool2d((height, width))
    return pool(torch.from_numpy(np.ascontiguousarray(values))[None])[0].numpy()
