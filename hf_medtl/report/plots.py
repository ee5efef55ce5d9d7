"""Plots of probabilities: ROC, precision and recall, reliability, decision curve, distributions, abstaining."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_medtl.evaluation.curves import (
    Curve,
    decision_band,
    precision_recall_band,
    reliability_points,
    roc_band,
)
from hf_medtl.evaluation.decisions import risk_coverage
from hf_medtl.evaluation.metrics import classification_metrics
from hf_medtl.report.blocks import Axis, Band, Line, Plot, Points, style

RESAMPLES = 1000  # of bands
BANDED = 3  # lines in a plot, at most, that get a band
BANDS = f"95 % at each place, percentile bootstrap of whole groups, {RESAMPLES:,} resamples"


class Scores(NamedTuple):
    """One line of a plot: pictures (n,) that have a label or not, its probability, and their groups."""

    name: str
    positive: NDArray[np.bool_]
    score: NDArray[np.float64]
    groups: Sequence[str]

    @property
    def both(self) -> bool:
        """Whether there are pictures of both kinds."""
        return bool(self.positive.any() and not self.positive.all())


def ranking_plots(scores: Sequence[Scores], point: tuple[float, float, str] | None = None) -> list[Plot]:
    """ROC, and precision and recall, a line each; none if no label has pictures with and without it.

    Args:
        scores: lines; those with pictures of one kind only are left out.
        point: 1 - specificity, sensitivity, and what they are the point of.
    """
    shown = [its for its in scores if its.both]
    if not shown:
        return []
    areas = {its.name: measured(its) for its in shown}
    n = f"{len(shown[0].score):,} pictures"
    about = (
        f"Bands: {BANDS}. A band without width says that no resample erred, not that none ever would: the interval in "
    )
    about += "the table is the one to believe."
    if len(shown) > BANDED:
        about = "Too many lines for bands."

    def named(name: str, value: float, what: str) -> str:
        return f"{name} ({what} {value:.3f})" if len(shown) > 1 else name

    roc = _lines(shown, roc_band, [named(its.name, areas[its.name][0], "AUC") for its in shown])
    roc.append(Line("", [0, 1], [0, 1], "grey", "dot"))
    if point:
        roc.append(Points(point[2], [point[0]], [point[1]], colour="orange"))
    precision = _lines(shown, precision_recall_band, [named(its.name, areas[its.name][1], "AP") for its in shown])
    shares = [float(its.positive.mean()) for its in shown]
    if len(shown) == 1:
        precision.append(Line("share of all pictures", [0, 1], [shares[0], shares[0]], "grey", "dot"))
    said = [", ".join(f"{its.name} {areas[its.name][i]:.3f}" for its in shown) for i in (0, 1)]
    return [
        Plot("ROC", roc, Axis("1 - specificity", -0.01, 1.01), Axis("sensitivity", 0, 1.02),
             f"{n}. The dotted line is chance. {about}", f"ROC curve. Area: {said[0]}."),
        Plot("Precision and recall", precision, Axis("recall (sensitivity)", 0, 1.01), Axis("precision (PPV)", 0, 1.02),
             f"{n}. Precision holds for this mix of labels only. {about}",
             f"Precision against recall. Average precision: {said[1]}."),
    ]  # fmt: skip


def measured(scores: Scores) -> tuple[float, float]:
    """ROC AUC and average precision."""
    chances = np.column_stack([1 - scores.score, scores.score])
    found = classification_metrics(scores.positive.astype(int), chances, names=["roc_auc", "average_precision"])
    return float(found["roc_auc"]), float(found["average_precision"])


def reliability_plot(scores: Scores, what: str, shown: str = "pictures") -> Plot:
    """Observed share against predicted probability.

    Args:
        scores: outcome and its probability.
        what: that the probability is of.
        shown: what n counts.
    """
    found = reliability_points(scores.positive, scores.score, scores.groups)
    texts = [
        f"predicted {p:.3f}, observed {share:.3f} [{low:.3f}, {high:.3f}], {count} {shown}"
        for p, share, low, high, count in zip(*found, strict=True)
    ]
    return Plot(
        "Reliability",
        [
            Line("", [0, 1], [0, 1], "grey", "dot"),
            Line("", found.predicted, found.observed, "blue"),
            Points(what, found.predicted, found.observed, found.low, found.high, texts=texts),
        ],
        Axis(f"predicted probability of {what}", -0.02, 1.02),
        Axis("observed share", -0.02, 1.02),
        f"{len(scores.score):,} {shown} in {len(found.n)} bins of {found.n.min()} to {found.n.max()}. Bars: 95 % "
        "Wilson score limits at the effective number of pictures, which counts groups. The dotted line is perfect.",
        f"Observed share against predicted probability of {what}, in {len(found.n)} bins.",
    )


def decision_plot(scores: Scores, cut: float | None) -> Plot:
    """Net benefit of deciding by the model, of treating all and of treating none.

    Args:
        scores: of the positive label.
        cut: the saved threshold, if there is one.
    """
    curve = decision_band(scores.positive, scores.score, scores.groups, RESAMPLES)
    share = float(scores.positive.mean())
    everyone = share - (1 - share) * curve.x / (1 - curve.x)
    floor = -0.1 * max(share, 0.2)
    seen = curve.y >= floor  # beyond, false alarms weigh so much that the line would only leave the picture
    above = everyone >= floor
    marks: list[Band | Line] = [
        Band(curve.at, np.maximum(curve.low, floor), np.maximum(curve.high, floor)),
        Line("by the model", curve.x[seen], curve.y[seen]),
        Line("treat all", curve.x[above], everyone[above], "orange", "dash"),
        Line("treat none", [0, 1], [0, 0], "grey", "dot"),
    ]
    if cut is not None:
        marks.append(Line("saved threshold", [cut, cut], [floor, share * 1.15], "green", "dashdot"))
    return Plot(
        "Decision curve",
        marks,
        Axis("threshold probability", 0, 1),
        Axis("net benefit", floor, share * 1.15),
        f"{len(scores.score):,} pictures. True positives a picture less false ones, weighed by the odds of the "
        f"threshold (Vickers and Elkin 2006), at this share of positives ({share:.2f}). Band: {BANDS}.",
        f"Net benefit by threshold; at 0.5 it is {np.interp(0.5, curve.x, curve.y):.3f}, treating all "
        f"{np.interp(0.5, curve.x, everyone):.3f}.",
    )


def distribution_plot(kinds: dict[str, NDArray[np.float64]], what: str, cut: float | None) -> Plot:
    """Share of each kind's pictures by probability.

    Args:
        kinds: name -> (n,) probabilities.
        what: that they are of.
        cut: the saved threshold, if there is one.
    """
    edges = np.linspace(0, 1, 21)
    marks: list[Band | Line] = []
    highest = 0.0
    for index, (name, values) in enumerate(kinds.items()):
        share = 100 * np.histogram(values.clip(0, 1), edges)[0] / max(1, len(values))
        x, y = np.repeat(edges, 2), np.concatenate([[0], np.repeat(share, 2), [0]])
        look = style(index)
        if len(kinds) <= BANDED:
            marks.append(Band(x, np.zeros(x.size), y, look["colour"]))
        marks.append(Line(f"{name} ({len(values):,})", x, y, **look))
        highest = max(highest, float(share.max()))
    if cut is not None:
        marks.append(Line("saved threshold", [cut, cut], [0, highest * 1.1], "green", "dashdot"))
    medians = ", ".join(f"{name} {np.median(values):.2f}" for name, values in kinds.items() if len(values))
    return Plot(
        "Score distributions",
        marks,
        Axis(f"predicted probability of {what}", -0.01, 1.01),
        Axis("% of the kind's pictures", 0, highest * 1.1),
        f"{sum(map(len, kinds.values())):,} pictures, 20 bins of equal width, each kind by itself.",
        f"Histogram of the predicted probability of {what}. Medians: {medians}.",
    )


def abstaining_plot(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], decided: float | None, n_groups: int
) -> Plot:
    """Share of wrong decisions among the most confident pictures.

    Args:
        confidence, right: (n,) as for `risk_coverage`.
        decided: share of pictures whose conformal set has one label, if there are sets.
        n_groups: of the pictures.
    """
    coverage, error = risk_coverage(confidence, right)
    x, y = np.repeat(coverage, 2)[1:], np.repeat(error, 2)[:-1]
    top = max(0.1, 1.1 * float(error.max()))
    marks = [Line("wrong among those decided", x, y)]
    if decided is not None:
        marks.append(Line("sets of one label", [decided, decided], [0, top], "orange", "dash"))
    return Plot(
        "Abstaining",
        marks,
        Axis("share of pictures decided, the surest first", 0, 1.02),
        Axis("share of wrong decisions", 0, top),
        f"{len(right):,} pictures in {n_groups:,} groups, by falling probability of the most probable label. No band: "
        "it is of these very pictures. The mean height is the area under the risk-coverage curve "
        f"({float(error.mean()):.3f}; Geifman and El-Yaniv 2017).",
        f"Share of wrong decisions: {float(error[-1]):.3f} when all pictures are decided.",
    )


def _lines(shown: Sequence[Scores], curve_of: Callable[..., Curve], names: Sequence[str]) -> list[Band | Line | Points]:
    marks: list[Band | Line | Points] = []
    for index, (its, name) in enumerate(zip(shown, names, strict=True)):
        look = style(index)
        curve = curve_of(its.positive, its.score, its.groups, RESAMPLES)
        if len(shown) <= BANDED:
            marks.append(Band(curve.at, curve.low, curve.high, look["colour"]))
        marks.append(Line(name, curve.x, curve.y, **look))
    return marks
