"""DeLong's method: ROC AUCs of several scores of the same images, and their covariance."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from hf_medtl.evaluation.resampling import group_index, transformed_t_interval
from hf_medtl.evaluation.score_intervals import Interval, check_level, newcombe_auc_interval

FloatArray = NDArray[np.float64]


class DelongResult(NamedTuple):
    """ROC AUC (S,) of S scores, their covariance (S, S), and degrees of freedom (fewest groups of a class - 1)."""

    auc: FloatArray
    covariance: FloatArray
    dof: int


def delong(positive: ArrayLike, scores: ArrayLike, groups: ArrayLike | None = None) -> DelongResult:
    """Compute the ROC AUC of several scores with DeLong's covariance (1988, Biometrics 44:837-845).

    By midranks in O(n log n) (Sun & Xu 2014, IEEE Signal Process Lett 21:1389-1393). With groups their images count
    together, and a patient may have both classes (Obuchowski 1997, Biometrics 53:567-578); without, images are assumed
    to be independent, which images of one patient are not.

    Args:
        positive: (n,) True for positive images.
        scores: (n,) or (n, S), higher is more likely positive; a tie counts one half.
        groups: (n,) patient of each image.

    Returns:
        AUCs and covariance; NaN if a class has no image, the covariance also if a class has a single group.

    Raises:
        ValueError: unequal lengths, scores that are not finite, groups missing.
    """
    y, s = np.asarray(positive).astype(bool), np.asarray(scores, np.float64)
    s = s[:, None] if s.ndim == 1 else s
    if y.ndim != 1 or s.ndim != 2 or len(s) != y.size:
        raise ValueError(f"expected labels (n,) and scores (n,) or (n, S), found {y.shape} and {np.shape(scores)}")
    if not np.isfinite(s).all():
        raise ValueError(f"expected finite scores, found {int((~np.isfinite(s)).sum())} that are not")
    group = np.arange(y.size) if groups is None else group_index(groups, y.size)
    n_scores, m, n = s.shape[1], int(y.sum()), int((~y).sum())
    undefined = np.full((n_scores, n_scores), np.nan)
    if not m or not n:
        return DelongResult(np.full(n_scores, np.nan), undefined, -1)
    rank = rankdata(s, axis=0)
    below_positive = (rank[y] - rankdata(s[y], axis=0)) / n  # fraction of negatives below each positive
    above_negative = 1 - (rank[~y] - rankdata(s[~y], axis=0)) / m
    auc = below_positive.mean(axis=0)

    def group_sums(components: FloatArray, index: NDArray) -> FloatArray:
        return np.stack([np.bincount(index, column, group.max() + 1) for column in (components - auc).T], axis=1)

    v10, v01 = group_sums(below_positive, group[y]) / m, group_sums(above_negative, group[~y]) / n
    i, j, both = np.unique(group[y]).size, np.unique(group[~y]).size, np.unique(group).size
    if min(i, j) < 2:
        return DelongResult(auc, undefined, min(i, j) - 1)
    cross = both / (both - 1) * (v10.T @ v01)  # 0 unless a group has both classes
    covariance = i / (i - 1) * (v10.T @ v10) + j / (j - 1) * (v01.T @ v01) + cross + cross.T
    return DelongResult(auc, covariance, min(i, j) - 1)


def auc_interval(
    positive: ArrayLike, scores: ArrayLike, groups: ArrayLike | None = None, level: float = 0.95
) -> Interval:
    """Return the ROC AUC with limits from DeLong's standard error on the logit scale and Student's t.

    At 0 and 1, where the variance is 0, it is Newcombe's score interval with groups counted as cases. Arguments and
    errors as for `delong`; `level` is the two-sided confidence, between 0 and 1.
    """
    check_level(level)
    result = delong(positive, np.asarray(scores, np.float64).reshape(-1, 1), groups)
    auc = float(result.auc[0])
    if math.isnan(auc):
        return Interval(auc, math.nan, math.nan)
    low, high = transformed_t_interval(auc, float(result.covariance[0, 0]), result.dof, (0, 1), level)
    if math.isnan(low):
        y = np.asarray(positive).astype(bool)
        group = np.arange(y.size) if groups is None else group_index(groups, y.size)
        low, high = newcombe_auc_interval(auc, np.unique(group[y]).size, np.unique(group[~y]).size, level)
    return Interval(auc, low, high)
