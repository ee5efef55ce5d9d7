"""Localisation of heatmaps: the fraction of their energy inside a region such as the lungs or a lesion."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.intervals import mean_intervals, to_json
from hf_medtl.explain.maps import Heatmaps


class Region(NamedTuple):
    """Region where heatmaps should be.

    Attributes:
        name: such as lungs.
        source: origin of the region, for display.
        mask_for: image file, and the image in it -> (H, W) of its size, True inside; all False if unknown.
    """

    name: str
    source: str
    mask_for: Callable[[Path, Image.Image], NDArray[np.bool_]]


class EnergyInRegion(NamedTuple):
    """Fraction of a map's energy inside a region, and the region's fraction of the image."""

    energy: float
    area: float


def energy_fraction(values: Heatmaps, mask: NDArray[Any]) -> EnergyInRegion:
    """Return the fraction of a map's sum inside a mask, and the mask's fraction of the image, both (H, W).

    A map without any energy counts as uniform: it is independent of the mask.

    Source: Wang et al. 2020, Score-CAM, the energy-based pointing game, https://arxiv.org/abs/1910.01279.

    Raises:
        MedtlError: the sizes differ.
    """
    if values.shape != mask.shape:
        raise MedtlError(f"A mask must have the size of its image: found {mask.shape} for an image of {values.shape}.")
    inside, total = mask > 0, float(values.sum())
    area = float(inside.mean())
    return EnergyInRegion(float(values[inside].sum()) / total if total > 0 else area, area)


def energy_in_region(values: Heatmaps, region: NDArray[np.bool_]) -> EnergyInRegion | None:
    """Return the fractions for a map, see `energy_fraction`; None where the region is empty.

    Args:
        values: (H, W) heatmap.
        region: (H, W) True inside the region.
    """
    return energy_fraction(values, region) if region.any() else None


def summarise_energy(
    region: Region,
    energies: Sequence[EnergyInRegion | None],
    labels: Sequence[str],
    groups: Sequence[str],
    seed: int = 0,
) -> dict[str, Any]:
    """Average over the maps of each label, with 95 % intervals over groups, see `mean_intervals`.

    Args:
        region: the region.
        energies: (n,) result of each map.
        labels: (n,) label that each map explains.
        groups: (n,) patient or duplicate group of each image.
        seed: seed of the bootstrap.

    Returns:
        For JSON. region and source, as text; unknown: number of images with an unknown region; by_label: label -> n,
        n_groups, summary (a sentence) and value, low, high of inside (fraction of a map's energy), area (fraction of
        the image) and ratio (the former by the latter: 1 for a map that is independent of the region).
    """
    by_label = {}
    for name in sorted(set(labels)):
        rows = [i for i, one in enumerate(energies) if one is not None and labels[i] == name]
        if not rows:
            continue
        inside, area = np.array([energies[i] for i in rows], np.float64).T
        group = [groups[i] for i in rows]
        means = mean_intervals({"inside": inside, "area": area, "ratio": inside / area}, group, seed=seed)
        facts = {"n": len(rows), "n_groups": len(set(group)), **{key: to_json(value) for key, value in means.items()}}
        by_label[name] = facts | {"summary": _summary(region.name, facts)}
    unknown = sum(one is None for one in energies)
    return {"region": region.name, "source": region.source, "unknown": unknown, "by_label": by_label}


def _summary(name: str, facts: dict[str, Any]) -> str:
    def estimate(key: str, scale: float, digits: int) -> str:
        value, *limits = (
            "?" if facts[key][part] is None else f"{scale * facts[key][part]:.{digits}f}"
            for part in ("value", "low", "high")
        )
        return value if limits == ["?", "?"] else f"{value} [{', '.join(limits)}]"

    return (
        f"{estimate('inside', 100, 0)} % of the maps' energy lies inside the {name}, which cover "
        f"{estimate('area', 100, 0)} % of the images: {estimate('ratio', 1, 2)} times as much as expected from a map "
        f"that is independent of the region (n = {facts['n']})."
    )
