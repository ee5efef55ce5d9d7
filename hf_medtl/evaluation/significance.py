"""Significance tests of differences: DeLong, McNemar, bootstrap, jackknife, and Holm's correction."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, chi2, norm, t

from hf_medtl.evaluation.delong import delong
from hf_medtl.evaluation.resampling import (
    bootstrap_weights,
    group_index,
    jackknife,
    majority_strata,
    percentile_limits,
)
from hf_medtl.evaluation.score_intervals import check_level


class Difference(NamedTuple):
    """A difference, first minus second, with confidence limits and the two-sided p-value of no difference."""

    value: float
    low: float
    high: float
    p_value: float


def auc_difference(
    positive: ArrayLike, one: ArrayLike, other: ArrayLike, groups: ArrayLike | None = None, level: float = 0.95
) -> Difference:
    """Test the difference in ROC AUC of two scores of the same images (DeLong et al. 1988).

    The test statistic is normal as published, or with groups Student's t with the fewest groups of a class less one as
    degrees of freedom. Where both scores rank all images alike the difference is 0 with a p-value of 1. Errors as for
    `delong`.

    Args:
        positive: (n,) True for images of the positive class.
        one: (n,) scores, higher for positive images.
        other: (n,) likewise.
        groups: (n,) patient or duplicate group of each image; None for independent images.
        level: two-sided confidence.
    """
    check_level(level)
    aucs = delong(positive, np.column_stack([one, other]), groups)
    value = float(aucs.auc[0] - aucs.auc[1])
    error = math.sqrt(max(0.0, float(aucs.covariance @ [1, -1] @ [1, -1]))) if aucs.dof > 0 else math.nan
    if math.isnan(value) or math.isnan(error):
        return Difference(value, math.nan, math.nan, math.nan)
    if error < 1e-12:
        return Difference(value, value, value, 1.0) if value == 0 else Difference(value, math.nan, math.nan, math.nan)
    return _symmetric(value, error, norm if groups is None else t(aucs.dof), level)


def mcnemar(one_right: ArrayLike, other_right: ArrayLike, groups: ArrayLike | None = None) -> float:
    """Return the two-sided p-value of McNemar's test (1947): two classifiers err equally often on the same images.

    Over the images on which they disagree: exact binomial if fewer than 25, else chi-squared with Edwards's correction.

    Args:
        one_right: (n,) True where the first classifier is correct.
        other_right: (n,) likewise for the second.
        groups: (n,) patient of each image, to check that each has one image.

    Raises:
        ValueError: unequal lengths; more than one image of a group, whose errors are correlated: use
            `paired_bootstrap`.
    """
    one, other = np.asarray(one_right).astype(bool), np.asarray(other_right).astype(bool)
    if one.ndim != 1 or one.shape != other.shape:
        raise ValueError(f"expected two decisions per image, found {one.shape} and {other.shape}")
    if groups is not None and np.bincount(group_index(groups, one.size)).max() > 1:
        raise ValueError(
            "expected one image per group, found more: McNemar's test does not hold, paired_bootstrap does"
        )
    only_one, only_other = int((one & ~other).sum()), int((~one & other).sum())
    discordant = only_one + only_other
    if discordant < 25:
        return float(binomtest(only_one, discordant).pvalue) if discordant else 1.0
    return float(chi2.sf((abs(only_one - only_other) - 1) ** 2 / discordant, 1))


def paired_bootstrap(
    difference: Callable[[NDArray | None], ArrayLike],
    labels: NDArray[np.int64],
    groups: ArrayLike,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Test a difference, such as of two models' sensitivity, by a bootstrap over groups that both share.

    Percentile limits; the p-value is twice the smaller proportion of draws on either side of 0, the sample itself
    counted as a draw (Davison & Hinkley 1997, 4.4), so never below 2 / (resamples + 1).

    Args:
        difference: maps weights (B, n), how often each image counts, to (B,) differences, and None to the sample's own.
        labels: (n,) class indices, within which groups are drawn.
        groups: (n,) as in `metric_intervals`.
        resamples: number of draws.
        level: two-sided confidence, between 0 and 1.
        seed: of the draws.
    """
    check_level(level)
    group = group_index(groups, len(labels))
    draws = np.asarray(difference(bootstrap_weights(labels, group, resamples, seed)), np.float64)
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
    """Test a difference by a jackknife over groups, with Student's t.

    Where two models never differ the variance is unknown: limits are NaN, and the p-value of a difference of 0 is 1.

    Args:
        difference: maps weights (M, n), 0 for the images left out, to (M,) differences, and None to the sample's own.
        labels: (n,) class indices, within which groups are left out.
        groups: (n,) as in `metric_intervals`.
        level: two-sided confidence, between 0 and 1.
        seed: of the blocks that are left out together where there are more than 1,000 groups.
    """
    check_level(level)
    group = group_index(groups, len(labels))
    left_out = jackknife(majority_strata(labels, group), group, seed)
    value = float(np.asarray(difference(None)))
    variance, dof = left_out.variance(np.asarray(difference(left_out.weights), np.float64))
    if math.isnan(value) or not variance > 1e-24 or dof < 1:
        return Difference(value, math.nan, math.nan, 1.0 if value == 0 else math.nan)
    return _symmetric(value, math.sqrt(variance), t(dof), level)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjust p-values (m,) of m tests to control the family-wise error rate (Holm 1979).

    Returns:
        (m,) to compare with the level of a single test.

    Raises:
        ValueError: not one-dimensional or outside 0..1.
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"expected p-values (m,) in 0..1, found {p.tolist()}")
    order = np.argsort(p)
    adjusted = np.empty(p.size)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return adjusted


def _symmetric(value: float, error: float, distribution: Any, level: float) -> Difference:
    """Return limits and p-value from a standard error and the distribution of value / error without a difference."""
    margin = float(distribution.ppf((1 + level) / 2)) * error
    return Difference(value, value - margin, value + margin, float(2 * distribution.sf(abs(value) / error)))
