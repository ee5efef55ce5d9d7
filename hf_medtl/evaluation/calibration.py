"""Calibration: temperature scaling, calibration slope and intercept, Brier decomposition, calibration error."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit, log_expit, log_softmax, logit
from sklearn.linear_model import LogisticRegression

FloatArray = NDArray[np.float64]

LOG_TEMPERATURE_SD = 0.5  # standard deviation of the normal prior of log T
CERTAIN = 1e-7  # float32 rounds to 1 from here on: probabilities are clipped to CERTAIN..1 - CERTAIN before the logit


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


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the most probable temperature T of softmax(logits / T), between 0.05 and 20 (Guo et al. 2017).

    Fit it on validation data, never on test data. log T has a normal prior around 0, so that T stays near 1 unless the
    data say otherwise. Without it, a few images that are all classified correctly would give T = 0, a certainty that
    they do not support; smoothing targets by Platt's rule (1999) would make easy tasks far too cautious.

    Args:
        logits: (n, K) of validation images.
        labels: (n,) class indices.
    """
    true_class = np.arange(len(labels)), labels
    return _most_probable(lambda temperature: log_softmax(logits / temperature, axis=1)[true_class].sum())


def fit_multilabel_temperature(logits: NDArray[np.floating], targets: NDArray[np.bool_]) -> float:
    """Return one temperature T of sigmoid(logits / T) for all labels, as `fit_temperature`.

    Args:
        logits: (n, K) of validation images.
        targets: (n, K) True where an image has a label.
    """
    signed = np.where(targets, logits, -logits)
    return _most_probable(lambda temperature: log_expit(signed / temperature).sum())


def calibration_line(outcome: ArrayLike, probability: ArrayLike) -> CalibrationLine:
    """Fit a logistic recalibration (Cox 1958; Van Calster et al. 2016, J Clin Epidemiol 74:167-176), unpenalised.

    Perfect probabilities have slope 1 and both intercepts 0. A slope below 1 means that they are too extreme, an
    in_the_large below 0 that they are too high on average.

    Args:
        outcome: (n,) True where the event occurred.
        probability: (n,) predicted probability of the event.

    Returns:
        The line; slope and intercept are NaN where the probability separates the classes or is constant (the
        likelihood has no maximum), all three where the outcome is constant.

    Raises:
        ValueError: unequal lengths, no values, or values outside 0..1.
    """
    y, p = _checked(outcome, probability)
    if y.all() or not y.any():
        return CalibrationLine(np.nan, np.nan, np.nan)
    x = logit(np.clip(p, CERTAIN, 1 - CERTAIN))
    in_the_large = offset_to_mean(x, float(y.mean()))
    events, others = x[y], x[~y]
    if events.min() >= others.max() or others.min() >= events.max():
        return CalibrationLine(np.nan, np.nan, in_the_large)
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12).fit(x[:, None], y)
    return CalibrationLine(float(model.coef_[0, 0]), float(model.intercept_[0]), in_the_large)


def offset_to_mean(log_odds: FloatArray, mean: float) -> float:
    """Return the number to add to log-odds (n,) so that the mean of their probabilities is `mean`, in 0..1 exclusive.

    The maximum likelihood estimate of an intercept at slope 1, if `mean` is the proportion of events.
    """
    return float(brentq(lambda offset: float(expit(log_odds + offset).mean() - mean), -40, 40))


def brier_decomposition(outcome: ArrayLike, probability: ArrayLike, bins: int = 10) -> BrierDecomposition:
    """Decompose the Brier score (Murphy 1973, J Appl Meteorol 12:595-600) over equal-mass bins.

    reliability is the squared distance of a bin's mean probability from its event rate, resolution that of its event
    rate from the overall one, uncertainty the score of predicting the overall rate. `within` is the contribution of
    the spread of probabilities inside bins (Stephenson et al. 2008, Weather Forecast 23:752-757), so that the four give
    the Brier score; 0 where each bin has one value. Errors as for `calibration_line`, and ValueError for fewer than one
    bin.

    Args:
        outcome: (n,) True for images of the positive class.
        probability: (n,) predicted probability of it.
        bins: number of equal-mass bins.
    """
    y, p = _checked(outcome, probability)
    weight, mean, rate = _binned(y, p, bins)
    overall = y.mean()
    reliability, resolution = weight @ (mean - rate) ** 2, weight @ (rate - overall) ** 2
    uncertainty = overall * (1 - overall)
    within = ((p - y) ** 2).mean() - (reliability - resolution + uncertainty)
    return BrierDecomposition(float(reliability), float(resolution), float(uncertainty), float(within))


def calibration_error(outcome: ArrayLike, probability: ArrayLike, bins: int = 10) -> float:
    """Return the debiased root mean squared calibration error over equal-mass bins.

    The usual `ece` of perfect probabilities is not 0 but about the noise of a bin's event rate: several percent for 200
    images in 10 bins. For the squared error that noise can be estimated, rate (1 - rate) / (size - 1), and subtracted
    (Bröcker 2012, Clim Dyn 39:655-667; Kumar et al. 2019, NeurIPS, `debiased`); negative results are given as 0. Being
    a root mean square, it is above the mean absolute error that `ece` estimates.

    Errors as for `calibration_line`; NaN where a bin has a single image, whose noise can't be estimated.

    Args:
        outcome: (n,) True for images of the positive class.
        probability: (n,) predicted probability of it.
        bins: number of equal-mass bins.
    """
    y, p = _checked(outcome, probability)
    weight, mean, rate = _binned(y, p, bins)
    count = np.round(weight * y.size)
    if (count < 2).any():
        return np.nan
    squared = float(weight @ ((mean - rate) ** 2 - rate * (1 - rate) / (count - 1)))
    return float(np.sqrt(max(squared, 0.0)))


def calibration_bins(confidence: FloatArray, bins: int = 10) -> NDArray[np.int64]:
    """Return the equal-mass bin of each case, (n,) in 0..bins-1; equal values are always in one bin.

    Raises:
        ValueError: fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"expected at least 1 bin, got {bins}")
    # By the count of smaller values, an integer: no case gets into the wrong bin by rounding.
    n_smaller = np.searchsorted(np.sort(confidence), confidence, side="left")
    return n_smaller * bins // confidence.size


def _most_probable(log_likelihood: Callable[[float], float]) -> float:
    """Return the temperature of the highest posterior density between 0.05 and 20."""

    def loss(x: float) -> float:
        return (x / LOG_TEMPERATURE_SD) ** 2 / 2 - float(log_likelihood(float(np.exp(x))))

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def _binned(y: NDArray[np.bool_], p: FloatArray, bins: int) -> tuple[FloatArray, ...]:
    """Return the fraction of cases, the mean probability and the event rate of each non-empty bin."""
    index = np.unique(calibration_bins(p, bins), return_inverse=True)[1]
    count = np.bincount(index)
    return count / y.size, np.bincount(index, p) / count, np.bincount(index, y) / count


def _checked(outcome: ArrayLike, probability: ArrayLike) -> tuple[NDArray[np.bool_], FloatArray]:
    y, p = np.asarray(outcome).astype(bool), np.asarray(probability, np.float64)
    if y.ndim != 1 or y.shape != p.shape or not y.size:
        raise ValueError(f"expected outcome and probability of shape (n >= 1,), found {y.shape} and {p.shape}")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"expected probabilities in 0..1, found {p.min():g}..{p.max():g}")
    return y, p
