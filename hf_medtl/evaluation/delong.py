"""DeLong's method: areas under ROC curves of the same images, and their covariance."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from hf_medtl.evaluation.resampling import group_index, transformed_t_interval
from hf_medtl.evaluation.score_intervals import Interval, check_level, newcombe_auc_interval

FloatArray = NDArray[np.float64]


class DelongResult(NamedTuple):
    """auc (S,) of S scores, their covariance (S, S), and the fewest groups of a class less one."""

    auc: FloatArray
    covariance: FloatArray
    freedom: int


def delong(positive: ArrayLike, scores: ArrayLike, groups: ArrayLike | None = None) -> DelongResult:
    """ROC AUC of several scores of the same images, with DeLong's covariance (1988, Biometrics 44:837-845).

    By midranks in O(n log n) (Sun & Xu 2014, IEEE Signal Process Lett 21:1389-1393). With groups their images count
    together, and a patient may have both classes (Obuchowski 1997, Biometrics 53:567-578); without, each image is
    taken for independent, which images of one patient are not.

    Args:
        positive: (n,) which images are.
        scores: (n,) or (n, S), the higher, the more likely positive; a tie counts one half.
        groups: (n,) patient of each image.

    Returns:
        Areas; NaN if a class has no image, the covariance also if one has a single group.

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
    number, m, n = s.shape[1], int(y.sum()), int((~y).sum())
    unknown = np.full((number, number), np.nan)
    if not m or not n:
        return DelongResult(np.full(number, np.nan), unknown, -1)
    rank = rankdata(s, axis=0)
    of_positive = (rank[y] - rankdata(s[y], axis=0)) / n  # the share of negatives each positive is above
    of_negative = 1 - (rank[~y] - rankdata(s[~y], axis=0)) / m
    auc = of_positive.mean(axis=0)

    def total(parts: FloatArray, of: NDArray) -> FloatArray:
        return np.stack([np.bincount(of, column, group.max() + 1) for column in (parts - auc).T], axis=1)

    first, second = total(of_positive, group[y]) / m, total(of_negative, group[~y]) / n
    i, j, both = np.unique(group[y]).size, np.unique(group[~y]).size, np.unique(group).size
    if min(i, j) < 2:
        return DelongResult(auc, unknown, min(i, j) - 1)
    cross = both / (both - 1) * (first.T @ second)  # 0 unless a group has both classes
    covariance = i / (i - 1) * (first.T @ first) + j / (j - 1) * (second.T @ second) + cross + cross.T
    return DelongResult(auc, covariance, min(i, j) - 1)


def auc_interval(
    positive: ArrayLike, scores: ArrayLike, groups: ArrayLike | None = None, level: float = 0.95
) -> Interval:
    """ROC AUC with DeLong's standard error on the logit scale and Student's t, that of `metric_intervals`.

    At 0 and 1, where no score is on the wrong side, Newcombe's score interval of as many cases as there are groups.
    Arguments and errors as for `delong`.
    """
    check_level(level)
    areas = delong(positive, np.asarray(scores, np.float64).reshape(-1, 1), groups)
    auc = float(areas.auc[0])
    if math.isnan(auc):
        return Interval(auc, math.nan, math.nan)
    low, high = transformed_t_interval(auc, float(areas.covariance[0, 0]), areas.freedom, (0, 1), level)
    if math.isnan(low):
        y = np.asarray(positive).astype(bool)
        group = np.arange(y.size) if groups is None else group_index(groups, y.size)
        low, high = newcombe_auc_interval(auc, np.unique(group[y]).size, np.unique(group[~y]).size, level)
    return Interval(auc, low, high)
