"""Figures of a run: training history, confusion matrix, ROC, reliability, risk-coverage, outlines, search trials."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import ConfusionMatrixDisplay, RocCurveDisplay

from hf_medtl.evaluation.decisions import risk_coverage
from hf_medtl.evaluation.metrics import calibration_bins, decide
from hf_medtl.evaluation.study_statements import LearningCurvePoint

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"  # Okabe and Ito: told apart by the colour-blind
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def training_history(
    log: Sequence[dict[str, Any]], best_step: int | None, path: Path, metric: str = "roc_auc", title: str = "ROC AUC"
) -> None:
    """Loss of training and validation, and a metric of validation, by epoch. `log` is the Trainer's log_history."""
    train = [(row["epoch"], row["loss"]) for row in log if "loss" in row]
    valid = [(row["epoch"], row["eval_loss"], row[f"eval_{metric}"], row["step"]) for row in log if "eval_loss" in row]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, other = figure.subplots(1, 2)
    if train:
        loss.plot(*zip(*train, strict=True), color=GREY, label="training")
    if valid:
        epoch, value, measured, steps = (list(column) for column in zip(*valid, strict=True))
        loss.plot(epoch, value, "o-", color=BLUE, label="validation")
        other.plot(epoch, measured, "o-", color=BLUE)
        if best_step in steps:
            for axes in (loss, other):
                axes.axvline(epoch[steps.index(best_step)], color=ORANGE, linestyle="--", label="kept")
    loss.set(xlabel="epoch", ylabel="loss", title="Loss", ylim=(0, None))
    other.set(xlabel="epoch", ylabel=title, title=f"Validation {title}", ylim=(None, 1.01))
    loss.legend()
    figure.savefig(path, dpi=120)


def confusion_matrix(
    matrix: Sequence[Sequence[int]], names: Sequence[str], path: Path, where: str = "test split"
) -> None:
    """Confusion matrix (K, K) of the test split, or `where` else: rows true, columns decided."""
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
    """ROC curve of the positive label with the saved threshold's point, or of each label against the rest."""
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    for index, name in enumerate(names):
        if positive is None or name == positive:
            RocCurveDisplay.from_predictions(labels == index, probabilities[:, index], ax=axes, name=name)
    if positive is not None:
        index = list(names).index(positive)
        called = decide(probabilities, index, threshold) == index
        actual = labels == index
        caption = "own thresholds" if isinstance(threshold, np.ndarray) else f"threshold {threshold:.2f}"
        axes.plot(called[~actual].mean(), called[actual].mean(), "o", color=ORANGE, label=caption)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title=where.capitalize(), aspect="equal")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def multilabel_roc(
    targets: NDArray[np.bool_],
    probabilities: NDArray[np.float64],
    names: Sequence[str],
    path: Path,
    where: str = "test split",
) -> None:
    """ROC curve of each label (n, K) that the test split has images with and without."""
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    for has, scores, name in zip(targets.T, probabilities.T, names, strict=True):
        if has.any() and not has.all():
            RocCurveDisplay.from_predictions(has, scores, ax=axes, name=name)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title=where.capitalize(), aspect="equal")
    axes.legend(loc="lower right", fontsize=8 if len(names) < 8 else 5)
    figure.savefig(path, dpi=120)


def reliability(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    index: int | None,
    path: Path,
    where: str = "test split",
) -> None:
    """Observed share against predicted probability in equal-mass bins, with the number of images in each.

    Of label `index`, or, if None, of the top label's confidence against correctness.
    """
    if index is None:
        score, outcome = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    else:
        score, outcome = probabilities[:, index], labels == index
    _reliability(score, outcome, f"{len(labels)} pictures", path, where)


def multilabel_reliability(
    targets: NDArray[np.bool_], probabilities: NDArray[np.float64], path: Path, where: str = "test split"
) -> None:
    """The same of every label of every image (n, K), together."""
    _reliability(probabilities.ravel(), targets.ravel(), "{} pictures x {} labels".format(*targets.shape), path, where)


def _reliability(score: NDArray[np.float64], outcome: NDArray[np.bool_], caption: str, path: Path, where: str) -> None:
    number = calibration_bins(score)
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfect")
    points = [(score[number == b].mean(), outcome[number == b].mean(), (number == b).sum()) for b in np.unique(number)]
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", color=BLUE, label=caption)
    for x, y, count in points:
        axes.annotate(str(count), (x, y), xytext=(5, -10), textcoords="offset points", fontsize=8, color=GREY)
    axes.set(xlabel="predicted probability", ylabel="observed share", title=f"Reliability on the {where}")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.legend()
    figure.savefig(path, dpi=120)


