"""Confidence intervals of metrics over groups (patients) instead of images, and the method for each metric."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_medtl.evaluation.delong import auc_interval
from hf_medtl.evaluation.metrics import BLOCK_CELLS, METRICS, REPORTED, classification_metrics
from hf_medtl.evaluation.resampling import (
    Jackknife,
    bootstrap_group_counts,
    bootstrap_weights,
    group_index,
    jackknife,
    majority_strata,
    percentile_limits,
    studentised_means,
    transformed_t_interval,
)
from hf_medtl.evaluation.score_intervals import Interval, check_level, component_intervals, mean_of_components

# The default method of each metric; `metric_intervals` describes the methods and their coverage.
METHODS = (
    dict.fromkeys(METRICS, "jackknife")
    | dict.fromkeys(("accuracy", "sensitivity", "specificity", "ppv", "npv"), "wilson")
    | {"roc_auc": "delong", "ece": "basic"}
)
METHOD_DESCRIPTIONS = {
    "delong": "DeLong's standard error over groups (Obuchowski) with Student's t, on the logit scale",
    "wilson": "Wilson score interval at the effective number of images",
    "jackknife": "jackknife over groups with Student's t, on the logit scale (log without upper bound)",
    "basic": "basic bootstrap over groups",
    "studentised": "studentised bootstrap over groups, on the logit scale (log without upper bound)",
}
BOUNDS = {"youden": (-1, 1), "mcc": (-1, 1), "kappa": (-1, 1), "brier": (0, 2)} | dict.fromkeys(
    ("lr_positive", "lr_negative", "log_loss"), (0, math.inf)
)


def metric_intervals(
    labels: ArrayLike,
    probabilities: ArrayLike,
    groups: ArrayLike,
    positive: int = 1,
    threshold: float | NDArray[np.float64] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    names: Sequence[str] = REPORTED,
    methods: Mapping[str, str] | str = METHODS,
) -> dict[str, Interval]:
    """Compute confidence intervals of metrics over groups (patients), which are independent where images are not.

    Groups are drawn, or left out, within each majority label (the lowest index on a tie), so the mix of classes is
    that of the sample: f1, average_precision and the like hold for that mix only.

    - wilson: score interval of a proportion, see `score_intervals.rate_interval`.
    - delong: roc_auc of two classes, see `delong.auc_interval`. Means of rates or AUCs over classes or labels get the
      jackknife instead of both.
    - jackknife: standard error from leaving out each group in turn, Student's t with the fewest groups of a class less
      one (two classes), on the logit scale of the metric's range, or the log scale without an upper bound.
    - basic: basic bootstrap from `resamples` draws of groups.

    Coverage of 95 % intervals, from benchmarks/coverage.py in 4 times 1,000 simulated studies of 50 patients, 15 of
    them positive, with a ROC AUC of 0.97 or 0.8 and one image or more each: roc_auc 92.6 to 98.1 %, average_precision
    94.8 to 98.3, sensitivity 94.4 to 98.2, specificity 94.8 to 97.6, accuracy 94.1 to 98.0, balanced_accuracy 94.7 to
    97.9, f1 95.4 to 98.6, mcc 95.7 to 97.6, brier 92.7 to 95.9. ppv (97.4 to 98.7) and npv (97.6 to 99.9) are too wide
    for studies that all have one mix of classes. ece has 82 to 89 % only, also in studies of 200 patients: noise within
    bins adds to it. Use `calibration.calibration_error` where it matters.

    A sample without a single error gives [1, 1] by resampling, which is false. Where nothing varies, or a rate behind
    the metric is 0 or 1, the limits are (or are widened to) score limits that count groups: Wilson for rates, Newcombe
    for roc_auc, and for average_precision the bound of `average_precision_floor`. mcc, kappa and likelihood ratios have
    no limits then: NaN. Where a metric is undefined for the whole sample, value and limits are NaN.

    Args:
        labels: (n,) true class indices.
        probabilities: (n, K).
        groups: (n,) patient or duplicate group of each image, none missing.
        positive: as in `classification_metrics`.
        threshold: likewise.
        resamples: number of draws.
        level: two-sided confidence, between 0 and 1.
        seed: of the draws, and of the jackknife's blocks where there are more than 1,000 groups.
        names: as in `classification_metrics`.
        methods: metric -> key of METHOD_DESCRIPTIONS other than studentised, or one for all.

    Raises:
        ValueError: as `classification_metrics`; groups missing or of another length; level, resamples or methods out of
            range.
    """
    check_level(level)
    values = classification_metrics(labels, probabilities, positive, threshold, names=names)
    y, p = np.asarray(labels).astype(np.int64), np.asarray(probabilities, dtype=np.float64)
    chosen = _chosen(methods, names, names if p.shape[1] == 2 else ["accuracy"])
    group = group_index(groups, y.size)
    samples = _Samples.of(chosen, majority_strata(y, group), group, resamples, seed)
    resampled = samples.measure(y, p, positive, threshold)
    components = component_intervals(y, p, group, positive, threshold, level)
    intervals = {
        name: samples.limits(name, float(value), resampled.get(name), components.get(name), level, p.shape[1])
        for name, value in values.items()
    }
    if chosen.get("roc_auc") == "delong":
        auc = auc_interval(y == positive, p[:, positive], groups, level)
        intervals["roc_auc"] = auc._replace(value=intervals["roc_auc"].value)
    return intervals


def multilabel_metric_intervals(
    targets: NDArray[np.bool_],
    probabilities: NDArray[np.float64],
    groups: ArrayLike,
    thresholds: Sequence[float | NDArray[np.float64]],
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    names: Sequence[str] = REPORTED,
    methods: Mapping[str, str] | str = METHODS,
) -> tuple[dict[str, Interval], list[dict[str, Interval]]]:
    """Compute multilabel intervals: of means over labels, and of each label against its absence.

    All labels share the same resamples, since errors of labels are correlated. Groups are drawn or left out within the
    rarest label that most of their images have, so that rare labels are in nearly every resample. A mean is over the
    labels that the metric is defined for; resamples in which one of them is undefined are left out. Means of rates get
    the jackknife instead of wilson and delong, which apply to one label; where a rate is 0 or 1, the limits of a mean
    treat labels as independent.

    Args:
        targets: (n, K) True where an image has a label.
        probabilities: (n, K).
        groups: (n,) as in `metric_intervals`.
        thresholds: K decision thresholds, each a number or (n,).
        resamples: as in `metric_intervals`.
        level: likewise.
        seed: likewise.
        names: likewise.
        methods: likewise.

    Returns:
        Means by metric, and a list of intervals by metric for each label.
    """
    check_level(level)
    chosen = _chosen(methods, names, [])
    group = group_index(groups, len(targets))
    samples = _Samples.of(chosen, majority_strata(rarest_label(targets), group), group, resamples, seed)
    measured, per_label = [], []
    for target, p, threshold in zip(targets.T.astype(np.int64), probabilities.T, thresholds, strict=True):
        both = np.column_stack([1 - p, p])
        values = classification_metrics(target, both, 1, threshold, names=names)
        components = component_intervals(target, both, group, 1, threshold, level)
        measured.append((values, samples.measure(target, both, 1, threshold), components))
        per_label.append(metric_intervals(target, both, groups, 1, threshold, resamples, level, seed, names, methods))

    means = {}
    for name in names:
        defined = [label for label in measured if not math.isnan(float(label[0][name]))] or measured
        own, resampled, components_of = zip(*defined, strict=True)
        value = float(np.mean([float(label[name]) for label in own]))
        mean = np.mean([label[name] for label in resampled], axis=0) if name in resampled[0] else None
        rates = np.concatenate([label[name] for label in components_of]) if name in components_of[0] else None
        means[name] = samples.limits(name, value, mean, rates, level, 2)
    return means, per_label


def rarest_label(targets: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the rank of each image's rarest label, (n,), of targets (n, K): 0 for the rarest of all, K for none."""
    rarity = np.argsort(np.argsort(targets.sum(axis=0), kind="stable"))
    return np.where(targets, rarity, targets.shape[1]).min(axis=1)


