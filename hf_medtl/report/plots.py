"""Plots of predicted probabilities: ROC, precision-recall, reliability, decision curve, histograms, risk-coverage."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_medtl.evaluation.curves import Curve, net_benefit_band, precision_recall_band, reliability_points, roc_band
from hf_medtl.evaluation.decisions import risk_coverage
from hf_medtl.evaluation.metrics import classification_metrics
from hf_medtl.report.blocks import Axis, Band, Line, Plot, Points, line_style

RESAMPLES = 1000  # of bands
MAX_BANDS = 3  # lines in a plot from which no bands are drawn
BAND_METHOD = f"pointwise 95 %, percentile bootstrap of whole groups, {RESAMPLES:,} resamples"


class Scores(NamedTuple):
    """Probabilities of one label: (n,) images that have it or not, its probability, and the images' groups."""

    name: str
    positive: NDArray[np.bool_]
    score: NDArray[np.float64]
    groups: Sequence[str]

    @property
    def has_both_classes(self) -> bool:
        """True if some images have the label and some do not."""
        return bool(self.positive.any() and not self.positive.all())


def ranking_plots(scores: Sequence[Scores], point: tuple[float, float, str] | None = None) -> list[Plot]:
    """Plot ROC and precision-recall curves, one line for each label or run.

    Args:
        scores: lines; those whose images are all positive or all negative are omitted.
        point: 1 - specificity, sensitivity and name of an operating point.

    Returns:
        Two plots, or none if no line is left.
    """
    shown = [line for line in scores if line.has_both_classes]
    if not shown:
        return []
    auc, ap = zip(*map(_auc_and_ap, shown), strict=True)
    n = f"{len(shown[0].score):,} images"
    bands = (
        f"Bands: {BAND_METHOD}. A band of zero width means that no resample had an error, not that errors are "
        "impossible; use the interval in the table instead."
    )
    if len(shown) > MAX_BANDS:
        bands = "Too many lines to draw bands."

    def legend(metric: str, values: Sequence[float]) -> list[str]:
        if len(shown) == 1:
            return [shown[0].name]
        return [f"{line.name} ({metric} {value:.3f})" for line, value in zip(shown, values, strict=True)]

    def listed(values: Sequence[float]) -> str:
        return ", ".join(f"{line.name} {value:.3f}" for line, value in zip(shown, values, strict=True))

    roc = _curves(shown, roc_band, legend("AUC", auc))
    roc.append(Line("", [0, 1], [0, 1], "grey", "dot"))
    if point:
        roc.append(Points(point[2], [point[0]], [point[1]], colour="orange"))
    precision = _curves(shown, precision_recall_band, legend("AP", ap))
    if len(shown) == 1:
        prevalence = float(shown[0].positive.mean())
        precision.append(Line("prevalence", [0, 1], [prevalence, prevalence], "grey", "dot"))
    return [
        Plot("ROC", roc, Axis("1 - specificity", -0.01, 1.01), Axis("sensitivity", 0, 1.02),
             f"{n}. Dotted: random ranking. {bands}", f"ROC curve. Area: {listed(auc)}."),
        Plot("Precision-recall", precision, Axis("recall (sensitivity)", 0, 1.01), Axis("precision (PPV)", 0, 1.02),
             f"{n}. Precision holds only for this prevalence. {bands}",
             f"Precision-recall curve. Average precision: {listed(ap)}."),
    ]  # fmt: skip


def _auc_and_ap(scores: Scores) -> tuple[float, float]:
    """ROC AUC and average precision."""
    probabilities = np.column_stack([1 - scores.score, scores.score])
    names = ["roc_auc", "average_precision"]
    metrics = classification_metrics(scores.positive.astype(int), probabilities, names=names)
    return float(metrics["roc_auc"]), float(metrics["average_precision"])


def reliability_plot(scores: Scores, event: str, unit: str = "images") -> Plot:
    """Plot the observed proportion against the predicted probability.

    Args:
        scores: outcome and its probability.
        event: name of the outcome.
        unit: what n counts.
    """
    bins = reliability_points(scores.positive, scores.score, scores.groups)
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
        f"{len(scores.score):,} {unit} in {len(bins.n)} bins of {bins.n.min()} to {bins.n.max()}. Bars: 95 % Wilson "
        "intervals at the effective sample size, which accounts for groups. Dotted: perfect calibration.",
        f"Observed proportion against predicted probability of {event}, in {len(bins.n)} bins.",
    )


def decision_plot(scores: Scores, threshold: float | None) -> Plot:
    """Plot the decision curve: net benefit of the model, of treating all and of treating none.

    Args:
        scores: of the positive label.
        threshold: the saved threshold, if there is one.
    """
    curve = net_benefit_band(scores.positive, scores.score, scores.groups, RESAMPLES)
    prevalence = float(scores.positive.mean())
    treat_all = prevalence - (1 - prevalence) * curve.x / (1 - curve.x)
    # At high thresholds false positives weigh so much that the lines would leave the plot: cut them off below.
    bottom, top = -0.1 * max(prevalence, 0.2), prevalence * 1.15
    model_shown, all_shown = curve.y >= bottom, treat_all >= bottom
    marks: list[Band | Line] = [
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
        f"{len(scores.score):,} images. True positives minus false positives weighted by the odds of the threshold, "
        f"per image (Vickers and Elkin 2006), at this prevalence ({prevalence:.2f}). Band: {BAND_METHOD}.",
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
    marks: list[Band | Line] = []
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
        f"{sum(map(len, classes.values())):,} images, 20 bins of equal width, each class normalised by itself.",
        f"Histogram of the predicted probability of {event}. Medians: {medians}.",
    )


def risk_coverage_plot(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], coverage: float | None, n_groups: int
) -> Plot:
    """Plot the error rate among the most confident images against their fraction.

    Args:
        confidence: (n,) as for `risk_coverage`.
        correct: (n,) as for `risk_coverage`.
        coverage: fraction of images whose conformal set has exactly one label, if there are sets.
        n_groups: number of groups of the images.
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
        f"{len(correct):,} images in {n_groups:,} groups, by decreasing probability of the most probable label. No "
        "band: the curve describes this sample. Its mean height is the area under the risk-coverage curve "
        f"({float(error.mean()):.3f}; Geifman and El-Yaniv 2017).",
        f"Error rate: {float(error[-1]):.3f} when all images are decided.",
    )


def _threshold_line(threshold: float | None, low: float, high: float) -> list[Line]:
    if threshold is None:
        return []
    return [Line("saved threshold", [threshold, threshold], [low, high], "green", "dashdot")]


def _curves(
    scores: Sequence[Scores], curve_of: Callable[..., Curve], names: Sequence[str]
) -> list[Band | Line | Points]:
    """Lines, with bands unless there are too many of them."""
    marks: list[Band | Line | Points] = []
    for index, (line, name) in enumerate(zip(scores, names, strict=True)):
        style = line_style(index)
        curve = curve_of(line.positive, line.score, line.groups, RESAMPLES)
        if len(scores) <= MAX_BANDS:
            marks.append(Band(curve.at, curve.low, curve.high, style["colour"]))
        marks.append(Line(name, curve.x, curve.y, **style))
    return marks
