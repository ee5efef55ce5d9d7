"""Charts of probabilities, for the figures of runs and for reports: ROC, precision-recall, reliability, decisions."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from hf_medtl.evaluation.curves import (
    Curve,
    net_benefit_band,
    precision_recall_band,
    reliability_points,
    risk_coverage,
    roc_band,
)
from hf_medtl.evaluation.delong import auc_interval
from hf_medtl.evaluation.marks import Axis, Band, Line, Mark, Plot, Points, line_style
from hf_medtl.evaluation.score_intervals import Interval

RESAMPLES = 1000  # of bands
MAX_BANDS = 3  # lines in a plot from which no bands are drawn
BAND_METHOD = f"pointwise 95 %, percentile bootstrap of whole groups, {RESAMPLES:,} resamples"


class Scores(NamedTuple):
    """Probabilities of one label: (n,) images that have it or not, its probability, and the images' groups.

    Without groups a chart has neither bands nor bars, since images of one patient are not independent.
    """

    name: str
    positive: NDArray[np.bool_]
    score: NDArray[np.float64]
    groups: Sequence[str] | None = None

    @property
    def has_both_classes(self) -> bool:
        """True if some images have the label and some do not."""
        return bool(self.positive.any() and not self.positive.all())


def top_label_scores(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], groups: Sequence[str] | None = None
) -> Scores:
    """Return the probability of each image's most probable label; positive are the images where it is the true one.

    Args:
        labels: (n,) class indices.
        probabilities: (n, K).
        groups: (n,) of the images.
    """
    correct = probabilities.argmax(axis=1) == labels
    return Scores("the most probable label", correct, probabilities.max(axis=1), groups)


def pool_labels(scores: Sequence[Scores]) -> Scores:
    """Return the probabilities of all labels of all images together."""
    groups = None if scores[0].groups is None else [*scores[0].groups] * len(scores)
    positive, score = (np.concatenate([line[field] for line in scores]) for field in (1, 2))
    return Scores("a label", positive, score, groups)


def ranking_plots(scores: Sequence[Scores], point: Points | None = None) -> list[Plot]:
    """Plot ROC and precision-recall curves, or nothing if no line can be drawn; arguments as for `roc_plot`."""
    if not any(line.has_both_classes for line in scores):
        return []
    return [roc_plot(scores, point), _precision_recall_plot(scores)]


def roc_plot(scores: Sequence[Scores], point: Points | None = None) -> Plot:
    """Plot ROC curves, one line for each label or run.

    Args:
        scores: lines; those whose images are all positive or all negative are omitted.
        point: from `operating_point`.
    """
    marks, areas, bands = _curves(scores, roc_band, "AUC", auc_interval)
    marks.append(Line("", [0, 1], [0, 1], "grey", "dot"))
    return Plot(
        "ROC",
        [*marks, point] if point else marks,
        Axis("1 - specificity", -0.01, 1.01),
        Axis("sensitivity", 0, 1.02),
        f"{len(scores[0].score):,} images",
        f"Dotted: random ranking. {bands}",
        f"ROC curve. Area: {areas}.",
    )


def operating_point(decided: NDArray[np.bool_], positive: NDArray[np.bool_], threshold: float | None) -> Points | None:
    """Return the point of decisions on a ROC curve; None if all images are positive or all are negative.

    Args:
        decided: (n,) True where the positive label is decided.
        positive: (n,) True where it is the true label.
        threshold: their common threshold; None if each fold has its own.
    """
    if positive.all() or not positive.any():
        return None
    name = "folds' own thresholds" if threshold is None else f"threshold {threshold:.3f}"
    return Points(name, [decided[~positive].mean()], [decided[positive].mean()], colour="orange")


def _precision_recall_plot(scores: Sequence[Scores]) -> Plot:
    marks, areas, bands = _curves(scores, precision_recall_band, "AP", _average_precision)
    if len(scores) == 1:
        prevalence = float(scores[0].positive.mean())
        marks.append(Line("prevalence", [0, 1], [prevalence, prevalence], "grey", "dot"))
    return Plot(
        "Precision-recall",
        marks,
        Axis("recall (sensitivity)", 0, 1.01),
        Axis("precision (PPV)", 0, 1.02),
        f"{len(scores[0].score):,} images",
        f"Precision holds only for this prevalence. {bands}",
        f"Precision-recall curve. Average precision: {areas}.",
    )


def _average_precision(positive: NDArray[np.bool_], score: NDArray[np.float64], groups: Any) -> Interval:
    """Return the average precision without limits, which take a bootstrap."""
    return Interval(float(average_precision_score(positive, score)), np.nan, np.nan)


def _curves(
    scores: Sequence[Scores], curve_of: Callable[..., Curve], metric: str, area_of: Callable[..., Interval]
) -> tuple[list[Mark], str, str]:
    """Return lines, with bands unless there are too many, the areas under them as text, and a remark on the bands."""
    shown = [line for line in scores if line.has_both_classes]
    with_bands = len(shown) <= MAX_BANDS
    areas: dict[str, str] = {}
    marks: list[Mark] = []
    for index, line in enumerate(shown):
        style = line_style(index)
        curve = curve_of(line.positive, line.score, line.groups if with_bands else None, RESAMPLES)
        if curve.low.size:
            marks.append(Band(curve.at, curve.low, curve.high, style["colour"]))
        value, low, high = area_of(line.positive, line.score, line.groups)
        limits = "" if line.groups is None or np.isnan(low) else f" [{low:.3f}, {high:.3f}]"
        areas[line.name] = f"{value:.3f}{limits}"
        marks.append(Line(f"{line.name} ({metric} {areas[line.name]})", curve.x, curve.y, **style))
    bands = (
        f"Bands: {BAND_METHOD}. A band of zero width means that no resample had an error, not that errors are "
        "impossible; use the interval in the table instead."
    )
    text = ", ".join(f"{name} {area}" for name, area in areas.items())
    return marks, text, bands if with_bands else "Too many lines to draw bands."


def reliability_plot(scores: Scores, unit: str = "images") -> Plot:
    """Plot the observed proportion against the predicted probability of `scores.name`.

    Args:
        scores: outcome and its probability.
        unit: what n counts.
    """
    bins, event = reliability_points(scores.positive, scores.score, scores.groups), scores.name
    texts = [
        f"predicted {p:.3f}, observed {observed:.3f} [{low:.3f}, {high:.3f}], {count} {unit}"
        for p, observed, low, high, count in zip(*bins, strict=True)
    ]
    return Plot(
        "Reliability",
        [
            Line("", [0, 1], [0, 1], "grey", "dot"),
            Line("", bins.predicted, bins.observed, "blue"),
            Points(event, bins.predicted, bins.observed, bins.low, bins.high, texts=texts),
        ],
        Axis(f"predicted probability of {event}", -0.02, 1.02),
        Axis("observed proportion", -0.02, 1.02),
        f"{len(scores.score):,} {unit} in {len(bins.n)} bins of {bins.n.min()} to {bins.n.max()}",
        "Bars: 95 % Wilson intervals at the effective sample size, which accounts for groups. Dotted: perfect "
        "calibration.",
        f"Observed proportion against predicted probability of {event}, in {len(bins.n)} bins.",
    )


def decision_plot(scores: Scores, threshold: float | None) -> Plot:
    """Plot the decision curve: net benefit of the model, of treating all and of treating none.

    Args:
        scores: of the positive label, with groups.
        threshold: the saved threshold, if there is one.
    """
    assert scores.groups is not None
    curve = net_benefit_band(scores.positive, scores.score, scores.groups, RESAMPLES)
    prevalence = float(scores.positive.mean())
    treat_all = prevalence - (1 - prevalence) * curve.x / (1 - curve.x)
    # At high thresholds false positives weigh so much that the lines would leave the plot: cut them off below.
    bottom, top = -0.1 * max(prevalence, 0.2), prevalence * 1.15
    model_shown, all_shown = curve.y >= bottom, treat_all >= bottom
    marks: list[Mark] = [
        Band(curve.at, np.maximum(curve.low, bottom), np.maximum(curve.high, bottom)),
        Line("model", curve.x[model_shown], curve.y[model_shown]),
        Line("treat all", curve.x[all_shown], treat_all[all_shown], "orange", "dash"),
        Line("treat none", [0, 1], [0, 0], "grey", "dot"),
        *_threshold_line(threshold, bottom, top),
    ]
    return Plot(
        "Decision curve",
        marks,
        Axis("threshold probability", 0, 1),
        Axis("net benefit", bottom, top),
        f"{len(scores.score):,} images",
        "True positives minus false positives weighted by the odds of the threshold, per image (Vickers and Elkin "
        f"2006), at this prevalence ({prevalence:.2f}). Band: {BAND_METHOD}.",
        f"Net benefit by threshold; at 0.5 it is {np.interp(0.5, curve.x, curve.y):.3f}, treating all "
        f"{np.interp(0.5, curve.x, treat_all):.3f}.",
    )


def histogram_plot(classes: dict[str, NDArray[np.float64]], event: str, threshold: float | None) -> Plot:
    """Plot a histogram of probabilities for each class.

    Args:
        classes: name -> (n,) probabilities.
        event: what the probabilities are of.
        threshold: the saved threshold, if there is one.
    """
    edges = np.linspace(0, 1, 21)
    marks: list[Mark] = []
    highest = 0.0
    for index, (name, values) in enumerate(classes.items()):
        percent = 100 * np.histogram(values.clip(0, 1), edges)[0] / max(1, len(values))
        x, y = np.repeat(edges, 2), np.concatenate([[0], np.repeat(percent, 2), [0]])
        style = line_style(index)
        if len(classes) <= MAX_BANDS:
            marks.append(Band(x, np.zeros(x.size), y, style["colour"]))
        marks.append(Line(f"{name} ({len(values):,})", x, y, **style))
        highest = max(highest, float(percent.max()))
    marks += _threshold_line(threshold, 0, highest * 1.1)
    medians = ", ".join(f"{name} {np.median(values):.2f}" for name, values in classes.items() if len(values))
    return Plot(
        "Score distributions",
        marks,
        Axis(f"predicted probability of {event}", -0.01, 1.01),
        Axis("% of the class's images", 0, highest * 1.1),
        f"{sum(map(len, classes.values())):,} images",
        "20 bins of equal width, each class normalised by itself.",
        f"Histogram of the predicted probability of {event}. Medians: {medians}.",
    )


def risk_coverage_plot(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], coverage: float | None, count: str
) -> Plot:
    """Plot the error rate among the most confident images against their fraction.

    Args:
        confidence: (n,) as for `risk_coverage`.
        correct: (n,) as for `risk_coverage`.
        coverage: fraction of images whose conformal set has exactly one label, if there are sets.
        count: number of images, and of groups if known, as text.
    """
    fraction, error = risk_coverage(confidence, correct)
    top = max(0.1, 1.1 * float(error.max()))
    marks = [Line("errors among decided images", np.repeat(fraction, 2)[1:], np.repeat(error, 2)[:-1])]
    if coverage is not None:
        marks.append(Line("conformal sets of one label", [coverage, coverage], [0, top], "orange", "dash"))
    return Plot(
        "Selective prediction",
        marks,
        Axis("fraction decided, most confident first", 0, 1.02),
        Axis("error rate", 0, top),
        count,
        "By decreasing probability of the most probable label. No band: the curve describes this sample. Its mean "
        f"height is the area under the risk-coverage curve ({float(error.mean()):.3f}; Geifman and El-Yaniv 2017).",
        f"Error rate: {float(error[-1]):.3f} when all images are decided.",
    )


def _threshold_line(threshold: float | None, low: float, high: float) -> list[Mark]:
    if threshold is None:
        return []
    return [Line("saved threshold", [threshold, threshold], [low, high], "green", "dashdot")]
