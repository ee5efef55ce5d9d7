"""Charts of metrics, for the figures of runs and for reports: by epoch, by fold and by source."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_medtl.evaluation.marks import Axis, Line, Mark, Plot, Points, line_style
from hf_medtl.evaluation.names import short_name


def history_plots(
    histories: Mapping[str, tuple[Sequence[dict[str, Any]], int | None]], metric: str, count: str, method: str
) -> list[Plot]:
    """Plot losses and a validation metric by epoch.

    Args:
        histories: name -> the Trainer's log_history and the step whose weights were kept. With several names, such as
            those of folds, there are only their validation lines.
        metric: the validation metric.
        count: number of validation images, as text.
        method: origin of the numbers.
    """
    losses: list[Mark] = []
    values: list[Mark] = []
    last_loss = last_value = float("nan")
    for index, (name, (log, best_step)) in enumerate(histories.items()):
        style = line_style(index)
        train = [row for row in log if "loss" in row]
        validation = [row for row in log if "eval_loss" in row]
        if train and len(histories) == 1:
            x, y = ([row[key] for row in train] for key in ("epoch", "loss"))
            losses.append(Line("training", x, y, "grey", "dash"))
        if not validation:
            continue
        epochs, loss = ([row[key] for row in validation] for key in ("epoch", "eval_loss"))
        scores = [row.get(f"eval_{metric}", float("nan")) for row in validation]
        losses.append(Line(name, epochs, loss, markers=True, **style))
        values.append(Line(name, epochs, scores, markers=True, **style))
        best = [i for i, row in enumerate(validation) if row["step"] == best_step and len(histories) == 1]
        if best:
            values.append(Points("kept", [epochs[best[0]]], [scores[best[0]]], colour="orange"))
        last_loss, last_value = loss[-1], scores[-1]
    title = f"Validation {short_name(metric)}"
    return [
        Plot("Loss", losses, Axis("epoch"), Axis("loss", 0), count, method, f"Loss by epoch, last {last_loss:.3f}."),
        Plot(title, values, Axis("epoch"), Axis(short_name(metric), None, 1.01), count, method,
             f"{title} by epoch, last {last_value:.3f}."),
    ]  # fmt: skip


def fold_plot(folds: Mapping[str, Mapping[str, Any]], pooled: Mapping[str, Any], metric: str, count: str) -> Plot:
    """Plot a metric with its interval for each fold and for the pooled folds.

    Args:
        folds: name -> value, low, high, as in results.json.
        pooled: value, low, high.
        metric: name of the metric.
        count: number of images and groups, as text.
    """
    value, low, high = interval_arrays([*folds.values(), pooled])
    last, name = len(folds), short_name(metric)
    ticks = [*folds, "pooled"]
    return Plot(
        f"{name} by fold",
        [
            Points("folds", range(last), value[:-1], low[:-1], high[:-1], "grey"),
            Points("pooled", [last], value[-1:], low[-1:], high[-1:], "blue"),
        ],
        Axis("", -0.5, last + 0.5, ticks),
        Axis(name),
        count,
        "Bars: 95 % intervals over groups, from results.json.",
        f"{name}: " + "; ".join(f"{tick} {v:.3f}" for tick, v in zip(ticks, value, strict=True)),
    )


def dice_plot(
    dice: NDArray[np.float64], sources: Iterable[str], by_source: Mapping[str, Any], texts: Sequence[str], count: str
) -> Plot:
    """Plot the Dice of each image by source, with the mean and its interval.

    Args:
        dice: (n,).
        sources: (n,) source of each image.
        by_source: source -> n and metrics, as in results.json.
        texts: (n,) shown on hover.
        count: number of images and groups, as text.
    """
    ticks = [f"{source} ({part['n']})" for source, part in by_source.items()]
    jitter = np.random.default_rng(0).uniform(-0.18, 0.18, len(dice))
    x = [list(by_source).index(source) for source in sources] + jitter
    mean, low, high = interval_arrays(part["metrics"]["dice"] for part in by_source.values())
    return Plot(
        "Dice by source",
        [
            Points("an image", x, dice, colour="grey", small=True, texts=texts),
            Points("mean", range(len(ticks)), mean, low, high, "blue"),
        ],
        Axis("source (images)", -0.5, len(ticks) - 0.5, ticks),
        Axis("Dice", None, 1.01),
        count,
        "Grey: images, jittered sideways. Blue: mean with its 95 % interval, studentised bootstrap over groups, from "
        "results.json.",
        "Dice by source. Means: " + ", ".join(f"{tick} {v:.3f}" for tick, v in zip(ticks, mean, strict=True)),
    )


def interval_arrays(metrics: Iterable[Mapping[Any, Any]]) -> NDArray[np.float64]:
    """Return value, low and high (3, n) of metrics of results.json, NaN where null."""
    return np.array([[metric[key] for key in ("value", "low", "high")] for metric in metrics], np.float64).T
