"""Figures of a run: training history, confusion matrix, ROC, reliability."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import ConfusionMatrixDisplay, RocCurveDisplay

from hf_medtl.evaluation.metrics import calibration_bins, decide

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"  # Okabe and Ito: told apart by the colour-blind


def history(log: Sequence[dict[str, Any]], best_step: int | None, path: Path) -> None:
    """Loss of training and validation, and validation AUC, by epoch. `log` is the Trainer's log_history."""
    train = [(row["epoch"], row["loss"]) for row in log if "loss" in row]
    valid = [(row["epoch"], row["eval_loss"], row["eval_roc_auc"], row["step"]) for row in log if "eval_loss" in row]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, auc = figure.subplots(1, 2)
    if train:
        loss.plot(*zip(*train, strict=True), color=GREY, label="training")
    if valid:
        epoch, value, area, steps = (list(column) for column in zip(*valid, strict=True))
        loss.plot(epoch, value, "o-", color=BLUE, label="validation")
        auc.plot(epoch, area, "o-", color=BLUE)
        if best_step in steps:
            for axes in (loss, auc):
                axes.axvline(epoch[steps.index(best_step)], color=ORANGE, linestyle="--", label="kept")
    loss.set(xlabel="epoch", ylabel="loss", title="Loss", ylim=(0, None))
    auc.set(xlabel="epoch", ylabel="ROC AUC", title="Validation ROC AUC", ylim=(None, 1.01))
    loss.legend()
    figure.savefig(path, dpi=120)


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    """Confusion matrix (K, K) of the test split: rows true, columns decided."""
    figure = Figure(figsize=(4 + 0.4 * len(names), 3.4 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots()
    ConfusionMatrixDisplay(np.array(matrix), display_labels=list(names)).plot(ax=axes, cmap="Blues", colorbar=False)
    axes.set(xlabel="decided", ylabel="true", title="Test split")
    figure.savefig(path, dpi=120)


def roc(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    names: Sequence[str],
    positive: str | None,
    threshold: float | None,
    path: Path,
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
        axes.plot(called[~actual].mean(), called[actual].mean(), "o", color=ORANGE, label=f"threshold {threshold:.2f}")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title="Test split", aspect="equal")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def roc_of_several(
    targets: NDArray[np.bool_], probabilities: NDArray[np.float64], names: Sequence[str], path: Path
) -> None:
    """ROC curve of each label (n, K) that the test split has pictures with and without."""
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    for has, scores, name in zip(targets.T, probabilities.T, names, strict=True):
        if has.any() and not has.all():
            RocCurveDisplay.from_predictions(has, scores, ax=axes, name=name)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title="Test split", aspect="equal")
    axes.legend(loc="lower right", fontsize=8 if len(names) < 8 else 5)
    figure.savefig(path, dpi=120)


def reliability(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], index: int | None, path: Path, bins: int = 10
) -> None:
    """Observed share against predicted probability in equal-mass bins, with the number of pictures in each.

    Of label `index`, or, if None, of the top label's confidence against correctness.
    """
    if index is None:
        score, outcome = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    else:
        score, outcome = probabilities[:, index], labels == index
    _reliability(score, outcome, f"{len(labels)} pictures", path, bins)


def reliability_of_several(
    targets: NDArray[np.bool_], probabilities: NDArray[np.float64], path: Path, bins: int = 10
) -> None:
    """The same of every label of every picture (n, K), together."""
    _reliability(probabilities.ravel(), targets.ravel(), "{} pictures x {} labels".format(*targets.shape), path, bins)


def _reliability(score: NDArray[np.float64], outcome: NDArray[np.bool_], caption: str, path: Path, bins: int) -> None:
    number = calibration_bins(score, bins)
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfect")
    points = [(score[number == b].mean(), outcome[number == b].mean(), (number == b).sum()) for b in np.unique(number)]
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", color=BLUE, label=caption)
    for x, y, count in points:
        axes.annotate(str(count), (x, y), xytext=(5, -10), textcoords="offset points", fontsize=8, color=GREY)
    axes.set(xlabel="predicted probability", ylabel="observed share", title="Reliability on the test split")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.legend()
    figure.savefig(path, dpi=120)
