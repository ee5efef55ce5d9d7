"""Figures of a comparison of runs: metrics and differences with intervals, costs, and disputed images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from hf_medtl.evaluation.matplotlib_backend import BLUE, GREY, IMAGE_DPI, series_styles, write_figure

COLUMNS = 4  # of an image grid


def metrics_and_differences(
    metrics: pd.DataFrame, differences: pd.DataFrame, reference: str, names: Mapping[str, str], path: Path
) -> None:
    """Plot metrics of each run with their intervals, next to the differences from the reference.

    Args:
        metrics: `metrics` of a `Comparison`.
        differences: `differences` of a `Comparison`.
        reference: name of the run that is subtracted.
        names: metric to show -> title, in order.
        path: file to write.
    """
    runs = list(dict.fromkeys(metrics["run"]))
    figure = Figure(figsize=(10, (0.9 + 0.35 * len(runs)) * len(names)), layout="constrained")
    grid = figure.subplots(len(names), 2, squeeze=False)
    for (values, gaps), (metric, title) in zip(grid, names.items(), strict=True):
        for y, run in enumerate(runs):
            for axes, table in ((values, metrics), (gaps, differences)):
                rows = table[(table["run"] == run) & (table["metric"] == metric)]
                _interval(axes, rows, y, GREY if run == reference else BLUE)
        gaps.axvline(0, color=GREY, linestyle=":")
        gaps.plot(0, runs.index(reference), "o", color=GREY)
        values.set_yticks(range(len(runs)), runs, parse_math=False)
        gaps.set_yticks(range(len(runs)), [])
        for axes in (values, gaps):
            axes.set_ylim(len(runs) - 0.5, -0.5)
        values.set_xlabel(title)
        gaps.set_xlabel(f"minus {reference}, paired by image", parse_math=False)
    grid[0, 0].set_title("value, 95 % interval", fontsize=10)
    grid[0, 1].set_title("difference, 95 % interval", fontsize=10)
    write_figure(figure, path)


def part_metrics(table: pd.DataFrame, names: Mapping[str, str], path: Path) -> None:
    """Plot metrics with intervals of each label, class or source, with the runs side by side.

    Args:
        table: `parts` of a `Comparison`.
        names: metric to show -> title, in order.
        path: file to write.
    """
    runs, parts = (list(dict.fromkeys(table[column])) for column in ("run", "part"))
    height = 1.2 + 0.18 * len(parts) * (len(runs) + 1)
    figure = Figure(figsize=(1.5 + 2.7 * len(names), max(2.6, height)), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(names), squeeze=False)[0], names.items(), strict=True):
        for number, (run, (colour, marker)) in enumerate(zip(runs, series_styles(), strict=False)):
            shift = (number - (len(runs) - 1) / 2) * 0.8 / len(runs)
            for y, part in enumerate(parts):
                chosen = (table["run"] == run) & (table["part"] == part) & (table["metric"] == metric)
                _interval(axes, table[chosen], y + shift, colour, marker, run if y == 0 else "")
        axes.set_yticks(range(len(parts)), parts if axes.get_subplotspec().is_first_col() else [], parse_math=False)
        axes.set(ylim=(len(parts) - 0.5, -0.5), xlabel=title)
    _legend(figure, len(runs))
    write_figure(figure, path)


def pareto_front(
    metrics: pd.DataFrame,
    costs: pd.DataFrame,
    titles: Mapping[str, str],
    title: str,
    higher_is_better: bool,
    path: Path,
) -> None:
    """Plot a metric with its interval against each cost, and the Pareto front of the runs.

    Args:
        metrics: a row for each run: run, value, low, high.
        costs: table indexed by run, without missing values.
        titles: column of `costs` -> title of its axis; at least one.
        title: title of the metric.
        higher_is_better: True if higher values of the metric are better.
        path: file to write.
    """
    figure = Figure(figsize=(5 * len(titles), 4), layout="constrained")
    value = metrics.set_index("run")["value"]
    rank = value if higher_is_better else -value
    for axes, (column, caption) in zip(figure.subplots(1, len(titles), squeeze=False)[0], titles.items(), strict=True):
        cost = costs[column]
        rows = zip(*(metrics[key] for key in ("run", "value", "low", "high")), strict=True)
        for (run, y, low, high), (colour, marker) in zip(rows, series_styles(), strict=False):
            axes.plot([cost[run]] * 2, [low, high], color=colour, linewidth=1.5, alpha=0.6, zorder=1)
            axes.plot(cost[run], y, marker, color=colour, markersize=7, label=run, zorder=3)
        order = pd.DataFrame({"cost": cost[rank.index], "rank": -rank}).sort_values(["cost", "rank"]).index
        best = [run for i, run in enumerate(order) if rank[run] > max(rank[order[:i]], default=-np.inf)]
        front = [(cost[run], value[run]) for run in best]
        axes.step(*zip(*front, strict=True), where="post", color=GREY, zorder=2, label="Pareto front")
        axes.set(xlabel=caption, ylabel=title)
        if cost.max() > 5 * cost.min():
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.1)
    _legend(figure, len(metrics) + 1)
    write_figure(figure, path)


def image_grid(images: Sequence[NDArray[np.uint8]], captions: Sequence[str], title: str, path: Path) -> None:
    """Show images (H, W, 3) with captions of a few lines."""
    columns = min(COLUMNS, len(images))
    rows, lines = -(-len(images) // columns), max(caption.count("\n") for caption in captions) + 1
    figure = Figure(figsize=(2.8 * columns, (2.6 + 0.17 * lines) * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, caption in zip(grid, images, captions, strict=False):
        step = max(1, max(image.shape) // 400)  # a page does not show more
        axes.imshow(image[::step, ::step])
        axes.set_title(caption, fontsize=8, loc="left", parse_math=False)
    figure.suptitle(title, fontsize=10)
    write_figure(figure, path, IMAGE_DPI)


def _legend(figure: Figure, number: int) -> None:
    """Draw one legend for all panels, above them."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside upper center", ncols=min(4, number), fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _interval(axes: Axes, rows: pd.DataFrame, y: float, colour: str, marker: str = "o", label: str = "") -> None:
    """Draw a value and a horizontal line between its limits; nothing if there is no row."""
    for value, low, high in zip(rows["value"], rows["low"], rows["high"], strict=True):
        axes.plot([low, high], [y, y], color=colour, linewidth=2)
        axes.plot(value, y, marker, color=colour, markersize=6, label=label or "_")
