"""Classification metrics under integer case weights, for many bootstrap resamples at once.

Shapes: n cases, K classes, B resamples. A metric that is undefined for a sample is NaN, never 0; `undefined_reasons`
gives the reason. Unlike in scikit-learn, nothing warns.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score

from hf_medtl.evaluation.calibration import calibration_bins

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

REPORTED = (
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "f1",
    "roc_auc",
    "average_precision",
    "brier",
    "ece",
)
METRICS = (*REPORTED, "youden", "mcc", "kappa", "lr_positive", "lr_negative", "log_loss")

BLOCK_CELLS = 2_000_000  # resamples x cases held as float64 at a time: 16 MB an array


def classification_metrics(
    labels: ArrayLike,
    probabilities: ArrayLike,
    positive: int = 1,
    threshold: float | FloatArray | None = None,
    weights: ArrayLike | None = None,
    bins: int = 10,
    names: Sequence[str] = REPORTED,
) -> dict[str, float | FloatArray]:
    """Compute metrics of a classifier.

    Two classes: metrics of class `positive`, decided where its probability is at least `threshold` (0.5 if None).
    More classes: decided by argmax; sensitivity, specificity, ppv, npv, f1, roc_auc, average_precision, youden and the
    likelihood ratios are one-versus-rest means over classes, NaN if undefined for any; `positive` is not used.

    roc_auc is the Mann-Whitney probability, a tie counting one half. average_precision is the step sum over distinct
    scores, not interpolated. f1 is 2 TP / (2 TP + FP + FN). brier is the mean squared error of the positive class
    (K == 2, 0 to 1) or summed over classes (K > 2, 0 to 2; Brier 1950, Mon Weather Rev 78:1-3). ece is over `bins`
    equal-mass bins of the positive-class probability (K == 2) or of the top-label confidence against correctness
    (K > 2; Guo et al. 2017, ICML), with bins of the unweighted sample; noise in the bins only adds to it, see
    `calibration.calibration_error`. youden is sensitivity + specificity - 1. mcc is Matthews's coefficient (K > 2:
    Gorodkin 2004, Comput Biol Chem 28:367-374) and kappa Cohen's, both -1 to 1. lr_positive is sensitivity /
    (1 - specificity), lr_negative (1 - sensitivity) / specificity, both from 0 without upper limit. log_loss is in
    nats, probabilities of the true class clipped at the float's epsilon.

    Args:
        labels: (n,) true class indices.
        probabilities: (n, K), rows summing to 1 within 1e-3.
        positive: the class of interest when K == 2.
        threshold: probability of `positive`, a number or (n,) one for each case; only for K == 2.
        weights: (n,) or (B, n), at least 0: how often each case counts.
        bins: number of calibration bins.
        names: of METRICS, in output order.

    Returns:
        name -> float, or (B,) array if the weights are (B, n).

    Raises:
        ValueError: invalid shapes, values, class indices or names.
    """
    probabilities = _checked_probabilities(probabilities)
    n, n_classes = probabilities.shape
    labels = _checked_classes(labels, n_classes, "labels", n)
    decisions = decide(probabilities, positive, threshold)
    rows = _checked_weights(weights, n)
    if unknown := set(names) - set(METRICS):
        raise ValueError(f"expected metrics among {', '.join(METRICS)}, found {', '.join(sorted(unknown))}")

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
    nats = -np.log(np.maximum(probabilities[np.arange(n), labels], np.finfo(np.float64).eps))

    # Each column is summed separately: a difference of sums (FN = P - TP) leaves rounding errors instead of 0, and
    # 0 / 0 would then give a number instead of NaN.
    columns: list[NDArray] = [actual & decided, actual, decided, ~actual & ~decided, ~actual, ~decided]
    columns += [~actual & decided, actual & ~decided, in_bin * (confidence - outcome)[:, None]]
    columns += [correct[:, None], ((scores - actual) ** 2).sum(axis=1, keepdims=True), nats[:, None]]
    columns += [np.ones((n, 1))]
    design = np.concatenate(columns, axis=1, dtype=np.float64)
    rankings = [_ranking(score) for score in scores.T] if {"roc_auc", "average_precision"} & set(names) else []

    sums, areas = [], []
    step = max(1, BLOCK_CELLS // n)
    for start in range(0, len(rows), step):
        block = rows[start : start + step].astype(np.float64)
        sums.append(block @ design)
        areas.append([_ranking_areas(block, y, *ranking) for y, ranking in zip(actual.T, rankings, strict=False)])

    # Sums (B, columns): p and q are actual, pp and pn predicted positives and negatives.
    edges = np.cumsum([column.shape[1] for column in columns])[:-1]
    (tp, p, pp, tn, q, pn, fp, fn, gaps, right, squared_error, nats, total) = np.split(
        np.concatenate(sums), edges, axis=1
    )
    sensitivity, specificity = _ratio(tp, p), _ratio(tn, q)
    per_class = {
        "accuracy": _ratio(right, total),
        "balanced_accuracy": (sensitivity + specificity) / 2 if n_classes == 2 else sensitivity,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": _ratio(tp, pp),
        "npv": _ratio(tn, pn),
        "f1": _ratio(2 * tp, p + pp),
        "brier": _ratio(squared_error, total),
        "ece": _ratio(np.abs(gaps).sum(axis=1, keepdims=True), total),
        "youden": sensitivity + specificity - 1,
        "lr_positive": _ratio(sensitivity, _ratio(fp, q)),
        "lr_negative": _ratio(_ratio(fn, p), specificity),
        "log_loss": _ratio(nats, total),
    }
    per_class["mcc"], per_class["kappa"] = _agreement(
        *((np.hstack([p, q]), np.hstack([pp, pn])) if n_classes == 2 else (p, pp)), right, total
    )
    if rankings:
        both = np.concatenate(areas, axis=2).transpose(1, 2, 0)  # two of (B, classes)
        per_class |= dict(zip(("roc_auc", "average_precision"), both, strict=True))
    means = {name: per_class[name].mean(axis=1) for name in names}
    if weights is None and n_classes == 2 and not np.isnan(means.get("roc_auc", np.array([np.nan]))[0]):
        # The same value as scikit-learn, to the last bit.
        means["roc_auc"][0] = roc_auc_score(actual[:, 0], scores[:, 0])
    if weights is not None and np.ndim(weights) == 2:
        return dict(means)
    return {name: float(values[0]) for name, values in means.items()}


def undefined_reasons(
    labels: ArrayLike, probabilities: ArrayLike, positive: int = 1, threshold: float | FloatArray | None = None
) -> dict[str, str]:
    """Explain why metrics are NaN. Arguments and errors as for `classification_metrics`.

    Returns:
        name -> reason, for undefined METRICS only; positive and negative refer to the class named in the reason.
    """
    values = classification_metrics(labels, probabilities, positive, threshold, names=METRICS)
    n_classes = np.shape(probabilities)[1]
    actual = np.asarray(labels)[:, None] == np.arange(n_classes)
    decided = decide(probabilities, positive, threshold)[:, None] == np.arange(n_classes)
    present = {
        "positive": actual,
        "negative": ~actual,
        "decided positive": decided,
        "decided negative": ~decided,
        "positive or decided so": actual | decided,
        "negative or decided so": ~(actual & decided),
        "a false positive, so the ratio has no upper limit": ~actual & decided,
        "a true negative, so the ratio has no upper limit": ~actual & ~decided,
    }
    needed = {
        "sensitivity": ["positive"],
        "specificity": ["negative"],
        "ppv": ["decided positive"],
        "npv": ["decided negative"],
        "f1": ["positive or decided so"],
        "average_precision": ["positive"],
        "lr_positive": ["positive", "negative", "a false positive, so the ratio has no upper limit"],
        "lr_negative": ["positive", "negative", "a true negative, so the ratio has no upper limit"],
        "mcc": ["negative", "decided negative"],
        "kappa": ["negative or decided so"],
    }

    def reason(name: str) -> str:
        every_class = n_classes > 2 or name in ("mcc", "kappa")
        for need in needed.get(name, ["positive", "negative"]):
            absent = [k for k in (range(n_classes) if every_class else [positive]) if not present[need][:, k].any()]
            if absent:
                return f"no image is {need} (class {absent[0]})"
        raise AssertionError(f"{name} is undefined for no known reason")

    return {name: reason(name) for name, value in values.items() if np.isnan(value)}


def decide(probabilities: ArrayLike, positive: int = 1, threshold: float | FloatArray | None = None) -> IntArray:
    """Return the class decided for each case, (n,).

    K == 2: `positive` where its probability is at least `threshold` (0.5 if None; a number, or (n,) one for each case,
    such as that of its fold's model), else the other class. K > 2: the most probable class, the lowest index on a tie.

    Raises:
        ValueError: invalid probabilities; `positive` out of range; a threshold that is NaN or comes with K > 2.
    """
    probabilities = _checked_probabilities(probabilities)
    n_classes = probabilities.shape[1]
    _checked_classes([positive], n_classes, "positive")
    if n_classes > 2:
        if threshold is not None:
            raise ValueError(f"expected no threshold for {n_classes} classes (the decision is argmax), got {threshold}")
        return probabilities.argmax(axis=1)
    cut = np.asarray(0.5 if threshold is None else threshold, np.float64)
    if cut.shape not in ((), (len(probabilities),)):
        raise ValueError(f"expected one threshold, or one for each of {len(probabilities)} cases, found {cut.shape}")
    if np.isnan(cut).any():
        raise ValueError("expected a threshold that is a number, found NaN")
    return np.where(probabilities[:, positive] >= cut, positive, 1 - positive)


def confusion_matrix(labels: ArrayLike, decisions: ArrayLike, n_classes: int) -> IntArray:
    """Count images by true class (rows) and decided class (columns), (K, K).

    Raises:
        ValueError: unequal lengths or an index outside 0..K-1.
    """
    labels = _checked_classes(labels, n_classes, "labels")
    decisions = _checked_classes(decisions, n_classes, "decisions", labels.size)
    return np.bincount(labels * n_classes + decisions, minlength=n_classes**2).reshape(n_classes, n_classes)


def _ranking(scores: FloatArray) -> tuple[IntArray, IntArray]:
    """Return the order of descending scores, and the last index of each run of equal ones."""
    order = np.argsort(-scores, kind="stable")
    return order, np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))


def _ranking_areas(
    weights: FloatArray, is_positive: NDArray[np.bool_], order: IntArray, run_ends: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Return ROC AUC and average precision, each (B,), for weights (B, n)."""
    weights = weights[:, order]
    decided = np.cumsum(weights, axis=1)[:, run_ends]
    hits = np.cumsum(weights * is_positive[order], axis=1)[:, run_ends]
    new_hits = np.diff(hits, axis=1, prepend=0.0)
    false_alarms = decided - hits
    new_false_alarms = np.diff(false_alarms, axis=1, prepend=0.0)
    pairs_won = np.einsum("bi,bi->b", hits - new_hits / 2, new_false_alarms)
    precision = hits / np.where(decided > 0, decided, 1.0)
    return (
        _ratio(pairs_won, hits[:, -1] * false_alarms[:, -1]),
        _ratio(np.einsum("bi,bi->b", new_hits, precision), hits[:, -1]),
    )


def _agreement(actual: FloatArray, decided: FloatArray, right: FloatArray, total: FloatArray) -> tuple[FloatArray, ...]:
    """Return MCC and kappa, each (B, 1), from counts per class, (B, K), and of correct and all cases, (B, 1)."""
    pairs = (actual * decided).sum(axis=1, keepdims=True)
    # If all cases are in one class, one factor is 0, in floating point only if it is the sum of one product.
    one_actual, one_decided = ((counts > 0).sum(axis=1, keepdims=True) < 2 for counts in (actual, decided))
    denominator = np.sqrt(
        np.where(one_actual, 0, total**2 - (actual**2).sum(axis=1, keepdims=True))
        * np.where(one_decided, 0, total**2 - (decided**2).sum(axis=1, keepdims=True))
    )
    by_chance = np.where(one_actual & one_decided & (right > 0), total**2, pairs)
    return _ratio(right * total - pairs, denominator), _ratio(right * total - pairs, total**2 - by_chance)


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Divide, with NaN where the denominator is 0."""
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
    """Return weights as (B, n) in their own dtype: B x n float64 may not fit in memory."""
    rows = np.ones(n) if weights is None else np.asarray(weights)
    if rows.ndim not in (1, 2) or rows.shape[-1] != n:
        raise ValueError(f"expected weights of shape ({n},) or (B, {n}), found {rows.shape}")
    if rows.size == 0 or not (rows.min() >= 0 and rows.max() < np.inf):
        raise ValueError("expected at least one row of finite weights of at least 0")
    return np.atleast_2d(rows)
