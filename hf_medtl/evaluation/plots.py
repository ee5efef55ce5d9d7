"""Figures of runs: training history, confusion matrix, ROC, reliability, masks, folds, search, study, robustness."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import ConfusionMatrixDisplay, RocCurveDisplay

from hf_medtl.evaluation.curves import reliability_points
from hf_medtl.evaluation.decisions import risk_coverage
from hf_medtl.evaluation.metrics import decide
from hf_medtl.evaluation.study_statements import LearningCurvePoint

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"  # Okabe and Ito: distinct for colour-blind readers
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def training_history(
    log: Sequence[dict[str, Any]], best_step: int | None, path: Path, metric: str = "roc_auc", title: str = "ROC AUC"
) -> None:
    """Plot training and validation loss, and a validation metric, by epoch; `log` is the Trainer's log_history."""
    train = [(row["epoch"], row["loss"]) for row in log if "loss" in row]
    valid = [(row["epoch"], row["eval_loss"], row[f"eval_{metric}"], row["step"]) for row in log if "eval_loss" in row]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, other = figure.subplots(1, 2)
    if train:
        loss.plot(*zip(*train, strict=True), color=GREY, label="training")
    if valid:
        epochs, losses, values, steps = (list(column) for column in zip(*valid, strict=True))
        loss.plot(epochs, losses, "o-", color=BLUE, label="validation")
        other.plot(epochs, values, "o-", color=BLUE)
        if best_step in steps:
            for axes in (loss, other):
                axes.axvline(epochs[steps.index(best_step)], color=ORANGE, linestyle="--", label="selected")
    loss.set(xlabel="epoch", ylabel="loss", title="Loss", ylim=(0, None))
    other.set(xlabel="epoch", ylabel=title, title=f"Validation {title}", ylim=(None, 1.01))
    loss.legend()
    figure.savefig(path, dpi=120)


def confusion_matrix(
    matrix: Sequence[Sequence[int]], names: Sequence[str], path: Path, where: str = "test split"
) -> None:
    """Plot a confusion matrix (K, K) with a row for each true label and a column for each decision."""
    figure = Figure(figsize=(4 + 0.4 * len(names), 3.4 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots()
    ConfusionMatrixDisplay(np.array(matrix), display_labels=list(names)).plot(ax=axes, cmap="Blues", colorbar=False)
    axes.set(xlabel="decided", ylabel="true", title=where.capitalize())
    figure.savefig(path, dpi=120)


def roc(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    names: Sequence[str],
    positive: str | None,
    threshold: float | NDArray[np.float64] | None,
    path: Path,
    where: str = "test split",
) -> None:
    """Plot the ROC curve of the positive label with the saved threshold's point, or of each label against the rest."""
    lines = [
        (labels == index, probabilities[:, index], name)
        for index, name in enumerate(names)
        if positive is None or name == positive
    ]
    point = None
    if positive is not None:
        index = list(names).index(positive)
        called, actual = decide(probabilities, index, threshold) == index, labels == index
        caption = "own thresholds" if isinstance(threshold, np.ndarray) else f"threshold {threshold:.2f}"
        point = called[~actual].mean(), called[actual].mean(), caption
    _roc(lines, path, where, point)


def multilabel_roc(
    targets: NDArray[np.bool_],
    probabilities: NDArray[np.float64],
    names: Sequence[str],
    path: Path,
    where: str = "test split",
) -> None:
    """Plot the ROC curve of each label (n, K) that some images have and some do not."""
    lines = zip(targets.T, probabilities.T, names, strict=True)
    _roc([line for line in lines if line[0].any() and not line[0].all()], path, where, None, 8 if len(names) < 8 else 5)


def _roc(
    lines: Iterable[tuple[NDArray[np.bool_], NDArray[np.float64], str]],
    path: Path,
    where: str,
    point: tuple[float, float, str] | None,
    fontsize: int | None = None,
) -> None:
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    for outcome, score, name in lines:
        RocCurveDisplay.from_predictions(outcome, score, ax=axes, name=name)
    if point:
        axes.plot(*point[:2], "o", color=ORANGE, label=point[2])
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title=where.capitalize(), aspect="equal")
    axes.legend(loc="lower right", fontsize=fontsize)
    figure.savefig(path, dpi=120)


def reliability(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    index: int | None,
    path: Path,
    where: str = "test split",
) -> None:
    """Plot the observed proportion against the predicted probability of label `index`, in equal-mass bins.

    If `index` is None, plot the proportion of correct answers against the probability of the most probable label.
    """
    if index is None:
        score, outcome = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    else:
        score, outcome = probabilities[:, index], labels == index
    _reliability(score, outcome, f"{len(labels)} images", path, where)


def multilabel_reliability(
    targets: NDArray[np.bool_], probabilities: NDArray[np.float64], path: Path, where: str = "test split"
) -> None:
    """Plot the observed proportion against the predicted probability of all labels of all images (n, K) together."""
    _reliability(probabilities.ravel(), targets.ravel(), "{} images x {} labels".format(*targets.shape), path, where)


def _reliability(score: NDArray[np.float64], outcome: NDArray[np.bool_], caption: str, path: Path, where: str) -> None:
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfect")
    bins = reliability_points(outcome, score, np.arange(len(score)))
    axes.plot(bins.predicted, bins.observed, "o-", color=BLUE, label=caption)
    for x, y, n in zip(bins.predicted, bins.observed, bins.n, strict=True):
        axes.annotate(str(n), (x, y), xytext=(5, -10), textcoords="offset points", fontsize=8, color=GREY)
    axes.set(xlabel="predicted probability", ylabel="observed proportion", title=f"Reliability on the {where}")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.legend()
    figure.savefig(path, dpi=120)


def risk_coverage_curve(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], abstained: float, path: Path, where: str = "test split"
) -> None:
    """Plot the error rate among the most confident images, and the coverage of the conformal sets.

    Args:
        confidence: (n,) as for `risk_coverage`.
        correct: (n,) as for `risk_coverage`.
        abstained: fraction of images on which the conformal sets abstain.
        path: file to write.
        where: the data that was predicted, for the title.
    """
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    coverage, error = risk_coverage(confidence, correct)
    axes.step(coverage, error, where="post", color=BLUE, label=f"{len(correct)} images, most confident first")
    axes.axvline(1 - abstained, color=ORANGE, linestyle="--", label="conformal sets of one label")
    axes.set(xlabel="fraction of images decided", ylabel="error rate", title=f"{where.capitalize()}: abstaining")
    axes.set(xlim=(0, 1.02), ylim=(0, max(0.1, 1.1 * error.max())))
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=120)


