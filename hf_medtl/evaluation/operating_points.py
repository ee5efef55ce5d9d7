"""Operating points and decision curves: sensitivity at a specificity, net benefit, predictive values."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_curve


class OperatingPoint(NamedTuple):
    """Positive is decided from `threshold` on."""

    threshold: float
    sensitivity: float
    specificity: float


def sensitivity_at(specificity: float, positive: ArrayLike, scores: ArrayLike) -> OperatingPoint:
    """The point of highest sensitivity among those of at least a specificity; among equals the most specific.

    Chosen on the images that it is measured on, it is better than with others: choose thresholds on validation data.

    Args:
        specificity: 0 to 1.
        positive: (n,) which images are.
        scores: (n,) the higher, the more likely positive.

    Returns:
        A point of the ROC curve, never between two; the threshold is inf if nothing may be called. NaN if a class has
        no image.

    Raises:
        ValueError: unequal lengths, scores that are not finite, a specificity that is not in 0..1.
    """
    return _best(positive, scores, specificity, "specificity")


def specificity_at(sensitivity: float, positive: ArrayLike, scores: ArrayLike) -> OperatingPoint:
    """The point of highest specificity among those of at least a sensitivity; else as `sensitivity_at`."""
    return _best(positive, scores, sensitivity, "sensitivity")


def net_benefit(positive: ArrayLike, probability: ArrayLike, thresholds: ArrayLike) -> NDArray[np.float64]:
    """True positives an image, less false ones weighed by the odds of the threshold: a decision curve.

    TP / n - FP / n * t / (1 - t) (Vickers & Elkin 2006, Med Decis Making 26:565-574). To treat none is 0; to treat all
    is the same with a probability of 1 for everyone.

    Args:
        positive: (n,) which images are.
        probability: (n,) of that.
        thresholds: (T,) at or above 0 and below 1.

    Returns:
        (T,).

    Raises:
        ValueError: unequal lengths or thresholds that are not.
    """
    y, p = _checked(positive, probability)
    t = np.atleast_1d(np.asarray(thresholds, np.float64))
    if not ((t >= 0) & (t < 1)).all():
        raise ValueError(f"expected thresholds from 0 to below 1, found {t.min():g}..{t.max():g}")
    called = p[None] >= t[:, None]
    return (called & y).mean(axis=1) - (called & ~y).mean(axis=1) * t / (1 - t)


def predictive_values_at(prevalence: ArrayLike, sensitivity: float, specificity: float) -> tuple[NDArray, NDArray]:
    """PPV and NPV where a share `prevalence` is positive, by Bayes' rule; those of a test set hold for its mix only.

    Returns:
        Both of the shape of `prevalence`, NaN where nothing would be called so.

    Raises:
        ValueError: a number that is not in 0..1.
    """
    share = np.asarray(prevalence, np.float64)
    for name, value in (("prevalence", share), ("sensitivity", sensitivity), ("specificity", specificity)):
        if not np.all((np.asarray(value) >= 0) & (np.asarray(value) <= 1)):
            raise ValueError(f"expected a {name} in 0..1, found {value}")
    tp, fp = share * sensitivity, (1 - share) * (1 - specificity)
    tn, fn = (1 - share) * specificity, share * (1 - sensitivity)
    nothing = np.full(share.shape, np.nan)
    return (
        np.divide(tp, tp + fp, out=nothing.copy(), where=tp + fp > 0),
        np.divide(tn, tn + fn, out=nothing.copy(), where=tn + fn > 0),
    )


def _best(positive: ArrayLike, scores: ArrayLike, least: float, fixed: str) -> OperatingPoint:
    y, s = _checked(positive, scores)
    if not 0 <= least <= 1:
        raise ValueError(f"expected a {fixed} in 0..1, found {least}")
    if y.all() or not y.any():
        return OperatingPoint(np.nan, np.nan, np.nan)
    false_positive, true_positive, threshold = roc_curve(y, s, drop_intermediate=False)
    points = {"sensitivity": true_positive, "specificity": 1 - false_positive}
    (other,) = points.keys() - {fixed}
    allowed = points[fixed] >= least - 1e-12  # 1 - 0.05 is below 0.95
    order = np.lexsort([points[fixed], points[other], allowed])
    best = order[-1]
    return OperatingPoint(float(threshold[best]), float(true_positive[best]), float(1 - false_positive[best]))


def _checked(positive: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    y, s = np.asarray(positive).astype(bool), np.asarray(scores, np.float64)
    if y.ndim != 1 or y.shape != s.shape or not y.size:
        raise ValueError(f"expected labels and scores of shape (n >= 1,), found {y.shape} and {s.shape}")
    if not np.isfinite(s).all():
        raise ValueError(f"expected finite scores, found {int((~np.isfinite(s)).sum())} that are not")
    return y, s
