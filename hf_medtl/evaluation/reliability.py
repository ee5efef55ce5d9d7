"""Calibration metrics: calibration slope and intercept, Brier decomposition, calibration error."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from hf_medtl.evaluation.metrics import calibration_bins

CERTAIN = 1e-7  # float32 gives 1 from here on: the logit of a certain probability is cut to that of 1 - CERTAIN


class CalibrationLine(NamedTuple):
    """slope and intercept of logit P(y) = intercept + slope * logit(p); in_the_large is the intercept at slope 1."""

    slope: float
    intercept: float
    in_the_large: float


class BrierDecomposition(NamedTuple):
    """brier = reliability - resolution + uncertainty + within, each a mean squared difference of probabilities."""

    reliability: float
    resolution: float
    uncertainty: float
    within: float


def calibration_line(outcome: ArrayLike, probability: ArrayLike) -> CalibrationLine:
    """Logistic recalibration (Cox 1958; Van Calster et al. 2016, J Clin Epidemiol 74:167-176), unpenalised.

    Perfect probabilities have slope 1 and both intercepts 0. A slope below 1 says that they are too extreme, an
    in_the_large below 0 that they are too high on the whole.

    Args:
        outcome: (n,) whether it came true.
        probability: (n,) of it.

    Returns:
        The line; slope and intercept are NaN where the classes are separable by the probability or it is constant (the
        likelihood has no maximum), all three where the outcome is constant.

    Raises:
        ValueError: unequal lengths, none, or values that are no probabilities.
    """
    y, p = _checked(outcome, probability)
    if y.all() or not y.any():
        return CalibrationLine(np.nan, np.nan, np.nan)
    x = logit(np.clip(p, CERTAIN, 1 - CERTAIN))
    in_the_large = _newton(np.ones((y.size, 1)), x, y)[0]
    ones, others = x[y], x[~y]
    if ones.min() >= others.max() or others.min() >= ones.max():
        return CalibrationLine(np.nan, np.nan, float(in_the_large))
    intercept, slope = _newton(np.column_stack([np.ones(y.size), x]), np.zeros(y.size), y)
    return CalibrationLine(float(slope), float(intercept), float(in_the_large))


def brier_decomposition(outcome: ArrayLike, probability: ArrayLike, bins: int = 10) -> BrierDecomposition:
    """Murphy's decomposition (1973, J Appl Meteorol 12:595-600) over equal-mass bins.

    reliability: squared distance of mean probability and share in a bin. resolution: of the bin's share and that of
    all. uncertainty: that of guessing the share of all. `within` is what the spread of probabilities inside a bin adds
    (Stephenson et al. 2008, Weather Forecast 23:752-757), so that the four give the Brier score; 0 where each bin has
    one value. Arguments and errors as for `calibration_line`, and ValueError for fewer than one bin.
    """
    y, p = _checked(outcome, probability)
    size, mean, share = _binned(y, p, bins)
    base = y.mean()
    reliability, resolution = size @ (mean - share) ** 2, size @ (share - base) ** 2
    uncertainty = base * (1 - base)
    rest = ((p - y) ** 2).mean() - (reliability - resolution + uncertainty)
    return BrierDecomposition(float(reliability), float(resolution), float(uncertainty), float(rest))


def calibration_error(outcome: ArrayLike, probability: ArrayLike, bins: int = 10) -> float:
    """Root mean squared calibration error over equal-mass bins, the noise of the bins' shares taken off.

    The usual `ece` of perfect probabilities is not 0 but about the noise of a bin's share: of 200 images in 10 bins
    several percent. Of the squared error that noise can be estimated, share (1 - share) / (size - 1), and subtracted
    (Bröcker 2012, Clim Dyn 39:655-667; Kumar et al. 2019, NeurIPS, `debiased`); what is below 0 is given as 0. It
    squares, so it is above the mean absolute error that `ece` is after.

    Arguments and errors as for `calibration_line`; NaN where a bin has one image, whose noise nothing tells.
    """
    y, p = _checked(outcome, probability)
    size, mean, share = _binned(y, p, bins)
    count = np.round(size * y.size)
    if (count < 2).any():
        return np.nan
    squared = float(size @ ((mean - share) ** 2 - share * (1 - share) / (count - 1)))
    return float(np.sqrt(max(squared, 0.0)))


def _binned(y: NDArray[np.bool_], p: NDArray[np.float64], bins: int) -> tuple[NDArray[np.float64], ...]:
    """Share of the cases, mean probability and share that came true, of each bin that has any."""
    index = np.unique(calibration_bins(p, bins), return_inverse=True)[1]
    count = np.bincount(index)
    return count / y.size, np.bincount(index, p) / count, np.bincount(index, y) / count


def _newton(design: NDArray[np.float64], offset: NDArray[np.float64], y: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Coefficients of greatest likelihood of a logistic regression."""

    def likelihood(beta: NDArray[np.float64]) -> float:
        eta = offset + design @ beta
        return float((y * eta - np.logaddexp(0, eta)).sum())

    beta = np.zeros(design.shape[1])
    for _ in range(100):
        chance = expit(offset + design @ beta)
        weight = np.maximum(chance * (1 - chance), 1e-12)
        step = np.linalg.solve(design.T @ (weight[:, None] * design), design.T @ (y - chance))
        while likelihood(beta + step) < likelihood(beta) and np.abs(step).max() > 1e-12:
            step = step / 2  # full steps overshoot where probabilities are extreme
        beta = beta + step
        if np.abs(step).max() < 1e-10:
            break
    return beta


def _checked(outcome: ArrayLike, probability: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    y, p = np.asarray(outcome).astype(bool), np.asarray(probability, np.float64)
    if y.ndim != 1 or y.shape != p.shape or not y.size:
        raise ValueError(f"expected outcome and probability of shape (n >= 1,), found {y.shape} and {p.shape}")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"expected probabilities in 0..1, found {p.min():g}..{p.max():g}")
    return y, p