def mask_outlines(
    images: Sequence[NDArray[np.uint8]],
    masks: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    captions: Sequence[str],
    path: Path,
) -> None:
    """Show images (H, W, 3) with the outlines of each class of their true and predicted masks (H, W)."""
    figure = Figure(figsize=(4 * len(images), 4.6), layout="constrained")
    panels = figure.subplots(1, len(images), squeeze=False)[0]
    for axes, image, pair, caption in zip(panels, images, masks, captions, strict=True):
        step = max(1, max(image.shape) // 800)  # a screen does not show more
        axes.imshow(image[::step, ::step], cmap="gray")
        for mask, colour in zip(pair, (BLUE, ORANGE), strict=True):
            for value in np.unique(mask[mask > 0]):
                inside = np.pad(mask[::step, ::step] == value, 1)  # closes an outline at the image's edge
                coordinates = [np.arange(length) - 1 for length in inside.shape[::-1]]
                if inside.any():
                    axes.contour(*coordinates, inside, [0.5], colors=colour, linewidths=1.2)
        axes.set(title=caption)
        axes.set_axis_off()
    figure.supxlabel("outlines: true (blue) and predicted (orange)", fontsize=10)
    figure.savefig(path, dpi=120)


def by_source(
    values: NDArray[np.float64], sources: Sequence[str], results: dict[str, Any], path: Path, where: str = "test split"
) -> None:
    """Plot the Dice of each image by source, with the mean and its interval from `by_source` of results.json."""
    figure = Figure(figsize=(2.5 + 1.3 * len(results), 3.8), layout="constrained")
    axes, rng = figure.subplots(), np.random.default_rng(0)
    for x, (source, part) in enumerate(results.items()):
        points = values[np.asarray(sources) == source]
        axes.plot(x + rng.uniform(-0.15, 0.15, len(points)), points, ".", color=GREY, zorder=1)
        _interval(axes, x, part["metrics"]["dice"], BLUE)
    axes.set_xticks(range(len(results)), [f"{name}\n{part['n']} images" for name, part in results.items()])
    axes.set(ylabel="Dice", title=f"{where.capitalize()}: mean and 95 % interval")
    axes.set(xlim=(-0.5, len(results) - 0.5), ylim=(None, 1.01))
    figure.savefig(path, dpi=120)


def by_fold(folds: Sequence[dict[str, Any]], pooled: dict[str, Any], metric: str, title: str, path: Path) -> None:
    """Plot a metric with its interval for each fold and for the pooled folds, from their `metrics` in results.json."""
    figure = Figure(figsize=(2.5 + 0.6 * len(folds), 3.6), layout="constrained")
    axes = figure.subplots()
    for x, (metrics, colour) in enumerate([*((fold, GREY) for fold in folds), (pooled, BLUE)]):
        _interval(axes, x, metrics[metric], colour)
    axes.set_xticks(range(len(folds) + 1), [*map(str, range(len(folds))), "pooled"])
    axes.set(xlabel="fold", ylabel=title, title=f"{title} with 95 % intervals", xlim=(-0.5, len(folds) + 0.5))
    figure.savefig(path, dpi=120)


def _interval(axes: Axes, x: float, metric: dict[str, Any], colour: str) -> None:
    """Draw a value and a vertical line between its limits, where they are defined."""
    if metric["low"] is not None:
        axes.plot([x, x], [metric["low"], metric["high"]], color=colour, linewidth=2, zorder=2)
    if metric["value"] is not None:
        axes.plot(x, metric["value"], "o", color=colour, zorder=3)


def search_trials(
    values: Sequence[float | None],
    finished: Sequence[bool],
    higher_is_better: bool,
    importances: dict[str, float],
    title: str,
    path: Path,
) -> None:
    """Plot the value of each trial of a search with the best so far, and the importance of each option.

    Args:
        values: (n,) in order of the trials; for a pruned trial its last value or None.
        finished: (n,) False for pruned trials.
        higher_is_better: True if the search maximizes the value.
        importances: option -> fraction of the variation; may be empty.
        title: name of the value.
        path: file to write.
    """
    figure = Figure(figsize=(9 if importances else 5, 3.6), layout="constrained")
    first, *second = figure.subplots(1, 1 + bool(importances), squeeze=False)[0]
    points = [(number, value) for number, value in enumerate(values, 1) if value is not None]
    complete = [point for point in points if finished[point[0] - 1]]
    pruned = [point for point in points if not finished[point[0] - 1]]
    for chosen, colour, label in ((complete, BLUE, "finished"), (pruned, GREY, "pruned")):
        if chosen:
            first.plot(*zip(*chosen, strict=True), "o", color=colour, label=label)
    best = (np.maximum if higher_is_better else np.minimum).accumulate([value for _, value in complete])
    first.step([number for number, _ in complete], best, where="post", color=ORANGE, label="best so far")
    first.set(xlabel="trial", ylabel=title, title="Trials")
    first.legend()
    for axes in second:
        names = list(importances)[::-1]
        axes.barh(names, [importances[name] for name in names], color=BLUE)
        axes.set(xlabel="fraction of the variation (PED-ANOVA)", title="Importance")
    figure.savefig(path, dpi=120)


def learning_curve(points: Sequence[LearningCurvePoint], title: str, path: Path) -> None:
    """Plot a metric with its interval by number of training groups.

    Each backbone has a colour, and its arms differ in their markers; lines of arms from random weights are dashed.
    Short horizontal lines are single seeds.
    """
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    arms = list(dict.fromkeys((point.arm, point.backbone, point.scratch) for point in points))
    backbones = list(dict.fromkeys(backbone for _, backbone, _ in arms))
    for index, (arm, backbone, scratch) in enumerate(arms):
        curve = sorted((point for point in points if point.arm == arm), key=lambda point: point.groups)
        colour = COLOURS[backbones.index(backbone) % len(COLOURS)]
        marker = "osD^vPX*"[sum(other[1:] == (backbone, scratch) for other in arms[:index]) % 8]
        shift = 1 + 0.03 * (index - (len(arms) - 1) / 2)  # so that intervals do not hide each other
        x = np.array([point.groups for point in curve]) * shift
        value, low, high = (np.array(column) for column in zip(*(point.mean for point in curve), strict=True))
        axes.errorbar(x, value, [value - low, high - value], color=colour, marker=marker,
                      linestyle="--" if scratch else "-", capsize=3, markerfacecolor="white" if scratch else colour,
                      label=arm)  # fmt: skip
        for x_point, point in zip(x, curve, strict=True):
            axes.plot([x_point] * len(point.values), [*point.values.values()], "_", color=colour, markersize=9)
    ticks = sorted({(point.groups, point.percent) for point in points})
    axes.set_xscale("log")
    axes.set_xticks([groups for groups, _ in ticks], [f"{groups:.0f}\n{percent:g} %" for groups, percent in ticks])
    axes.minorticks_off()
    axes.set(xlabel="training groups", ylabel=title, title=f"{title} on the same test images, with 95 % intervals")
    axes.legend(fontsize=9)
    figure.savefig(path, dpi=120)


def robustness(result: dict[str, Any], path: Path, where: str) -> None:
    """Plot balanced accuracy with its interval by level of each corruption, next to the baseline of `robustness`."""
    names = list(result["corruptions"])
    rows = -(-len(names) // 3)
    figure = Figure(figsize=(9, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, 3, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, name in zip(panels, names, strict=False):
        lines = [("model", BLUE, [result["clean"], *result["corruptions"][name]["levels"]])]
        if "baseline" in result:
            lines.append(("baseline", GREY, [*result["baseline"]["clean"], *result["baseline"][name]]))
        for caption, colour, levels in lines:
            intervals = [level["balanced_accuracy"] for level in levels]
            value, low, high = (
                np.array([interval[key] for interval in intervals], np.float64) for key in ("value", "low", "high")
            )
            axes.plot(range(len(levels)), value, "o-", color=colour, label=caption)
            axes.fill_between(range(len(levels)), low, high, color=colour, alpha=0.2)
        axes.set(title=name, ylim=(0, 1.02), xticks=range(6))
    panels[0].legend(loc="lower left")
    figure.supxlabel("level; 0 is the original image")
    figure.supylabel(f"balanced accuracy, {where}")
    figure.savefig(path, dpi=120)
