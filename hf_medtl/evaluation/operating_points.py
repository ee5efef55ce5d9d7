"""Operating points and decision curves: sensitivity at a specificity, net benefit."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_curve


class OperatingPoint(NamedTuple):
    """A point of the ROC curve: scores at or above `threshold` are decided positive."""

    threshold: float
    sensitivity: float
    specificity: float


def sensitivity_at(specificity: float, positive: ArrayLike, scores: ArrayLike) -> OperatingPoint:
    """Return the point of highest sensitivity with at least a given specificity; on a tie the most specific.

    It is optimistic if measured on the images that it was chosen on: choose thresholds on validation data. For the
    highest specificity at a sensitivity negate labels and scores.

    Args:
        specificity: 0 to 1.
        positive: (n,) True for positive images.
        scores: (n,) higher is more likely positive.

    Returns:
        A point of the ROC curve, never between two; the threshold is inf if no image may be decided positive. NaN if a
        class has no image.

    Raises:
        ValueError: unequal lengths, scores that are not finite, a specificity outside 0..1.
    """
    y, s = _checked(positive, scores)
    if not 0 <= specificity <= 1:
        raise ValueError(f"expected a specificity in 0..1, found {specificity}")
    if y.all() or not y.any():
        return OperatingPoint(np.nan, np.nan, np.nan)
    false_positive, true_positive, threshold = roc_curve(y, s, drop_intermediate=False)
    allowed = 1 - false_positive >= specificity - 1e-12  # 1 - 0.05 is below 0.95
    best = np.lexsort([-false_positive, true_positive, allowed])[-1]
    return OperatingPoint(float(threshold[best]), float(true_positive[best]), float(1 - false_positive[best]))


def net_benefit(positive: ArrayLike, probability: ArrayLike, thresholds: ArrayLike) -> NDArray[np.float64]:
    """Compute net benefit: true positives per image, less false positives weighted by the odds of the threshold.

    TP / n - FP / n * t / (1 - t), the y axis of a decision curve (Vickers & Elkin 2006, Med Decis Making 26:565-574).
    Treating none has 0; for treating all pass a probability of 1 for every image.

    Args:
        positive: (n,) True for positive images.
        probability: (n,) predicted probability of being positive.
        thresholds: (T,) at or above 0 and below 1.

    Returns:
        (T,).

    Raises:
        ValueError: unequal lengths or thresholds outside that range.
    """
    y, p = _checked(positive, probability)
    t = np.atleast_1d(np.asarray(thresholds, np.float64))
    if not ((t >= 0) & (t < 1)).all():
        raise ValueError(f"expected thresholds from 0 to below 1, found {t.min():g}..{t.max():g}")
    decided = p[None] >= t[:, None]
    return (decided & y).mean(axis=1) - (decided & ~y).mean(axis=1) * t / (1 - t)


def _checked(positive: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    y, s = np.asarray(positive).astype(bool), np.asarray(scores, np.float64)
    if y.ndim != 1 or y.shape != s.shape or not y.size:
        raise ValueError(f"expected labels and scores of shape (n >= 1,), found {y.shape} and {s.shape}")
    if not np.isfinite(s).all():
        raise ValueError(f"expected finite scores, found {int((~np.isfinite(s)).sum())} that are not")
    return y, s
