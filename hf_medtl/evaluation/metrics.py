"""Classification metrics under integer case weights, many bootstrap resamples at once.

Shapes: n cases, K classes, B resamples. Every metric is a fraction of one except `brier` (0 to 1 for two classes,
0 to 2 for more). A metric that is not defined for a sample is NaN, never 0.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

BLOCK_CELLS = 2_000_000  # resamples x cases held as float64 at a time: 16 MB an array


def classification_metrics(
    labels: ArrayLike,
    probabilities: ArrayLike,
    positive: int = 1,
    threshold: float | FloatArray | None = None,
    weights: ArrayLike | None = None,
    bins: int = 10,
) -> dict[str, float | FloatArray]:
    """Every metric of a classifier, in a fixed order.

    Two classes: about class `positive`, decided when its probability is at least `threshold` (0.5 if None).
    More classes: decided by argmax; sensitivity, specificity, ppv, npv, f1, roc_auc and average_precision are the
    mean over classes of one-versus-rest, NaN if any class has none; `positive` is not used.

    roc_auc is the Mann-Whitney probability, a tie counting one half. average_precision is the step sum over distinct
    scores, not interpolated. f1 is 2 TP / (2 TP + FP + FN). brier is the mean squared error of the positive class
    (K == 2) or summed over classes (K > 2; Brier 1950, Mon Weather Rev 78:1-3). ece is over `bins` equal-mass bins of
    the positive-class probability (K == 2) or of the top-label confidence against correctness (K > 2; Guo et al. 2017,
    ICML), the bins taken from the unweighted sample.

    Args:
        labels: (n,) true class indices.
        probabilities: (n, K), rows summing to 1 within 1e-3.
        positive: the class of interest when K == 2.
        threshold: probability of `positive`, one for all cases or (n,) one for each; only for K == 2.
        weights: (n,) or (B, n), not negative: how often each case counts.
        bins: calibration bins.

    Returns:
        accuracy, balanced_accuracy, sensitivity, specificity, ppv, npv, f1, roc_auc, average_precision, brier, ece:
        floats, or (B,) arrays if the weights are (B, n).

    Raises:
        ValueError: on shapes, values or class indices other than these.
    """
    probabilities = _checked_probabilities(probabilities)
    n, n_classes = probabilities.shape
    labels = _checked_classes(labels, n_classes, "labels", n)
    decisions = decide(probabilities, positive, threshold)
    rows = _checked_weights(weights, n)

    classes = [positive] if n_classes == 2 else list(range(n_classes))
    scores = probabilities[:, classes]
    actual = labels[:, None] == classes
    decided = decisions[:, None] == classes
    correct = labels == decisions
    if n_classes == 2:
        confidence, outcome = scores[:, 0], actual[:, 0]
    else:
        confidence, outcome = probabilities.max(axis=1), correct
    in_bin = calibration_bins(confidence, bins)[:, None] == np.arange(bins)

    # Each column is summed for itself: a difference of sums (FN = P - TP) leaves rounding where there should be 0,
    # and 0 / 0 would then give a number in place of NaN.
    columns: list[NDArray] = [actual & decided, actual, decided, ~actual & ~decided, ~actual, ~decided]
    columns += [in_bin * (confidence - outcome)[:, None]]
    columns += [correct[:, None], ((scores - actual) ** 2).sum(axis=1, keepdims=True), np.ones((n, 1))]
    design = np.concatenate(columns, axis=1, dtype=np.float64)
    rankings = [_ranking(score) for score in scores.T]

    sums, areas = [], []
    step = max(1, BLOCK_CELLS // n)
    for start in range(0, len(rows), step):
        block = rows[start : start + step].astype(np.float64)
        sums.append(block @ design)
        areas.append([_ranking_areas(block, y, *ranking) for y, ranking in zip(actual.T, rankings, strict=True)])
    auc, average_precision = np.concatenate(areas, axis=2).transpose(1, 2, 0)  # two of (B, classes)

    edges = np.cumsum([column.shape[1] for column in columns])[:-1]
    tp, p, called, tn, q, not_called, gaps, right, squared_error, total = np.split(np.concatenate(sums), edges, axis=1)
    sensitivity, specificity = _ratio(tp, p), _ratio(tn, q)
    balanced = (sensitivity + specificity) / 2 if n_classes == 2 else sensitivity
    per_class = {
        "accuracy": _ratio(right, total),
        "balanced_accuracy": balanced,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": _ratio(tp, called),
        "npv": _ratio(tn, not_called),
        "f1": _ratio(2 * tp, p + called),
        "roc_auc": auc,
        "average_precision": average_precision,
        "brier": _ratio(squared_error, total),
        "ece": _ratio(np.abs(gaps).sum(axis=1, keepdims=True), total),
    }
    means = {name: values.mean(axis=1) for name, values in per_class.items()}
    if weights is None and n_classes == 2 and not np.isnan(means["roc_auc"][0]):
        # The same value to the last bit as a reader's own scikit-learn gives.
        means["roc_auc"][0] = roc_auc_score(actual[:, 0], scores[:, 0])
    if weights is not None and np.ndim(weights) == 2:
        return dict(means)
    return {name: float(values[0]) for name, values in means.items()}


def decide(probabilities: ArrayLike, positive: int = 1, threshold: float | FloatArray | None = None) -> IntArray:
    """The class decided for each case, (n,).

    K == 2: `positive` where its probability is at least `threshold` (0.5 if None; one for all, or (n,) one for each
    case, such as that of the model that saw it), else the other class.
    K > 2: the most probable class, the lowest index on a tie.

    Raises:
        ValueError: probabilities that are none; `positive` out of range; a threshold that is NaN or comes with K > 2.
    """
    probabilities = _checked_probabilities(probabilities)
    n_classes = probabilities.shape[1]
    _checked_classes([positive], n_classes, "positive")
    if n_classes > 2:
        if threshold is not None:
            raise ValueError(
                f"expected threshold None for {n_classes} classes (the decision is argmax), got {threshold}"
            )
        return probabilities.argmax(axis=1)
    cut = np.asarray(0.5 if threshold is None else threshold, np.float64)
    if cut.shape not in ((), (len(probabilities),)):
        raise ValueError(f"expected one threshold, or one for each of {len(probabilities)} cases, found {cut.shape}")
    if np.isnan(cut).any():
        raise ValueError("expected a threshold that is a number, found NaN")
    return np.where(probabilities[:, positive] >= cut, positive, 1 - positive)


def confusion_matrix(labels: ArrayLike, decisions: ArrayLike, n_classes: int) -> IntArray:
    """Counts (K, K): rows the true class, columns the decided class.

    Raises:
        ValueError: unequal lengths or an index outside 0..K-1.
    """
    labels = _checked_classes(labels, n_classes, "labels")
    decisions = _checked_classes(decisions, n_classes, "decisions", labels.size)
    return np.bincount(labels * n_classes + decisions, minlength=n_classes**2).reshape(n_classes, n_classes)


def calibration_bins(confidence: FloatArray, bins: int = 10) -> IntArray:
    """The equal-mass bin of each case, (n,) in 0..bins-1, equal values always in one bin.

    Raises:
        ValueError: fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"expected at least 1 bin, got {bins}")
    # By the count of smaller values: integer, so no case lands on the wrong side of a quantile by rounding.
    n_smaller = np.searchsorted(np.sort(confidence), confidence, side="left")
    return n_smaller * bins // confidence.size


