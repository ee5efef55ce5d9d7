"""Metrics by subgroup, such as sex, scanner or hospital, and the generalization gap to external data."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_medtl.evaluation.intervals import metric_intervals
from hf_medtl.evaluation.metrics import REPORTED
from hf_medtl.evaluation.resampling import group_index
from hf_medtl.evaluation.score_intervals import Interval

MIN_GROUPS = 10  # per class; with fewer an interval is too wide and too unreliable to be of use


class Subgroup(NamedTuple):
    """Metrics of a subgroup of n images in n_groups groups.

    `groups_of_class` (K,) counts the groups with an image of each class; `warning` is empty if there are enough.
    """

    n: int
    n_groups: int
    groups_of_class: list[int]
    metrics: dict[str, Interval]
    warning: str


def subgroup_metrics(
    labels: ArrayLike,
    probabilities: ArrayLike,
    groups: ArrayLike,
    column: ArrayLike,
    positive: int = 1,
    threshold: float | NDArray[np.float64] | None = None,
    names: Sequence[str] = REPORTED,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Subgroup]:
    """Return metrics with intervals for each value of a metadata column.

    Overlapping intervals do not show that subgroups are equal, and among many subgroups one is the worst by chance: to
    test a difference, name the two subgroups in advance.

    Args:
        labels: (n,) class indices.
        probabilities: (n, K).
        groups: (n,) patient or duplicate group of each image.
        column: (n,) value of each image; missing ones (None, NaN) form a subgroup "(missing)".
        positive: index of the positive one of two classes.
        threshold: probability from which it is decided, or (n,) of them.
        names: metrics.
        resamples: number of bootstrap resamples.
        level: confidence of the limits.
        seed: seed of the bootstrap.

    Returns:
        value as text -> Subgroup, in order of the values.

    Raises:
        ValueError: As `metric_intervals`; a column of another length.
    """
    y, p = np.asarray(labels), np.asarray(probabilities, np.float64)
    group, values = group_index(groups, y.size), np.asarray(column, dtype=object)
    if values.shape != y.shape:
        raise ValueError(f"expected a column of shape {y.shape}, found {values.shape}")
    texts = np.array(["(missing)" if value is None or value != value else str(value) for value in values], dtype=object)
    subgroups = {}
    for text in sorted(set(texts)):
        rows = texts == text
        cut = threshold[rows] if isinstance(threshold, np.ndarray) else threshold
        metrics = metric_intervals(y[rows], p[rows], group[rows], positive, cut, resamples, level, seed, names=names)
        of_class = [np.unique(group[rows & (y == k)]).size for k in range(p.shape[1])]
        warning = small_sample_warning({f"class {k}": count for k, count in enumerate(of_class)})
        subgroups[text] = Subgroup(int(rows.sum()), np.unique(group[rows]).size, of_class, metrics, warning)
    return subgroups


def small_sample_warning(groups: Mapping[str, int]) -> str:
    """Return a warning if a class, of class -> number of groups with an image of it, has too few groups, else ""."""
    few = ", ".join(f"{count} of {name}" for name, count in groups.items() if count < MIN_GROUPS)
    return f"too small to draw conclusions: fewer than {MIN_GROUPS} groups of each class ({few})" if few else ""


Metrics = Mapping[str, Mapping[str, Any]]


def generalization_gap(internal: Metrics, external: Metrics) -> dict[str, dict[str, float | None]]:
    """Return internal minus external value of each metric, with 95 % limits; the samples share no image.

    The limits are computed from those of the two values (MOVER: Newcombe 1998, Stat Med 17:873-890, method 10; Zou &
    Donner 2008, Stat Med 27:1693-1702), so no predictions are needed, and the difference of two values without any
    error has limits, too, where resampling would give 0. They are those of this model and these images, and do not
    include the variation between retrained models.

    Args:
        internal: `metrics` of results.json: name -> value, low, high, and optionally n_labels.
        external: `metrics` of the external evaluation, likewise.

    Returns:
        name -> value, low, high for metrics of both samples. The limits are null if either value has none; all three
        are null if a value is, or if the values are means over different numbers of labels.
    """
    gaps: dict[str, dict[str, float | None]] = {}
    for name in (name for name in external if name in internal):
        a, b = internal[name], external[name]
        value = low = high = None
        if None not in (a["value"], b["value"]) and a.get("n_labels") == b.get("n_labels"):
            value = a["value"] - b["value"]
            if None not in (a["low"], a["high"], b["low"], b["high"]):
                low = value - math.hypot(a["value"] - a["low"], b["high"] - b["value"])
                high = value + math.hypot(a["high"] - a["value"], b["value"] - b["low"])
        gaps[name] = {"value": value, "low": low, "high": high}
    return gaps