def describe_methods(multilabel: bool, n_classes: int) -> dict[str, str]:
    """Describe the default interval method of each metric, for results.json and the card.

    Args:
        multilabel: True if metrics are means over labels.
        n_classes: K.
    """
    single = [] if multilabel else REPORTED if n_classes == 2 else ["accuracy"]
    return {name: METHOD_DESCRIPTIONS[method] for name, method in _chosen(METHODS, REPORTED, single).items()}


class _Samples(NamedTuple):
    """Case weights of resamples and of leave-group-out samples, each None if no chosen method needs them."""

    chosen: Mapping[str, str]
    left_out: Jackknife | None
    draws: NDArray[np.uint16] | None

    @classmethod
    def of(cls, chosen: Mapping[str, str], strata: NDArray, group: NDArray, resamples: int, seed: int) -> "_Samples":
        if resamples < 1:
            raise ValueError(f"expected at least 1 resample, got {resamples}")
        return cls(
            chosen,
            jackknife(strata, group, seed) if "jackknife" in chosen.values() else None,
            bootstrap_group_counts(strata, resamples, seed)[:, group] if "basic" in chosen.values() else None,
        )

    def measure(self, y: NDArray, p: NDArray, positive: int, threshold: float | NDArray | None) -> dict[str, Any]:
        """Return the values of each metric in the samples that its method needs; none for wilson and delong."""
        values: dict[str, Any] = {}
        for method, weights in (("basic", self.draws), ("jackknife", self.left_out and self.left_out.weights)):
            if weights is not None:
                names = [name for name, chosen in self.chosen.items() if chosen == method]
                values |= classification_metrics(y, p, positive, threshold, weights, names=names)
        return values

    def limits(
        self,
        name: str,
        value: float,
        resampled: NDArray | None,
        components: NDArray | None,
        level: float,
        n_classes: int,
    ) -> Interval:
        """Limits by the chosen method, or from components (C, 3: estimate, low, high) if it fails or one is 0 or 1."""
        if math.isnan(value):
            return Interval(value, math.nan, math.nan)
        low = high = math.nan
        bounds = (0, 1) if name == "brier" and n_classes == 2 else BOUNDS.get(name, (0, 1))
        if resampled is not None and self.chosen[name] == "jackknife" and self.left_out is not None:
            low, high = transformed_t_interval(value, *self.left_out.variance(resampled), bounds, level)
        elif resampled is not None:
            # Resampling biases a calibration error as the sample itself does: reflect it (Davison & Hinkley 1997, 5.2).
            # The plain percentile interval often lies wholly above the value.
            low, high = percentile_limits(np.clip(2 * value - resampled, *bounds), level)
        if components is not None:
            below, above = mean_of_components(value, components)
            if self.chosen[name] == "wilson" or math.isnan(low) or high - low < 1e-12:
                low, high = below, above
            elif np.isin(components[:, 0], (-1, 0, 1) if name == "youden" else (0, 1)).any():
                # Resampling treats a rate of 0 or 1 as known: 8 of 8 positives found would add no uncertainty at all.
                low, high = np.fmin(low, below), np.fmax(high, above)
        return Interval(value, float(low), float(high))