def risk_coverage_curve(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], abstained: float, path: Path, where: str = "test split"
) -> None:
    """Share of wrong decisions among the most confident images, and what abstaining leaves.

    Args:
        confidence, right: (n,) as for `risk_coverage`.
        abstained: share of images that the conformal sets abstain from.
    """
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    coverage, error = risk_coverage(confidence, right)
    axes.step(coverage, error, where="post", color=BLUE, label=f"{len(right)} pictures, the surest first")
    axes.axvline(1 - abstained, color=ORANGE, linestyle="--", label="sets of one label")
    axes.set(xlabel="share of pictures decided", ylabel="share of wrong decisions")
    axes.set(title=f"{where.capitalize()}: abstaining")
    axes.set(xlim=(0, 1.02), ylim=(0, max(0.1, 1.1 * error.max())))
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=120)


def mask_outlines(
    pictures: Sequence[NDArray[np.uint8]],
    masks: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    captions: Sequence[str],
    path: Path,
) -> None:
    """Images (H, W, 3) with the outlines of each class of their true and predicted masks (H, W)."""
    figure = Figure(figsize=(4 * len(pictures), 4.6), layout="constrained")
    for axes, picture, both, caption in zip(
        figure.subplots(1, len(pictures), squeeze=False)[0], pictures, masks, captions, strict=True
    ):
        step = max(1, max(picture.shape) // 800)  # more than a screen shows
        axes.imshow(picture[::step, ::step], cmap="gray")
        for mask, colour in zip(both, (BLUE, ORANGE), strict=True):
            for value in np.unique(mask[mask > 0]):
                inside = np.pad(mask[::step, ::step] == value, 1)  # closes an outline at the image's edge
                side = [np.arange(length) - 1 for length in inside.shape[::-1]]
                if inside.any():
                    axes.contour(*side, inside, [0.5], colors=colour, linewidths=1.2)
        axes.set(title=caption)
        axes.set_axis_off()
    figure.supxlabel("outlines: true (blue) and predicted (orange)", fontsize=10)
    figure.savefig(path, dpi=120)


def by_source(
    values: NDArray[np.float64], sources: Sequence[str], results: dict[str, Any], path: Path, where: str = "test split"
) -> None:
    """A point an image by source, with the mean and its interval from `by_source` of results.json."""
    figure = Figure(figsize=(2.5 + 1.3 * len(results), 3.8), layout="constrained")
    axes, rng = figure.subplots(), np.random.default_rng(0)
    for place, (source, part) in enumerate(results.items()):
        points = values[np.asarray(sources) == source]
        axes.plot(place + rng.uniform(-0.15, 0.15, len(points)), points, ".", color=GREY, zorder=1)
        mean, low, high = (part["metrics"]["dice"][key] for key in ("value", "low", "high"))
        axes.plot(place, mean, "o", color=BLUE, zorder=3)
        if low is not None:
            axes.plot([place, place], [low, high], color=BLUE, linewidth=2, zorder=2)
    axes.set_xticks(range(len(results)), [f"{name}\n{part['n']} pictures" for name, part in results.items()])
    axes.set(
        ylabel="Dice",
        title=f"{where.capitalize()}: mean and 95 % interval",
        xlim=(-0.5, len(results) - 0.5),
        ylim=(None, 1.01),
    )
    figure.savefig(path, dpi=120)


def by_fold(folds: Sequence[dict[str, Any]], pooled: dict[str, Any], metric: str, title: str, path: Path) -> None:
    """A metric with its interval for each fold, and of all folds' images pooled; each from a `metrics`."""
    figure = Figure(figsize=(2.5 + 0.6 * len(folds), 3.6), layout="constrained")
    axes = figure.subplots()
    for place, (part, colour) in enumerate([*((fold, GREY) for fold in folds), (pooled, BLUE)]):
        value, low, high = (part[metric][key] for key in ("value", "low", "high"))
        if value is not None:
            axes.plot(place, value, "o", color=colour)
        if low is not None:
            axes.plot([place, place], [low, high], color=colour, linewidth=2)
    axes.set_xticks(range(len(folds) + 1), [*map(str, range(len(folds))), "pooled"])
    axes.set(xlabel="fold", ylabel=title, title=f"{title} with 95 % intervals", xlim=(-0.5, len(folds) + 0.5))
    figure.savefig(path, dpi=120)


def search_trials(
    values: Sequence[float | None],
    finished: Sequence[bool],
    higher_is_better: bool,
    importances: dict[str, float],
    title: str,
    path: Path,
) -> None:
    """Value of each trial of a search with the best so far, and what the values depend on.

    Args:
        values: (n,) in order of the trials; of those given up the last one, or None.
        finished: (n,) False for those given up.
        importances: option -> share; may be empty.
    """
    figure = Figure(figsize=(9 if importances else 5, 3.6), layout="constrained")
    first, *second = figure.subplots(1, 1 + bool(importances), squeeze=False)[0]
    points = [(number, value) for number, value in enumerate(values, 1) if value is not None]
    for is_finished, colour, label in ((True, BLUE, "finished"), (False, GREY, "given up")):
        chosen = [(number, value) for number, value in points if finished[number - 1] == is_finished]
        if chosen:
            first.plot(*zip(*chosen, strict=True), "o", color=colour, label=label)
    kept = [(number, value) for number, value in points if finished[number - 1]]
    best = (np.maximum if higher_is_better else np.minimum).accumulate([value for _, value in kept])
    first.step([number for number, _ in kept], best, where="post", color=ORANGE, label="best so far")
    first.set(xlabel="trial", ylabel=title, title="Trials")
    first.legend()
    for axes in second:
        names = list(importances)[::-1]
        axes.barh(names, [importances[name] for name in names], color=BLUE)
        axes.set(xlabel="share of the variation (PED-ANOVA)", title="What matters")
    figure.savefig(path, dpi=120)


def learning_curve(points: Sequence[LearningCurvePoint], title: str, path: Path) -> None:
    """Metric with its interval by number of training groups: a colour a backbone, dashed from random weights.

    Short lines across are single seeds. Arms of one backbone and start differ in their marker.
    """
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    arms = list(dict.fromkeys((point.arm, point.backbone, point.scratch) for point in points))
    backbones = list(dict.fromkeys(backbone for _, backbone, _ in arms))
    for place, (arm, backbone, scratch) in enumerate(arms):
        its = sorted((point for point in points if point.arm == arm), key=lambda point: point.groups)
        colour = COLOURS[backbones.index(backbone) % len(COLOURS)]
        marker = "osD^vPX*"[sum(other[1:] == (backbone, scratch) for other in arms[:place]) % 8]
        shift = 1 + 0.03 * (place - (len(arms) - 1) / 2)  # so that intervals do not hide each other
        x = np.array([point.groups for point in its]) * shift
        value, low, high = (np.array(column) for column in zip(*(point.mean for point in its), strict=True))
        reach = [value - low, high - value]
        axes.errorbar(x, value, reach, color=colour, marker=marker, linestyle="--" if scratch else "-", capsize=3,
                      markerfacecolor="white" if scratch else colour, label=arm)  # fmt: skip
        for at, point in zip(x, its, strict=True):
            axes.plot([at] * len(point.values), [*point.values.values()], "_", color=colour, markersize=9)
    ticks = sorted({(point.groups, point.percent) for point in points})
    axes.set_xscale("log")
    axes.set_xticks([groups for groups, _ in ticks], [f"{groups:.0f}\n{percent:g} %" for groups, percent in ticks])
    axes.minorticks_off()
    axes.set(xlabel="training groups", ylabel=title, title=f"{title} on the same test pictures, with 95 % intervals")
    axes.legend(fontsize=9)
    figure.savefig(path, dpi=120)


def robustness(result: dict[str, Any], path: Path, where: str) -> None:
    """Balanced accuracy by level with its interval, a panel each corruption; the baseline of `robustness` beside it."""
    names = list(result["corruptions"])
    rows = -(-len(names) // 3)
    figure = Figure(figsize=(9, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, 3, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, name in zip(panels, names, strict=False):
        lines = [("model", BLUE, [result["clean"], *result["corruptions"][name]["levels"]])]
        if "baseline" in result:
            lines.append(("baseline", GREY, [*result["baseline"]["clean"], *result["baseline"][name]]))
        for caption, colour, levels in lines:
            its = [level["balanced_accuracy"] for level in levels]
            value, low, high = (
                [np.nan if one[key] is None else one[key] for one in its] for key in ("value", "low", "high")
            )
            axes.plot(range(len(its)), value, "o-", color=colour, label=caption)
            axes.fill_between(range(len(its)), low, high, color=colour, alpha=0.2)
        axes.set(title=name, ylim=(0, 1.02), xticks=range(6))
    panels[0].legend(loc="lower left")
    figure.supxlabel("level; 0 is the picture as it is")
    figure.supylabel(f"balanced accuracy, {where}")
    figure.savefig(path, dpi=120)
