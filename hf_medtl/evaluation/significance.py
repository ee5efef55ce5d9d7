"""Significance tests of differences: DeLong, McNemar, bootstrap, jackknife, and Holm's correction."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, chi2, norm, t

from hf_medtl.evaluation.delong import delong
from hf_medtl.evaluation.resampling import (
    bootstrap_group_counts,
    group_index,
    jackknife,
    majority_strata,
    percentile_limits,
)
from hf_medtl.evaluation.score_intervals import check_level


class Difference(NamedTuple):
    """One minus the other, its confidence limits, and the two-sided p-value of none."""

    value: float
    low: float
    high: float
    p_value: float


def auc_difference(
    positive: ArrayLike, one: ArrayLike, other: ArrayLike, groups: ArrayLike | None = None, level: float = 0.95
) -> Difference:
    """ROC AUC of one score minus that of another of the same images (DeLong et al. 1988).

    z is normal as published; with groups it is Student's t of the fewest groups of a class less one. Where the scores
    rank all images alike the difference is 0 with a p-value of 1. Arguments and errors as for `delong`.
    """
    check_level(level)
    areas = delong(positive, np.column_stack([one, other]), groups)
    value = float(areas.auc[0] - areas.auc[1])
    error = math.sqrt(max(0.0, float(areas.covariance @ [1, -1] @ [1, -1]))) if areas.freedom > 0 else math.nan
    if math.isnan(value) or math.isnan(error):
        return Difference(value, math.nan, math.nan, math.nan)
    if error < 1e-12:
        return Difference(value, value, value, 1.0) if value == 0 else Difference(value, math.nan, math.nan, math.nan)
    law = norm if groups is None else t(areas.freedom)
    reach = float(law.ppf((1 + level) / 2)) * error
    return Difference(value, value - reach, value + reach, float(2 * law.sf(abs(value) / error)))


def mcnemar(one_right: ArrayLike, other_right: ArrayLike, groups: ArrayLike | None = None) -> float:
    """Two-sided p-value that two classifiers err equally often on the same images (McNemar 1947).

    Of the images on which they differ: exact binomial if fewer than 25, else chi-squared with Edwards's correction.

    Args:
        one_right, other_right: (n,) whether each decided rightly.
        groups: (n,) patient of each image, to check that there is one of each.

    Raises:
        ValueError: unequal lengths; several images of a group, whose errors go together: use `paired_bootstrap`.
    """
    one, other = np.asarray(one_right).astype(bool), np.asarray(other_right).astype(bool)
    if one.ndim != 1 or one.shape != other.shape:
        raise ValueError(f"expected two decisions a picture, found {one.shape} and {other.shape}")
    if groups is not None and np.bincount(group_index(groups, one.size)).max() > 1:
        raise ValueError(
            "expected one picture a group, found several: McNemar's test does not hold, paired_bootstrap does"
        )
    more, fewer = int((one & ~other).sum()), int((~one & other).sum())
    if more + fewer < 25:
        return float(binomtest(more, more + fewer).pvalue) if more + fewer else 1.0
    return float(chi2.sf((abs(more - fewer) - 1) ** 2 / (more + fewer), 1))


def paired_bootstrap(
    difference: Callable[[NDArray | None], ArrayLike],
    labels: NDArray[np.int64],
    groups: ArrayLike,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """A difference of anything, such as of two models' sensitivity, when groups are drawn: both get the same draws.

    Percentile limits; the p-value is twice the smaller share of draws on either side of 0, itself counted as a draw
    (Davison & Hinkley 1997, 4.4), so never below 2 / (resamples + 1).

    Args:
        difference: of weights (B, n), how often each image counts, -> (B,), and of None -> the sample's own.
        labels: (n,) class indices, within which groups are drawn.
        groups: (n,) as in `metric_intervals`.
        resamples, level, seed: as in `metric_intervals`.
    """
    check_level(level)
    group = group_index(groups, len(labels))
    draws = np.asarray(
        difference(bootstrap_group_counts(majority_strata(labels, group), resamples, seed)[:, group]), np.float64
    )
    draws = draws[~np.isnan(draws)]
    value = float(np.asarray(difference(None)))
    if not draws.size or math.isnan(value):
        return Difference(value, math.nan, math.nan, math.nan)
    side = min((draws <= 0).sum(), (draws >= 0).sum())
    return Difference(value, *percentile_limits(draws, level), min(1.0, 2 * (side + 1) / (draws.size + 1)))


def paired_jackknife(
    difference: Callable[[NDArray | None], ArrayLike],
    labels: NDArray[np.int64],
    groups: ArrayLike,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """The same from leaving out each group in turn, with Student's t.

    Where two models never differ, how far they might is not known: limits are NaN, and the p-value of 0 is 1.

    Args:
        difference: of weights (M, n), 0 for the images left out, -> (M,), and of None -> the sample's own.
        labels, groups, level: as in `paired_bootstrap`.
        seed: of the blocks that are left out together where there are more than 1,000 groups.
    """
    check_level(level)
    group = group_index(groups, len(labels))
    left_out = jackknife(majority_strata(labels, group), group, seed)
    value = float(np.asarray(difference(None)))
    variance, freedom = left_out.variance(np.asarray(difference(left_out.weights), np.float64))
    if math.isnan(value) or not variance > 1e-24 or freedom < 1:
        return Difference(value, math.nan, math.nan, 1.0 if value == 0 else math.nan)
    law, error = t(freedom), math.sqrt(variance)
    reach = float(law.ppf((1 + level) / 2)) * error
    return Difference(value, value - reach, value + reach, float(2 * law.sf(abs(value) / error)))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """p-values of several tests, raised so that the chance of any false finding is that of one (Holm 1979).

    Args:
        p_values: (m,).

    Returns:
        (m,) to compare with the level that one test would have.

    Raises:
        ValueError: not a row of numbers in 0..1.
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"expected p-values (m,) in 0..1, found {p.tolist()}")
    order = np.argsort(p)
    raised = np.empty(p.size)
    raised[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return raised
