"""Subgroup metrics, such as of each sex, scanner or hospital, and the generalization gap."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from hf_medtl.evaluation.intervals import metric_intervals
from hf_medtl.evaluation.metrics import REPORTED
from hf_medtl.evaluation.resampling import group_index
from hf_medtl.evaluation.score_intervals import Interval

MIN_GROUPS = 10  # groups of a class below which an interval is too wide, and too unsure itself, to say anything


class Subgroup(NamedTuple):
    """n images of n_groups; groups_of_class (K,) with an image of each; warning, or "" if it is large enough."""

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
    threshold: float | None = None,
    names: Sequence[str] = REPORTED,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Subgroup]:
    """Metrics with intervals of the images of each value of a metadata column.

    Intervals that overlap don't say that slices are equal, and of many slices one is worst by chance: to test a
    difference, name the two slices before looking.

    Args:
        labels, probabilities, groups, positive, threshold, names, resamples, level, seed: as in `metric_intervals`.
        column: (n,) value of each image; missing ones (None, NaN) are a slice "(missing)" of their own.

    Returns:
        value as text -> Slice, in order of the values.

    Raises:
        ValueError: as `metric_intervals`; a column of another length.
    """
    y, p = np.asarray(labels), np.asarray(probabilities, np.float64)
    group, found = group_index(groups, y.size), np.asarray(column, dtype=object)
    if found.shape != y.shape:
        raise ValueError(f"expected a column of shape {y.shape}, found {found.shape}")
    texts = np.array(["(missing)" if value is None or value != value else str(value) for value in found], dtype=object)
    slices = {}
    for text in sorted(set(texts)):
        rows = texts == text
        metrics = metric_intervals(
            y[rows], p[rows], group[rows], positive, threshold, resamples, level, seed, names=names
        )
        of_class = [np.unique(group[rows & (y == k)]).size for k in range(p.shape[1])]
        warning = small_sample_warning({f"class {k}": count for k, count in enumerate(of_class)})
        slices[text] = Subgroup(int(rows.sum()), np.unique(group[rows]).size, of_class, metrics, warning)
    return slices


def small_sample_warning(groups: Mapping[str, int]) -> str:
    """Why a slice can't say anything, from class -> number of groups with an image of it; "" if it can."""
    few = ", ".join(f"{count} of {name}" for name, count in groups.items() if count < MIN_GROUPS)
    return f"too small to say anything: fewer than {MIN_GROUPS} groups of each class ({few})" if few else ""


Metrics = Mapping[str, Mapping[str, Any]]


def generalization_gap(inside: Metrics, outside: Metrics) -> dict[str, dict[str, float | None]]:
    """Value inside minus value outside of each metric, with 95 % limits; the two samples have no image in common.

    The limits come from those of the two values (MOVER: Newcombe 1998, Stat Med 17:873-890, method 10; Zou & Donner
    2008, Stat Med 27:1693-1702), so neither needs its predictions, and a difference of two values without a single
    error has limits, too, which resampling would put at 0. They are those of these models and images: how others of
    the same training would fall is not in them.

    Args:
        inside, outside: `metrics` of results.json: name -> value, low, high, and perhaps n_labels.

    Returns:
        name -> value, low, high for metrics that both have; the limits are null where either has none, all is null
        where a value is, or where the values are means over different numbers of labels.
    """
    found: dict[str, dict[str, float | None]] = {}
    for name, there in outside.items():
        here = inside.get(name)
        if here is None:
            continue
        if None in (here["value"], there["value"]) or here.get("n_labels") != there.get("n_labels"):
            found[name] = {"value": None, "low": None, "high": None}
            continue
        value = here["value"] - there["value"]
        low = high = None
        if None not in (here["low"], here["high"], there["low"], there["high"]):
            low = value - math.hypot(here["value"] - here["low"], there["high"] - there["value"])
            high = value + math.hypot(here["high"] - here["value"], there["value"] - there["low"])
        found[name] = {"value": value, "low": low, "high": high}
    return found
