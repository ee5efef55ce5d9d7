"""Curves with 95 % bands over groups: ROC, precision-recall, reliability, net benefit, risk-coverage, distribution."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from hf_medtl.evaluation.calibration import calibration_bins
from hf_medtl.evaluation.intervals import bootstrap_means
from hf_medtl.evaluation.metrics import BLOCK_CELLS
from hf_medtl.evaluation.operating_points import net_benefit
from hf_medtl.evaluation.resampling import bootstrap_weights, group_index
from hf_medtl.evaluation.score_intervals import rate_interval

FloatArray = NDArray[np.float64]
GRID = np.linspace(0, 1, 101)  # x coordinates of bands
THRESHOLDS = np.linspace(0.01, 0.99, 99)


class Curve(NamedTuple):
    """The sample's curve, x and y (m,), and its band, low and high (g,) at the x coordinates `at` (g,), or none."""

    x: FloatArray
    y: FloatArray
    at: FloatArray
    low: FloatArray
    high: FloatArray


class Reliability(NamedTuple):
    """Mean probability, observed proportion, its 95 % limits and the number n of images in each bin (b,)."""

    predicted: FloatArray
    observed: FloatArray
    low: FloatArray
    high: FloatArray
    n: NDArray[np.int64]


def roc_band(positive: ArrayLike, score: ArrayLike, groups: ArrayLike | None, resamples: int = 1000) -> Curve:
    """Return sensitivity (y) against 1 - specificity (x).

    The band is that of the sensitivity at each 1 - specificity (vertical averaging), by percentile bootstrap of whole
    groups within each majority class: pointwise 95 %, not simultaneous. It has zero width where no resample has an
    error, which does not mean certainty: `intervals.metric_intervals` gives limits of the area.

    Args:
        positive: (n,) True for positive images.
        score: (n,) higher is more likely positive.
        groups: (n,) patient or duplicate group of each image; None for a curve without a band.
        resamples: number of bootstrap resamples.

    Raises:
        ValueError: Unequal lengths, missing groups, or images of one class only.
    """
    y, s, group = _check_two_classes(positive, score, groups)
    false_positive, true_positive, _ = roc_curve(y, s)

    def sensitivity_on_grid(hits: FloatArray, alarms: FloatArray) -> FloatArray:
        x, height = np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1])
        return height[np.searchsorted(x, GRID + 1e-12, side="right") - 1]

    return Curve(false_positive, true_positive, GRID, *_ranked_band(y, s, group, sensitivity_on_grid, resamples))


def precision_recall_band(
    positive: ArrayLike, score: ArrayLike, groups: ArrayLike | None, resamples: int = 1000
) -> Curve:
    """Return precision (y) against recall (x), as the step curve whose area is the average precision.

    The band is that of the precision at each recall. Precision holds for the sample's prevalence only. Arguments and
    errors as for `roc_band`.
    """
    y, s, group = _check_two_classes(positive, score, groups)
    precision, recall, _ = precision_recall_curve(y, s, drop_intermediate=True)
    x, height = recall[::-1], precision[::-1]  # rising recall; by convention the first point has no image called
    at = GRID[1:]

    def precision_on_grid(hits: FloatArray, alarms: FloatArray) -> FloatArray:
        first = np.searchsorted(hits / hits[-1], at - 1e-12)
        return hits[first] / (hits[first] + alarms[first])

    low, high = _ranked_band(y, s, group, precision_on_grid, resamples)
    return Curve(np.repeat(x, 2)[1:-1], np.repeat(height, 2)[2:], at, low, high)


def reliability_points(outcome: ArrayLike, probability: ArrayLike, groups: ArrayLike | None) -> Reliability:
    """Return observed proportion against mean probability in ten equal-mass bins, with Wilson limits (`rate_interval`).

    A bootstrap would give a bin without errors zero width.

    Args:
        outcome: (n,) True where the event occurred.
        probability: (n,) predicted probability of the event.
        groups: (n,) patient or duplicate group of each image; None for limits of NaN.

    Raises:
        ValueError: Unequal lengths, or missing groups.
    """
    y, p, group = _check_lengths(outcome, probability, groups)
    number = calibration_bins(p)
    members = [number == b for b in np.unique(number)]
    index = np.arange(y.size) if group is None else group
    observed, low, high = np.array([rate_interval(y, rows, index) for rows in members]).T
    if group is None:
        low, high = np.full((2, len(members)), np.nan)
    predicted, n = (np.array([measure(p[rows]) for rows in members]) for measure in (np.mean, np.size))
    return Reliability(predicted, observed, low, high, n)


