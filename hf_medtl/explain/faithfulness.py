"""Do maps rank places by what they do to the answer? Places are taken away and put back in a map's order."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata
from transformers import PreTrainedModel

from hf_medtl.explain.maps import Maps, library_of, predict

Array = NDArray[np.float64]


class Curves(NamedTuple):
    """Probability of the class, (n, steps + 1), as the first to last place of the map is taken away, or put back."""

    deletion: Array
    insertion: Array

    def gain(self) -> Array:
        """(n,) area under the insertion curve minus that under the deletion curve; 0 for an order without meaning."""
        return (self.insertion - self.deletion).mean(axis=1)


def curves(
    model: PreTrainedModel,
    pixels: torch.Tensor,
    classes: NDArray[np.int64],
    maps: Maps,
    steps: int = 12,
    seed: int = 0,
    batch_size: int = 32,
) -> Curves:
    """Deletion and insertion curves.

    A place that is away is blurred with a sigma of a tenth of the side. Petsiuk et al. make it grey when deleting,
    which in a radiograph looks like a finding. Places with the same value come in random order.

    Source: Petsiuk et al. 2018, RISE, https://arxiv.org/abs/1806.07421.

    Args:
        model: a classifier.
        pixels: (n, C, H, W).
        classes: (n,) whose probability is followed.
        maps: (n, H, W).
        steps: of equally many pixels.
        seed: of the order of equals.
        batch_size: pictures at a time.
    """
    sigma = max(pixels.shape[-2:]) / 10
    blurred = torch.from_numpy(gaussian_filter(pixels.cpu().numpy(), (0, 0, sigma, sigma)))
    found: list[Array] = []
    for picture, blank, index, share in zip(pixels.cpu(), blurred, classes, ranks(maps, seed), strict=True):
        order = torch.from_numpy(share)
        away = torch.stack([order > 1 - k / steps for k in range(steps + 1)])[:, None]  # the first k of all steps
        masked = torch.cat([torch.where(away, blank, picture), torch.where(away, picture, blank)])
        found.append(np.concatenate([predict(model, part)[:, index] for part in masked.split(batch_size)]))
    deletion, insertion = np.split(np.stack(found), 2, axis=1)
    return Curves(deletion, insertion)


def road(
    model: PreTrainedModel,
    pixels: torch.Tensor,
    classes: NDArray[np.int64],
    maps: Maps,
    percentiles: tuple[int, ...] = (50, 70, 90),
    seed: int = 0,
) -> Array:
    """(n,) ROAD: half of how much more probability is left without the least relevant places than without the most.

    What is taken away is guessed from its surroundings, so that its shape tells nothing. 0 for an order without
    meaning. Source: Rong et al. 2022, A consistent and efficient evaluation strategy for attribution methods,
    https://arxiv.org/abs/2202.00449, as the package grad-cam has it.

    Args:
        model, pixels, classes, maps: as for `curves`.
        percentiles: of the map; the share above is taken away.
        seed: of the order of equals and of the noise.
    """
    library = library_of("pytorch_grad_cam.metrics.road")
    # TRAP: a map with many equal values would have all or none of them taken away; without any left there is nothing
    # to guess from. Ranks have no equals.
    order = ranks(maps, seed).astype(np.float32)
    targets = [_Chance(int(index)) for index in classes]

    def chances(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(predict(model, x))

    combined: Any = library.ROADCombined(list(percentiles))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return np.asarray(combined(pixels.cpu(), order, targets, chances), np.float64)


class _Chance:
    """A probability."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, chances: torch.Tensor) -> torch.Tensor:
        return chances[self.index]


def chance_maps(number: int, size: tuple[int, int], seed: int = 0, places: int = 7) -> Maps:
    """(number, H, W) maps that know nothing: noise on a coarse grid, as smooth as those of a network."""
    noise = torch.rand(number, 1, places, places, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, size, mode="bilinear")[:, 0].numpy()


def ranks(maps: Maps, seed: int = 0) -> Array:
    """Ranks of the places of each map (n, H, W), above 0 to 1 for the highest; equals in random order."""
    rng = np.random.default_rng(seed)
    found = np.empty(maps.shape)
    for values, into in zip(maps, found, strict=True):
        shuffled = rng.permutation(values.size)
        into.ravel()[shuffled] = rankdata(values.ravel()[shuffled], method="ordinal") / values.size
    return found
