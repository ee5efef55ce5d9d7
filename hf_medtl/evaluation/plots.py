"""Figures of runs: training history, confusion matrix, ROC, reliability, masks, folds, search, study, robustness."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hf_medtl.evaluation.marks import Plot
from hf_medtl.evaluation.matplotlib_backend import BLUE, COLOURS, GREY, ORANGE, save_figure, write_figure
from hf_medtl.evaluation.metric_charts import dice_plot, fold_plot, history_plots, interval_arrays
from hf_medtl.evaluation.study_statements import LearningCurvePoint


def confusion_matrix(
    matrix: Sequence[Sequence[int]], names: Sequence[str], path: Path, where: str = "test split"
) -> None:
    """Plot a confusion matrix (K, K) with a row for each true label and a column for each decision.

    A cell shows the number of images and its percentage of the row, which also gives the colour.
    """
    counts = np.array(matrix)
    totals = counts.sum(axis=1, keepdims=True)
    fractions = counts / np.maximum(totals, 1)
    figure = Figure(figsize=(3 + 0.8 * len(names), 2.4 + 0.8 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        percent = f"\n{100 * fractions[row, column]:.0f} %" if totals[row, 0] else ""
        colour = "white" if fractions[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count:,}{percent}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 4 else 0, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel="decided", ylabel="true")
    axes.set_title(f"Confusion matrix, {where}\n{counts.sum():,} images", parse_math=False)
    write_figure(figure, path)


def training_history(
    log: Sequence[dict[str, Any]], best_step: int | None, path: Path, metric: str = "roc_auc", title: str = "ROC AUC"
) -> None:
    """Plot training and validation loss, and a validation metric, by epoch; `log` is the Trainer's log_history."""
    plots = history_plots({"validation": (log, best_step)}, metric, "", "")
    save_figure(path, plots, ["Loss", f"Validation {title}"], 9, 3.8)


def save_plot(plot: Plot, path: Path, where: str = "test split", width: float = 4.8) -> None:
    """Save a plot whose title names the data and the number of images, too; the width is in inches."""
    save_figure(path, [plot], [f"{plot.title}, {where}\n{plot.count}"], width, 4.8)


def by_source(
    values: NDArray[np.float64], sources: Sequence[str], results: dict[str, Any], path: Path, where: str = "test split"
) -> None:
    """Plot the Dice of each image by source, with the mean and its interval from `by_source` of results.json."""
    save_plot(dice_plot(values, sources, results, (), f"{len(values):,} images"), path, where, 2.5 + 1.3 * len(results))


def by_fold(folds: Sequence[dict[str, Any]], pooled: dict[str, Any], metric: str, title: str, path: Path) -> None:
    """Plot a metric with its interval for each fold and for the pooled folds, from their `metrics` in results.json."""
    plot = fold_plot({str(k): fold[metric] for k, fold in enumerate(folds)}, pooled[metric], metric, "")
    save_figure(path, [plot], [f"{title} with 95 % intervals"], 2.5 + 0.6 * len(folds), 3.8)


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
    write_figure(figure, path)


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
    write_figure(figure, path)


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
        colour = list(COLOURS.values())[backbones.index(backbone) % len(COLOURS)]
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
    write_figure(figure, path)


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
            value, low, high = interval_arrays(level["balanced_accuracy"] for level in levels)
            axes.plot(range(len(levels)), value, "o-", color=colour, label=caption)
            axes.fill_between(range(len(levels)), low, high, color=colour, alpha=0.2)
        axes.set(title=name, ylim=(0, 1.02), xticks=range(6))
    panels[0].legend(loc="lower left")
    figure.supxlabel("level; 0 is the original image")
    figure.supylabel(f"balanced accuracy, {where}")
    write_figure(figure, path)