def net_benefit_band(positive: ArrayLike, probability: ArrayLike, groups: ArrayLike, resamples: int = 1000) -> Curve:
    """Return net benefit (y) at each threshold (x), see `net_benefit`, with a band as for `roc_band`."""
    y, p, _ = _check_two_classes(positive, probability, groups)
    called, odds = p[:, None] >= THRESHOLDS, THRESHOLDS / (1 - THRESHOLDS)
    gains = (called & y[:, None]) - (called & ~y[:, None]) * odds
    draws = bootstrap_means(gains, groups, y, resamples)
    return Curve(THRESHOLDS, net_benefit(y, p, THRESHOLDS), THRESHOLDS, *_percentiles(draws))


def ecdf_band(values: ArrayLike, groups: ArrayLike, resamples: int = 1000) -> Curve:
    """Return the empirical cumulative distribution of a value per image, such as Dice, with its bootstrap band.

    Args:
        values: (n,) finite.
        groups: (n,) patient or duplicate group of each image.
        resamples: number of bootstrap resamples.

    Raises:
        ValueError: No values, unequal lengths, values that are not finite, or missing groups.
    """
    value = np.asarray(values, np.float64)
    at = np.unique(value)
    at = at if at.size <= GRID.size else np.quantile(at, GRID)
    below = (value[:, None] <= at).astype(np.float64)
    return Curve(at, below.mean(axis=0), at, *_percentiles(bootstrap_means(below, groups, None, resamples)))


def risk_coverage(confidence: FloatArray, correct: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """Return the risk-coverage curve: error rate among the most confident images, for each coverage.

    Images of equal confidence are decided together. The mean of the error rates is the area under the curve (Geifman &
    El-Yaniv 2017, Selective classification for deep neural networks).

    Args:
        confidence: (n,) higher is more certain.
        correct: (n,) True where the decision is correct.

    Returns:
        coverage (m,) and error rate (m,), m at most n.
    """
    order = np.argsort(-confidence, kind="stable")
    decided = np.arange(1, len(order) + 1)
    errors = (~correct[order]).cumsum()
    last = np.append(confidence[order][1:] != confidence[order][:-1], True)
    return decided[last] / len(order), (errors / decided)[last]


def _ranked_band(
    y: NDArray[np.bool_],
    score: FloatArray,
    group: NDArray[np.int64] | None,
    curve_of: Callable[[FloatArray, FloatArray], FloatArray],
    resamples: int,
) -> tuple[FloatArray, FloatArray]:
    """Return limits of `curve_of`, a function of true and false positives, both (m,), by decreasing score.

    Without groups they are empty.
    """
    if group is None:
        return np.empty(0), np.empty(0)
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    weights = bootstrap_weights(y.astype(np.int64), group, resamples)
    rows = []
    step = max(1, BLOCK_CELLS // y.size)
    for start in range(0, resamples, step):
        block = weights[start : start + step, order].astype(np.float64)
        hits, alarms = (np.cumsum(block * is_class[order], axis=1)[:, ends] for is_class in (y, ~y))
        both = (hits[:, -1] > 0) & (alarms[:, -1] > 0)  # groups with images of both classes can leave out one class
        rows += [curve_of(*counts) for counts in zip(hits[both], alarms[both], strict=True)]
    return _percentiles(np.array(rows))


def _percentiles(draws: FloatArray) -> tuple[FloatArray, FloatArray]:
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return low, high


def _check_lengths(
    outcome: ArrayLike, score: ArrayLike, groups: ArrayLike | None
) -> tuple[NDArray[np.bool_], FloatArray, NDArray[np.int64] | None]:
    y, p = np.asarray(outcome).astype(bool), np.asarray(score, np.float64)
    if y.ndim != 1 or y.shape != p.shape or not y.size:
        raise ValueError(f"expected labels and scores of shape (n >= 1,), found {y.shape} and {p.shape}")
    return y, p, None if groups is None else group_index(groups, y.size)


def _check_two_classes(
    positive: ArrayLike, score: ArrayLike, groups: ArrayLike | None
) -> tuple[NDArray[np.bool_], FloatArray, NDArray[np.int64] | None]:
    y, p, group = _check_lengths(positive, score, groups)
    if y.all() or not y.any():
        raise ValueError("expected positive and negative images, found only one class: the curve is undefined")
    return y, p, group
