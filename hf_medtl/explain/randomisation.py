"""Cascading randomisation: a sanity check that heatmaps depend on the learned weights."""

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

from hf_medtl.common.progress import track
from hf_medtl.explain.maps import Heatmaps, Method, heatmaps

LEARNT_BUFFERS = ("running_mean", "running_var", "weight", "bias")  # the last two of frozen batch norm
SIDE = 64  # maps are compared at this size at most, since they come from coarser feature maps


class Similarity(NamedTuple):
    """Similarity of two maps; 1 for equal ones.

    Attributes:
        spearman: rank correlation, -1 to 1.
        ssim: structural similarity, -1 to 1.
    """

    spearman: float
    ssim: float


def cascading_randomisation(
    model: PreTrainedModel,
    pixels: torch.Tensor,
    classes: NDArray[np.int64],
    method: str | Method = "gradcam",
    layer: str | None = None,
    steps: int = 4,
    repeats: int = 2,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Compare heatmaps with those of a copy whose layers are randomised from the head down, until none is left.

    Weights, and running means and variances, are drawn from a normal distribution with the mean and deviation of the
    tensor they replace, so activations keep their order of magnitude. Source: Adebayo et al. 2018, Sanity checks for
    saliency maps, https://arxiv.org/abs/1810.03292.

    Args:
        model: as for `heatmaps`.
        pixels: as for `heatmaps`.
        classes: as for `heatmaps`.
        method: as for `heatmaps`.
        layer: as for `heatmaps`.
        steps: the head first, then the other layers in steps - 1 parts.
        repeats: number of repetitions with other random weights; values are means over them.
        seed: seed of the random weights.

    Returns:
        One row per step: share (fraction of randomised parameters), spearman, ssim (means over images).
    """
    before = heatmaps(model, pixels, classes, method, layer)
    total = sum(p.numel() for p in model.parameters())
    rows = []
    for repeat in track(range(repeats), "Randomising weights", repeats, "repeat"):
        generator, other = torch.Generator().manual_seed(seed + repeat), copy.deepcopy(model)
        modules = [m for m in other.modules() if _learnt(m)][::-1]  # the head first
        ends = [1, *np.linspace(1, len(modules), steps).round().astype(int)[1:].tolist()]
        done = 0
        for start, end in pairwise([0, *ends]):
            done += sum(_randomise(module, generator) for module in modules[start:end])
            after = heatmaps(other, pixels, classes, method, layer)
            similarities = [similarity(*pair) for pair in zip(before, after, strict=True)]
            rows.append((done / total, *np.mean(similarities, axis=0)))
    means = np.mean(np.reshape(rows, (repeats, -1, 3)), axis=0)
    return [dict(zip(("share", "spearman", "ssim"), map(float, row), strict=True)) for row in means]


def _learnt(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's own parameters and learnt buffers: batch norm has its running mean and variance there."""
    buffers = {name: x for name, x in module.named_buffers(recurse=False) if name in LEARNT_BUFFERS}
    return dict(module.named_parameters(recurse=False)) | buffers


@torch.no_grad()
def _randomise(module: nn.Module, generator: torch.Generator) -> int:
    """Draw what a module itself has learnt anew, and return the number of its parameters.

    Values that are all equal, such as a single one, are drawn with their size as the deviation; zeros stay.
    """
    for name, values in _learnt(module).items():
        noise = torch.randn(values.shape, generator=generator).to(values)
        mean = values.mean()
        deviation = values.std(correction=0)
        drawn = mean + torch.where(deviation > 0, deviation, mean.abs()) * noise
        values.copy_(drawn.abs() if name == "running_var" else drawn)
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


_draw = _randomise  # its former name


def similarity(one: Heatmaps, other: Heatmaps) -> Similarity:
    """Return the similarity of two maps (H, W); a constant one has 1 to its equal and 0 to any other."""
    pair = [_shrink(values) for values in (one, other)]
    constant = [bool(np.ptp(values) == 0) for values in pair]
    if any(constant):
        equal = float(all(constant) and np.allclose(pair[0], pair[1]))
        return Similarity(equal, equal)
    rank: Any = spearmanr(pair[0].ravel(), pair[1].ravel())
    return Similarity(float(rank.statistic), ssim(*pair))


def ssim(one: Heatmaps, other: Heatmaps) -> float:
    """Return the structural similarity of two maps (H, W) in [0, 1], with Gaussian windows of sigma 1.5.

    Source: Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861.
    """
    a, b = one.astype(np.float64), other.astype(np.float64)

    def mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return gaussian_filter(x, 1.5, truncate=3.5)

    ma, mb = mean(a), mean(b)
    va, vb, covariance = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return float(((2 * ma * mb + c1) * (2 * covariance + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


def _shrink(values: Heatmaps) -> Heatmaps:
    height, width = (min(SIDE, length) for length in values.shape)
    pool = torch.nn.AdaptiveAvgPool2d((height, width))
    return pool(torch.from_numpy(np.ascontiguousarray(values))[None])[0].numpy()
