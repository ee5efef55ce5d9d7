"""Curves with 95 % bands over groups: ROC, precision-recall, reliability, net benefit, cumulative distribution."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from hf_medtl.evaluation.intervals import bootstrap_means
from hf_medtl.evaluation.metrics import BLOCK_CELLS, calibration_bins
from hf_medtl.evaluation.operating_points import net_benefit
from hf_medtl.evaluation.resampling import bootstrap_weights, group_index
from hf_medtl.evaluation.score_intervals import rate_interval

FloatArray = NDArray[np.float64]
GRID = np.linspace(0, 1, 101)  # where bands are drawn
THRESHOLDS = np.linspace(0.01, 0.99, 99)


class Curve(NamedTuple):
    """The sample's own curve, x and y (m,), and its band, low and high (g,) at the places `at` (g,)."""

    x: FloatArray
    y: FloatArray
    at: FloatArray
    low: FloatArray
    high: FloatArray


class Reliability(NamedTuple):
    """Of each bin (b,): mean probability, share that came true, its 95 % limits, number n of images."""

    predicted: FloatArray
    observed: FloatArray
    low: FloatArray
    high: FloatArray
    n: NDArray[np.int64]


def roc_band(positive: ArrayLike, score: ArrayLike, groups: ArrayLike, resamples: int = 1000, seed: int = 0) -> Curve:
    """Sensitivity (y) against 1 - specificity (x).

    The band is that of the sensitivity at each 1 - specificity (vertical averaging), by percentile bootstrap of whole
    groups within each majority class: 95 % at each place, not of the whole curve at once. It has no width where no
    resample errs, which is no certainty: `intervals.metric_intervals` gives the area's limits.

    Args:
        positive: (n,) which images are.
        score: (n,) the higher, the more likely positive.
        groups: (n,) patient or duplicate-group of each image.
        resamples, seed: of the bootstrap.

    Raises:
        ValueError: unequal lengths, groups missing, or images of one kind only.
    """
    y, s, group = _checked(positive, score, groups)
    false_positive, true_positive, _ = roc_curve(y, s)

    def of_resample(hits: FloatArray, alarms: FloatArray) -> FloatArray:
        rates = np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1])
        return rates[1][np.searchsorted(rates[0], GRID + 1e-12, side="right") - 1]

    return Curve(false_positive, true_positive, GRID, *_ranked_band(y, s, group, of_resample, resamples, seed))


def precision_recall_band(
    positive: ArrayLike, score: ArrayLike, groups: ArrayLike, resamples: int = 1000, seed: int = 0
) -> Curve:
    """Precision (y) against recall (x) in the steps whose sum is the average precision, with the band of precision at
    each recall. Precision holds for the sample's mix of classes only. Arguments and errors as for `roc_band`.
    """
    y, s, group = _checked(positive, score, groups)
    precision, recall, _ = precision_recall_curve(y, s, drop_intermediate=True)
    x, height = recall[::-1], precision[::-1]  # rising recall; the first point is of no image called, by convention
    at = GRID[1:]

    def of_resample(hits: FloatArray, alarms: FloatArray) -> FloatArray:
        first = np.searchsorted(hits / hits[-1], at - 1e-12)
        return hits[first] / (hits[first] + alarms[first])

    low, high = _ranked_band(y, s, group, of_resample, resamples, seed)
    return Curve(np.repeat(x, 2)[1:-1], np.repeat(height, 2)[2:], at, low, high)


def reliability_points(outcome: ArrayLike, probability: ArrayLike, groups: ArrayLike, bins: int = 10) -> Reliability:
    """Share that came true against mean probability in equal-mass bins, with Wilson's limits (`score_intervals.rate`).

    A bootstrap would give a bin without errors no width.

    Args:
        outcome: (n,) whether it came true.
        probability: (n,) of it.
        groups: (n,).
        bins: at most so many.

    Raises:
        ValueError: unequal lengths, or groups missing.
    """
    y, p, group = _same_length(outcome, probability, groups)
    number = calibration_bins(p, bins)
    inside = [number == b for b in np.unique(number)]
    shares = np.array([rate_interval(y, its, group) for its in inside])
    count = np.array([its.sum() for its in inside])
    return Reliability(np.array([p[its].mean() for its in inside]), shares[:, 0], shares[:, 1], shares[:, 2], count)


