"""Score intervals of proportions and areas under curves, which stay valid when no error was observed."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, t

from hf_medtl.evaluation.metrics import classification_metrics, decide


class Interval(NamedTuple):
    """A metric of the whole sample and its confidence limits, in the metric's own unit."""

    value: float
    low: float
    high: float


def check_level(level: float) -> None:
    """ValueError unless a confidence level is between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"expected a confidence level between 0 and 1, got {level}")


def wilson(successes: float, n: float, level: float = 0.95, freedom: float = math.inf) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927, JASA 22:209-212); (0, 1) for n == 0.

    Args:
        successes: 0 to n; not whole where n is an effective number.
        n: cases.
        level: two-sided confidence, between 0 and 1.
        freedom: degrees of freedom of the t quantile that takes the normal one's place where n was estimated.

    Raises:
        ValueError: successes not in 0..n, or level not between 0 and 1.
    """
    check_level(level)
    if not 0 <= successes <= n:
        raise ValueError(f"expected successes in 0..n, got {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, float(t.ppf((1 + level) / 2, freedom)) ** 2 if math.isfinite(freedom) else 0.0
    z2 = z2 or float(norm.ppf((1 + level) / 2)) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = math.sqrt(z2) / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (
        0.0 if successes == 0 else max(0.0, middle - reach),
        1.0 if successes == n else min(1.0, middle + reach),
    )


def newcombe_auc_interval(auc: float, n_positive: int, n_negative: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of an area under the ROC curve, of use at 0 and 1.

    Method 5 of Newcombe 2006 (Stat Med 25:559-573): |auc - theta| = z sqrt(V(theta)), V the variance of Hanley and
    McNeil 1982 (Radiology 143:29-36) with m and n in its numerator both replaced by (m + n) / 2.

    Raises:
        ValueError: auc not in 0..1, a class without cases, or level not between 0 and 1.
    """
    check_level(level)
    if not 0 <= auc <= 1 or min(n_positive, n_negative) < 1:
        raise ValueError(f"expected an AUC in 0..1 of at least 1 case a class, got {auc}, {n_positive}, {n_negative}")
    z, spare = norm.ppf((1 + level) / 2), (n_positive + n_negative) / 2 - 1

    def lower(area: float) -> float:
        def excess(theta: float) -> float:
            shape = 1 + spare * ((1 - theta) / (2 - theta) + theta / (1 + theta))
            return area - theta - z * math.sqrt(theta * (1 - theta) * shape / (n_positive * n_negative))

        # theta = 1 solves it for an area of 1, where V = 0: the limit sought lies below.
        return brentq(excess, 0.0, area * (1 - 1e-12)) if area > 0 else 0.0

    return lower(auc), 1 - lower(1 - auc)  # V is symmetric in theta and 1 - theta


def average_precision_floor(auc: float, n_positive: float, n_negative: float) -> float:
    """About the least average precision that an AUC allows at the sample's prevalence.

    No score interval of average precision is known. It is 1 exactly when the AUC is, so the lower limit of one gives
    that of the other: the area lost is put where it costs most, a share 1 - auc of the negatives above every positive,
    so that precision at recall r is r / (r + a), a = (1 - auc) n_negative / n_positive, with mean 1 - a ln(1 + 1 / a).
    The least over all ROC curves of that area, found numerically, is lower by less than 0.012.
    """
    a = (1 - auc) * n_negative / n_positive
    return 1 - a * math.log1p(1 / a) if a > 0 else 1.0


def rate_interval(
    success: NDArray, concerned: NDArray, group: NDArray, level: float = 0.95
) -> tuple[float, float, float]:
    """The share of successes among the images concerned, and its Wilson limits.

    Where a group has several of them n is the effective number, that which independent images would need for the
    same variance (Korn & Graubard 1998, Surv Methodol 24:193-201), at most that of the images, and z is Student's t
    of the groups. Where all succeed or none does the variance says nothing, and n is the number of groups.

    Args:
        success, concerned: (n,) bool.
        group: (n,) numbered.
        level: two-sided confidence.

    Returns:
        share, low, high; NaN, 0, 1 if no image is concerned.
    """
    names, index = np.unique(group[concerned], return_inverse=True)
    groups, n = names.size, index.size
    if n == 0:
        return math.nan, 0.0, 1.0
    share = float(success[concerned].mean())
    if groups == n or groups < 2 or share in (0, 1):
        successes = round(share * groups, 9)  # not whole for a single group whose images differ: the wider limits
        return share, wilson(math.floor(successes), groups, level)[0], wilson(math.ceil(successes), groups, level)[1]
    excess = np.bincount(index, success[concerned] - share)
    variance = groups / (groups - 1) * (excess**2).sum() / n**2
    # 1 more, since a sample's variance is share (1 - share) / (n - 1): independent images give back their number.
    effective = min(n, share * (1 - share) / variance + 1) if variance > 0 else n
    return share, *wilson(share * effective, effective, level, groups - 1)


def component_intervals(
    y: NDArray, p: NDArray, group: NDArray, positive: int, threshold: float | NDArray | None, level: float
) -> dict[str, NDArray]:
    """The rates, each with score limits, that a metric is the mean of, for those metrics that are such means.

    Args:
        y, p, group: (n,) class indices, (n, K) probabilities, (n,) numbered groups.
        positive, threshold: as in `classification_metrics`.
        level: two-sided confidence.

    Returns:
        metric -> (C, 3) of estimate, low, high.
    """
    decisions = decide(p, positive, threshold)
    parts: dict[str, list] = {"accuracy": [rate_interval(y == decisions, y == y, group, level)]}
    for k in [positive] if p.shape[1] == 2 else range(p.shape[1]):
        actual, decided = y == k, decisions == k
        rates = {
            "sensitivity": rate_interval(decided, actual, group, level),
            "specificity": rate_interval(~decided, ~actual, group, level),
            "ppv": rate_interval(actual, decided, group, level),
            "npv": rate_interval(~actual, ~decided, group, level),
        }
        rates["balanced_accuracy"] = rates["sensitivity"]
        # F1 = 2 J / (1 + J), rising in J = TP / (TP + FP + FN) (Hand et al. 2021, Mach Learn 110:451-456): a plain
        # proportion of the images that are or are called positive, so its limits carry over to F1.
        jaccard = np.array(rate_interval(actual & decided, actual | decided, group, level))
        rates["f1"] = tuple(2 * jaccard / (1 + jaccard))
        rates |= _ranking_parts(actual, p[:, k], group, level)
        for name, its in rates.items():
            parts.setdefault(name, []).append(its)
    if p.shape[1] == 2:
        parts["balanced_accuracy"] += parts["specificity"]
        # Sensitivity + specificity - 1 is the mean of both, each stretched from 0..1 to -1..1.
        parts["youden"] = [tuple(2 * x - 1 for x in its) for its in parts["balanced_accuracy"]]
    return {name: np.array(rates) for name, rates in parts.items()}


def mean_of_components(value: float, parts: NDArray) -> tuple[float, float]:
    """Limits of a mean of independent parts (C, 3: estimate, low, high); of a single one, its own.

    Square and add (Newcombe 1998, Stat Med 17:873-890; Zou & Donner 2008, Stat Med 27:1693-1702).
    """
    estimate, low, high = parts.T
    below = math.sqrt(((estimate - low) ** 2).sum()) / estimate.size
    above = math.sqrt(((high - estimate) ** 2).sum()) / estimate.size
    return value - below, value + above


def _ranking_parts(actual: NDArray, score: NDArray, group: NDArray, level: float) -> dict[str, tuple]:
    n_positive, n_negative = (np.unique(group[mask]).size for mask in (actual, ~actual))
    if not n_positive or not n_negative:
        return dict.fromkeys(("roc_auc", "average_precision"), (math.nan,) * 3)
    areas = classification_metrics(actual, np.column_stack([1 - score, score]), names=["roc_auc", "average_precision"])
    auc, precision = float(areas["roc_auc"]), float(areas["average_precision"])
    auc_low, auc_high = newcombe_auc_interval(auc, n_positive, n_negative, level)
    floor = average_precision_floor(auc_low, actual.sum(), (~actual).sum()) if precision == 1 else math.nan
    return {
        "roc_auc": (auc, auc_low, auc_high),
        "average_precision": (precision, floor, 1.0 if precision == 1 else math.nan),
    }
