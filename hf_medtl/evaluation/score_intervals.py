"""Score intervals of proportions and areas under curves, which stay valid when no error was observed."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, t

from hf_medtl.evaluation.metrics import classification_metrics, decide


class Interval(NamedTuple):
    """A metric of the whole sample with its confidence limits."""

    value: float
    low: float
    high: float


def check_level(level: float) -> None:
    """Raise ValueError unless a confidence level is between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"expected a confidence level between 0 and 1, got {level}")


def wilson(successes: float, n: float, level: float = 0.95, dof: float = math.inf) -> tuple[float, float]:
    """Return the score interval of a proportion (Wilson 1927, JASA 22:209-212); (0, 1) for n == 0.

    Args:
        successes: 0 to n; fractional where n is an effective sample size.
        n: number of cases.
        level: two-sided confidence, between 0 and 1.
        dof: degrees of freedom of the t quantile that replaces the normal one where n was estimated.

    Raises:
        ValueError: successes not in 0..n, or level not between 0 and 1.
    """
    check_level(level)
    if not 0 <= successes <= n:
        raise ValueError(f"expected successes in 0..n, got {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    proportion, distribution = successes / n, t(dof) if math.isfinite(dof) else norm
    z2 = float(distribution.ppf((1 + level) / 2)) ** 2
    middle = (proportion + z2 / (2 * n)) / (1 + z2 / n)
    margin = math.sqrt(z2) / (1 + z2 / n) * math.sqrt(proportion * (1 - proportion) / n + z2 / (4 * n * n))
    return (
        0.0 if successes == 0 else max(0.0, middle - margin),
        1.0 if successes == n else min(1.0, middle + margin),
    )


def newcombe_auc_interval(auc: float, n_positive: int, n_negative: int, level: float = 0.95) -> tuple[float, float]:
    """Return a score interval of an area under the ROC curve that is valid at 0 and 1.

    Method 5 of Newcombe 2006 (Stat Med 25:559-573): |auc - theta| = z sqrt(V(theta)), V the variance of Hanley and
    McNeil 1982 (Radiology 143:29-36) with m and n in its numerator both replaced by (m + n) / 2.

    Raises:
        ValueError: auc not in 0..1, a class without cases, or level not between 0 and 1.
    """
    check_level(level)
    if not 0 <= auc <= 1 or min(n_positive, n_negative) < 1:
        raise ValueError(f"expected an AUC in 0..1 and cases of both classes, got {auc}, {n_positive}, {n_negative}")
    z, spare = norm.ppf((1 + level) / 2), (n_positive + n_negative) / 2 - 1

    def lower(area: float) -> float:
        def excess(theta: float) -> float:
            shape = 1 + spare * ((1 - theta) / (2 - theta) + theta / (1 + theta))
            return area - theta - z * math.sqrt(theta * (1 - theta) * shape / (n_positive * n_negative))

        # theta = 1 is a root for an area of 1, where V = 0: the limit is the root below.
        return brentq(excess, 0.0, area * (1 - 1e-12)) if area > 0 else 0.0

    return lower(auc), 1 - lower(1 - auc)  # V is symmetric in theta and 1 - theta


def average_precision_floor(auc: float, n_positive: float, n_negative: float) -> float:
    """Return about the lowest average precision that an AUC allows at the sample's prevalence.

    No score interval of average precision is known. It is 1 exactly when the AUC is, so the lower limit of one gives
    that of the other: the lost area is put where it costs most, a fraction 1 - auc of the negatives above every
    positive, so that precision at recall r is r / (r + a), a = (1 - auc) n_negative / n_positive, with mean
    1 - a ln(1 + 1 / a). The minimum over all ROC curves of that area, found numerically, is lower by less than 0.012.
    """
    a = (1 - auc) * n_negative / n_positive
    return 1 - a * math.log1p(1 / a) if a > 0 else 1.0


def rate_interval(
    success: NDArray, eligible: NDArray, group: NDArray, level: float = 0.95
) -> tuple[float, float, float]:
    """Return the proportion of successes among eligible images with Wilson limits.

    Where groups have more than one image, n is the effective sample size, the number of independent images with the
    same variance (Korn & Graubard 1998, Surv Methodol 24:193-201), at most that of the images, and Student's t of the
    groups replaces z. Where all or none succeed the variance is not informative, and n is the number of groups.

    Args:
        success: (n,) bool.
        eligible: (n,) bool, the images that count: the positive ones for sensitivity.
        group: (n,) group index of each image.
        level: two-sided confidence.

    Returns:
        proportion, low, high; NaN, 0, 1 if no image is eligible.
    """
    names, index = np.unique(group[eligible], return_inverse=True)
    groups, n = names.size, index.size
    if n == 0:
        return math.nan, 0.0, 1.0
    rate = float(success[eligible].mean())
    if groups == n or groups < 2 or rate in (0, 1):
        successes = round(rate * groups, 9)  # fractional for a single group whose images differ: the wider limits
        return rate, wilson(math.floor(successes), groups, level)[0], wilson(math.ceil(successes), groups, level)[1]
    excess = np.bincount(index, success[eligible] - rate)
    variance = groups / (groups - 1) * (excess**2).sum() / n**2
    # Plus 1, since a sample's variance is rate (1 - rate) / (n - 1): for independent images this gives n.
    effective = min(n, rate * (1 - rate) / variance + 1) if variance > 0 else n
    return rate, *wilson(rate * effective, effective, level, groups - 1)


def component_intervals(
    y: NDArray, p: NDArray, group: NDArray, positive: int, threshold: float | NDArray | None, level: float
) -> dict[str, NDArray]:
    """Return score intervals of the rates that a metric is the mean of, for metrics that are means of rates.

    Args:
        y: (n,) class indices.
        p: (n, K) probabilities.
        group: (n,) group index of each image.
        positive: as in `classification_metrics`.
        threshold: likewise.
        level: two-sided confidence.

    Returns:
        metric -> (C, 3) of estimate, low, high of its C components.
    """
    decisions = decide(p, positive, threshold)
    components: dict[str, list] = {"accuracy": [rate_interval(y == decisions, y == y, group, level)]}
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
        # proportion of the images that are or are decided positive, so its limits carry over to F1.
        jaccard = np.array(rate_interval(actual & decided, actual | decided, group, level))
        rates["f1"] = tuple(2 * jaccard / (1 + jaccard))
        rates |= _ranking_components(actual, p[:, k], group, level)
        for name, rate in rates.items():
            components.setdefault(name, []).append(rate)
    if p.shape[1] == 2:
        components["balanced_accuracy"] += components["specificity"]
        # Sensitivity + specificity - 1 is the mean of both, each rescaled from 0..1 to -1..1.
        components["youden"] = [tuple(2 * x - 1 for x in rate) for rate in components["balanced_accuracy"]]
    return {name: np.array(rates) for name, rates in components.items()}


def mean_of_components(value: float, components: NDArray) -> tuple[float, float]:
    """Return limits of a mean of independent components (C, 3: estimate, low, high); a single one's own limits.

    Square-and-add method (Newcombe 1998, Stat Med 17:873-890; Zou & Donner 2008, Stat Med 27:1693-1702).
    """
    estimate, low, high = components.T
    below = math.sqrt(((estimate - low) ** 2).sum()) / estimate.size
    above = math.sqrt(((high - estimate) ** 2).sum()) / estimate.size
    return value - below, value + above


def _ranking_components(actual: NDArray, score: NDArray, group: NDArray, level: float) -> dict[str, tuple]:
    n_positive, n_negative = (np.unique(group[mask]).size for mask in (actual, ~actual))
    if not n_positive or not n_negative:
        return dict.fromkeys(("roc_auc", "average_precision"), (math.nan,) * 3)
    values = classification_metrics(actual, np.column_stack([1 - score, score]), names=["roc_auc", "average_precision"])
    auc, precision = float(values["roc_auc"]), float(values["average_precision"])
    auc_low, auc_high = newcombe_auc_interval(auc, n_positive, n_negative, level)
    floor = average_precision_floor(auc_low, actual.sum(), (~actual).sum()) if precision == 1 else math.nan
    return {
        "roc_auc": (auc, auc_low, auc_high),
        "average_precision": (precision, floor, 1.0 if precision == 1 else math.nan),
    }
