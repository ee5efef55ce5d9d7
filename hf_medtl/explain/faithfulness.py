"""Faithfulness of heatmaps: deletion and insertion curves, and ROAD."""

from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata
from transformers import PreTrainedModel

from hf_medtl.common.progress import track
from hf_medtl.explain.maps import Heatmaps, import_extra, predict_probabilities

Array = NDArray[np.float64]


class DeletionInsertionCurves(NamedTuple):
    """Probability of the class, (n, steps + 1), while pixels are removed or restored in the order of a heatmap."""

    deletion: Array
    insertion: Array

    def gain(self) -> Array:
        """Return (n,) area under the insertion curve minus that under the deletion curve; 0 for a random order."""
        return (self.insertion - self.deletion).mean(axis=1)


def deletion_insertion_curves(
    model: PreTrainedModel,
    pixels: torch.Tensor,
    classes: NDArray[np.int64],
    maps: Heatmaps,
    steps: int = 12,
    seed: int = 0,
    batch_size: int = 32,
) -> DeletionInsertionCurves:
    """Compute deletion and insertion curves.

    Removed pixels are blurred with a sigma of a tenth of the side. Petsiuk et al. make them grey when deleting, which
    in a radiograph looks like a finding. Pixels with the same value come in random order.

    Source: Petsiuk et al. 2018, RISE, https://arxiv.org/abs/1806.07421.

    Args:
        model: a classifier.
        pixels: (n, C, H, W).
        classes: (n,) classes whose probability is followed.
        maps: (n, H, W).
        steps: number of steps, with equally many pixels each.
        seed: seed of the order of ties.
        batch_size: images per forward pass.
    """
    sigma = max(pixels.shape[-2:]) / 10
    blurred = torch.from_numpy(gaussian_filter(pixels.cpu().numpy(), (0, 0, sigma, sigma)))
    curves: list[Array] = []
    images = zip(pixels.cpu(), blurred, classes, pixel_ranks(maps, seed), strict=True)
    for image, blank, index, rank in track(images, "Deleting and inserting pixels", len(pixels)):
        order = torch.from_numpy(rank)
        removed = torch.stack([order > 1 - k / steps for k in range(steps + 1)])[:, None]  # the first k of all steps
        masked = torch.cat([torch.where(removed, blank, image), torch.where(removed, image, blank)])
        batches = masked.split(batch_size)
        curves.append(np.concatenate([predict_probabilities(model, batch)[:, index] for batch in batches]))
    deletion, insertion = np.split(np.stack(curves), 2, axis=1)
    return DeletionInsertionCurves(deletion, insertion)


def road(
    model: PreTrainedModel,
    pixels: torch.Tensor,
    classes: NDArray[np.int64],
    maps: Heatmaps,
    percentiles: tuple[int, ...] = (50, 70, 90),
    seed: int = 0,
) -> Array:
    """Compute ROAD (n,): half the probability lost by removing the most relevant pixels rather than the least.

    Removed pixels are imputed from their surroundings, so that the shape of the mask carries no information. 0 for a
    random order. Source: Rong et al. 2022, A consistent and efficient evaluation strategy for attribution methods,
    https://arxiv.org/abs/2202.00449, as implemented in the package grad-cam.

    Args:
        model: a classifier.
        pixels: (n, C, H, W).
        classes: (n,) classes whose probability is followed.
        maps: (n, H, W).
        percentiles: of the map; pixels above are removed.
        seed: seed of the order of ties and of the noise.
    """
    library = import_extra("pytorch_grad_cam.metrics.road")
    # TRAP: a map with many ties would lose all or none of them, and with no pixel left there is nothing to impute from.
    # Ranks have no ties.
    order = pixel_ranks(maps, seed).astype(np.float32)
    targets = [itemgetter(int(index)) for index in classes]

    def probabilities(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(predict_probabilities(model, x))

    combined: Any = library.ROADCombined(list(percentiles))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return np.asarray(combined(pixels.cpu(), order, targets, probabilities), np.float64)


def random_maps(number: int, size: tuple[int, int], seed: int = 0, grid: int = 7) -> Heatmaps:
    """Return (number, H, W) uninformative maps: noise on a coarse grid, as smooth as heatmaps of a network."""
    noise = torch.rand(number, 1, grid, grid, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, size, mode="bilinear")[:, 0].numpy()


def pixel_ranks(maps: Heatmaps, seed: int = 0) -> Array:
    """Return the ranks of the pixels of each map (n, H, W), in (0, 1] with 1 for the highest; ties in random order."""
    rng = np.random.default_rng(seed)
    ranks = np.empty(maps.shape)
    for values, row in zip(maps, ranks, strict=True):
        shuffled = rng.permutation(values.size)
        row.ravel()[shuffled] = rankdata(values.ravel()[shuffled], method="ordinal") / values.size
    return ranks