def net_benefit_band(
    positive: ArrayLike, probability: ArrayLike, groups: ArrayLike, resamples: int = 1000, seed: int = 0
) -> Curve:
    """Net benefit (y) at each threshold (x), see `net_benefit`, with a band as that of `roc_band`."""
    y, p, group = _checked(positive, probability, groups)
    called, odds = p[:, None] >= THRESHOLDS, THRESHOLDS / (1 - THRESHOLDS)
    gains = (called & y[:, None]) - (called & ~y[:, None]) * odds
    draws = _means(gains, bootstrap_weights(y.astype(np.int64), group, resamples, seed))
    return Curve(THRESHOLDS, net_benefit(y, p, THRESHOLDS), THRESHOLDS, *_percentiles(draws))


def ecdf_band(values: ArrayLike, groups: ArrayLike, resamples: int = 1000, seed: int = 0) -> Curve:
    """Share of images (y) with at most a value (x), such as Dice, with its band by bootstrap of groups.

    Args:
        values: (n,) finite.
        groups: (n,).
        resamples, seed: of the bootstrap.

    Raises:
        ValueError: none, unequal lengths, values that are not finite, or groups missing.
    """
    value = np.asarray(values, np.float64)
    at = np.unique(value)
    at = at if at.size <= GRID.size else np.quantile(at, GRID)
    below = (value[:, None] <= at).astype(np.float64)
    return Curve(at, below.mean(axis=0), at, *_percentiles(bootstrap_means(below, groups, None, resamples, seed)))


def _ranked_band(
    y: NDArray[np.bool_],
    score: FloatArray,
    group: NDArray[np.int64],
    of_resample: Callable[[FloatArray, FloatArray], FloatArray],
    resamples: int,
    seed: int,
) -> tuple[FloatArray, FloatArray]:
    """Limits of what `of_resample` makes of true and false positives, both (m,), by falling score."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    weights = bootstrap_weights(y.astype(np.int64), group, resamples, seed)
    rows = []
    step = max(1, BLOCK_CELLS // y.size)
    for start in range(0, resamples, step):
        block = weights[start : start + step, order].astype(np.float64)
        hits, alarms = (np.cumsum(block * its[order], axis=1)[:, ends] for its in (y, ~y))
        whole = (hits[:, -1] > 0) & (alarms[:, -1] > 0)  # patients with images of both kinds can leave out one
        rows += [of_resample(*both) for both in zip(hits[whole], alarms[whole], strict=True)]
    return _percentiles(np.array(rows))


def _means(table: FloatArray, weights: NDArray[np.uint16]) -> FloatArray:
    """(B, M) weighted means of the columns of a table (n, M), a block of resamples (B, n) at a time."""
    step = max(1, BLOCK_CELLS // len(table))
    blocks = (weights[start : start + step].astype(np.float64) for start in range(0, len(weights), step))
    return np.concatenate([block @ table / block.sum(axis=1, keepdims=True) for block in blocks])


def _percentiles(draws: FloatArray) -> tuple[FloatArray, FloatArray]:
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return low, high


def _same_length(*columns: ArrayLike) -> tuple[NDArray[np.bool_], FloatArray, NDArray[np.int64]]:
    y, p = np.asarray(columns[0]).astype(bool), np.asarray(columns[1], np.float64)
    if y.ndim != 1 or y.shape != p.shape or not y.size:
        raise ValueError(f"expected labels and scores of shape (n >= 1,), found {y.shape} and {p.shape}")
    return y, p, group_index(columns[2], y.size)


def _checked(*columns: ArrayLike) -> tuple[NDArray[np.bool_], FloatArray, NDArray[np.int64]]:
    y, p, group = _same_length(*columns)
    if y.all() or not y.any():
        raise ValueError("expected pictures of both kinds, found one: the curve is undefined")
    return y, p, group