def _ranking(scores: FloatArray) -> tuple[IntArray, IntArray]:
    """Cases by falling score, and the last place of each run of equal scores."""
    order = np.argsort(-scores, kind="stable")
    return order, np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))


def _ranking_areas(
    weights: FloatArray, is_positive: NDArray[np.bool_], order: IntArray, run_ends: IntArray
) -> tuple[FloatArray, FloatArray]:
    """roc_auc and average_precision, each (B,), of weights (B, n)."""
    weights = weights[:, order]
    called = np.cumsum(weights, axis=1)[:, run_ends]
    hits = np.cumsum(weights * is_positive[order], axis=1)[:, run_ends]
    new_hits = np.diff(hits, axis=1, prepend=0.0)
    false_alarms = called - hits
    new_false_alarms = np.diff(false_alarms, axis=1, prepend=0.0)
    pairs_won = np.einsum("bi,bi->b", hits - new_hits / 2, new_false_alarms)
    precision = hits / np.where(called > 0, called, 1.0)
    return (
        _ratio(pairs_won, hits[:, -1] * false_alarms[:, -1]),
        _ratio(np.einsum("bi,bi->b", new_hits, precision), hits[:, -1]),
    )


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def _checked_probabilities(probabilities: ArrayLike) -> FloatArray:
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or p.shape[0] < 1 or p.shape[1] < 2:
        raise ValueError(f"expected probabilities of shape (n >= 1, K >= 2), found {p.shape}")
    if not np.isfinite(p).all():
        raise ValueError(f"expected finite probabilities, found {int((~np.isfinite(p)).sum())} that are not")
    if p.min() < 0:
        raise ValueError(f"expected probabilities of at least 0, found {p.min():g} (logits?)")
    worst = int(np.abs(p.sum(axis=1) - 1).argmax())
    if abs(p[worst].sum() - 1) > 1e-3:
        raise ValueError(f"expected probabilities summing to 1 within 0.001, found {p[worst].sum():g} in row {worst}")
    return p


def _checked_classes(values: ArrayLike | Sequence[int], n_classes: int, name: str, n: int | None = None) -> IntArray:
    indices = np.asarray(values)
    if indices.ndim != 1 or (n is not None and indices.size != n):
        raise ValueError(f"expected {name} of shape ({'n' if n is None else n},), found {indices.shape}")
    if indices.dtype.kind not in "iub":
        raise ValueError(f"expected {name} to be integer class indices, found dtype {indices.dtype}")
    if indices.size and not (indices.min() >= 0 and indices.max() < n_classes):
        raise ValueError(f"expected {name} in 0..{n_classes - 1}, found {indices.min()}..{indices.max()}")
    return indices.astype(np.int64)


def _checked_weights(weights: ArrayLike | None, n: int) -> NDArray:
    """Weights as (B, n), in their own dtype: B x n float64 may not fit in memory."""
    rows = np.ones(n) if weights is None else np.asarray(weights)
    if rows.ndim not in (1, 2) or rows.shape[-1] != n:
        raise ValueError(f"expected weights of shape ({n},) or (B, {n}), found {rows.shape}")
    if rows.size == 0 or not (rows.min() >= 0 and rows.max() < np.inf):
        raise ValueError("expected at least one row of finite weights of at least 0")
    return np.atleast_2d(rows)