def _chosen(methods: Mapping[str, str] | str, names: Sequence[str], single: Sequence[str]) -> dict[str, str]:
    """Return the method of each metric; a mean of rates or AUCs gets the jackknife instead of wilson or delong."""
    chosen = {name: methods if isinstance(methods, str) else methods.get(name, METHODS.get(name, "")) for name in names}
    for name, method in chosen.items():
        special = method in ("wilson", "delong") and METHODS.get(name) != method
        if method not in METHOD_DESCRIPTIONS or method == "studentised" or special:
            raise ValueError(f"expected a method for {name} among {', '.join(METHOD_DESCRIPTIONS)}, found {method!r}")
    return {
        name: "jackknife" if method in ("wilson", "delong") and name not in single else method
        for name, method in chosen.items()
    }


def mean_intervals(
    values: Mapping[str, ArrayLike],
    groups: ArrayLike,
    strata: ArrayLike | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Compute means over images of per-image values, such as Dice, with confidence limits over groups.

    Every image counts once, a patient with two images twice. Studentised bootstrap: whole groups are drawn with
    replacement, see `resampling.studentised_means`. Where nothing varies, with a single group or equal values in all of
    them, the sample contains no information on the variance of the mean, and the limits are NaN.

    Coverage is too low in small samples of good models, because a rare failure that did not happen is not drawn either:
    in benchmarks/coverage.py 95 % intervals of a mean Dice of 50 patients (93 % from Beta(40, 3), 7 % failures, uniform
    from 0 to 0.8) cover the truth in 91.7 % of 1,000 studies, without failures (Beta(4, 2)) in 95.9 %.

    Args:
        values: name -> (n,) finite numbers.
        groups: (n,) patient or duplicate group of each image, none missing.
        strata: (n,) such as the source: each keeps its number of groups in every draw, for a sample whose mix of strata
            was chosen. A group in more than one belongs to the one with most of its images.
        resamples: as in `metric_intervals`.
        level: likewise.
        seed: likewise.

    Raises:
        ValueError: as `metric_intervals`; values that are missing, not finite or of another length.
    """
    check_level(level)
    table = np.column_stack([np.asarray(column, np.float64) for column in values.values()])
    group, stratum = _grouped(table, groups, strata, resamples)
    limits = studentised_means(table, group, majority_strata(stratum, group), resamples, level, seed)
    rows = np.column_stack([table.mean(axis=0), limits]).tolist()
    return {name: Interval(*row) for name, row in zip(values, rows, strict=True)}


def bootstrap_means(
    table: NDArray[np.float64], groups: ArrayLike, strata: ArrayLike | None = None, resamples: int = 2000, seed: int = 0
) -> NDArray[np.float64]:
    """Return the column means (resamples, M) of a table (n, M) in bootstrap draws of groups, as `mean_intervals`."""
    group, stratum = _grouped(table, groups, strata, resamples)
    weights = bootstrap_weights(stratum, group, resamples, seed)
    step = max(1, BLOCK_CELLS // len(table))
    blocks = (weights[start : start + step].astype(np.float64) for start in range(0, resamples, step))
    return np.concatenate([block @ table / block.sum(axis=1, keepdims=True) for block in blocks])


def _grouped(table: NDArray, groups: ArrayLike, strata: ArrayLike | None, resamples: int) -> tuple[NDArray, NDArray]:
    if not table.size or not np.isfinite(table).all():
        raise ValueError(f"expected finite values, found {int((~np.isfinite(table)).sum())} of {table.size} not")
    if resamples < 1:
        raise ValueError(f"expected at least 1 resample, got {resamples}")
    n = len(table)
    return group_index(groups, n), np.zeros(n, np.int64) if strata is None else group_index(strata, n)


def intervals_by_source(values: Mapping[str, ArrayLike], groups: ArrayLike, sources: ArrayLike) -> dict[str, Any]:
    """Compute `mean_intervals` of all images, stratified by source, and of each source by itself.

    Returns:
        overall, and sources (source -> the same, sorted by name): each with n, n_groups and metrics (name -> Interval).

    Raises:
        ValueError: as `mean_intervals`.
    """
    columns = {name: np.asarray(column, np.float64) for name, column in values.items()}
    group, source = np.asarray(groups, dtype=object), np.asarray(sources, dtype=object)

    def measure(rows: NDArray[np.bool_], strata: NDArray | None = None) -> dict[str, Any]:
        selected = {name: column[rows] for name, column in columns.items()}
        metrics = mean_intervals(selected, group[rows], strata)
        return {"n": int(rows.sum()), "n_groups": len(set(group[rows])), "metrics": metrics}

    overall = measure(np.ones(len(group), bool), source)  # checks lengths and missing names first
    return {"overall": overall, "sources": {name: measure(source == name) for name in sorted(set(source))}}


def to_json(interval: Interval) -> dict[str, float | None]:
    """Return value, low and high for JSON: None where undefined."""
    return {key: value if np.isfinite(value) else None for key, value in interval._asdict().items()}
