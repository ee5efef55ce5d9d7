"""How much of what a classifier looks at lies where it should: in the lungs, or in a lesion."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_medtl.evaluation.intervals import mean_intervals, plain
from hf_medtl.explain.maps import Maps
from hf_medtl.explain.sanity import energy


class Region(NamedTuple):
    """Where maps should be.

    Attributes:
        name: what it is, such as lungs.
        source: who says where it is, for people.
        of: file, and the picture in it -> (H, W) of the picture's size, True inside; nowhere if nobody knows.
    """

    name: str
    source: str
    of: Callable[[Path, Image.Image], NDArray[np.bool_]]


class Inside(NamedTuple):
    """Of one map: the share of its energy inside, and the region's share of the picture."""

    energy: float
    area: float


def inside_of(values: Maps, region: NDArray[np.bool_]) -> Inside | None:
    """That of a map (H, W), see `energy`; None where the region is empty."""
    return Inside(*energy(values, region)) if region.any() else None


def energy_inside(
    region: Region, found: Sequence[Inside | None], labels: Sequence[str], groups: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Means over the maps of each label, with 95 % intervals over groups, see `mean_intervals`.

    Args:
        region: where.
        found: (n,) of each map.
        labels: (n,) what they are maps of.
        groups: (n,) patient or duplicate-group of each picture.
        seed: of the bootstrap.

    Returns:
        For JSON. region and source, in words; unknown: number of pictures where nobody knows the region; by_label:
        label -> n, n_groups, summary (a sentence) and value, low, high of inside (share of a map's energy), area (share
        of the picture) and ratio (the one by the other: 1 for a map that does not know the place).
    """
    by_label = {}
    for name in sorted(set(labels)):
        rows = [i for i, one in enumerate(found) if one is not None and labels[i] == name]
        if not rows:
            continue
        inside, area = np.array([found[i] for i in rows], np.float64).T
        group = [groups[i] for i in rows]
        means = mean_intervals({"inside": inside, "area": area, "ratio": inside / area}, group, seed=seed)
        facts = {"n": len(rows), "n_groups": len(set(group)), **{key: plain(value) for key, value in means.items()}}
        by_label[name] = facts | {"summary": _summary(region.name, facts)}
    unknown = sum(one is None for one in found)
    return {"region": region.name, "source": region.source, "unknown": unknown, "by_label": by_label}


def _summary(name: str, facts: dict[str, Any]) -> str:
    def told(key: str, scale: float, digits: int) -> str:
        value, *limits = (
            "?" if facts[key][part] is None else f"{scale * facts[key][part]:.{digits}f}"
            for part in ("value", "low", "high")
        )
        return value if limits == ["?", "?"] else f"{value} [{', '.join(limits)}]"

    return (
        f"{told('inside', 100, 0)} % of the maps' energy lies inside the {name}, which cover {told('area', 100, 0)} % "
        f"of the pictures: {told('ratio', 1, 2)} times as much as of a map that does not know the place "
        f"(n = {facts['n']})."
    )
