"""Cross-validations of the same images, the average of their probabilities, and how they differ.

    python benchmarks/folds.py runs/vit-s runs/lite0

Each argument is a folder that `--folds K` without `--fold` has finished, with the same data, folds and split seed. It
prints pooled out-of-fold metrics with 95 % intervals (bootstrap over groups), and paired differences. The average is of
the calibrated probabilities of each fold's models, none of which has seen that fold, so it is honest. It is decided at
0.5, and at the mean of the thresholds that the fold's models got from validation.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from comparison import Predictions, difference
from results import show

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.intervals import metric_intervals

METRICS = {"roc_auc": "ROC AUC", "accuracy": "accuracy", "sensitivity": "sensitivity", "specificity": "specificity",
           "brier": "Brier score", "ece": "calibration error"}  # fmt: skip
COMPARED = ("roc_auc", "accuracy", "brier")


def read(folder: Path) -> Predictions:
    """Out-of-fold predictions by image_id, so that those of several folders pair up."""
    run = Predictions.read(folder)
    order = run.table["image_id"].argsort(kind="stable").to_numpy()
    threshold = run.threshold[order] if isinstance(run.threshold, np.ndarray) else run.threshold
    table = run.table.iloc[order].reset_index(drop=True)
    return replace(run, table=table, labels=run.labels[order], probabilities=run.probabilities[order],
                   threshold=threshold)  # fmt: skip


def check_same_folds(folders: Sequence[Path]) -> None:
    """Raise MedtlError unless fold k has the same test images everywhere."""
    for folder in folders:
        sets = [sorted(path.name for path in root.glob("fold-*")) for root in (folders[0], folder)]
        if not sets[0] or sets[0] != sets[1]:
            raise MedtlError(f"{folders[0]} and {folder} do not have the same number of folds.")
        for name in sets[0]:
            one, other = (tested(root / name) for root in (folders[0], folder))
            if one != other:
                raise MedtlError(
                    f"{folders[0]}/{name} and {folder}/{name} have other test images: an average would mix in models "
                    "that have seen the image. Give both the same --folds and --split_seed."
                )


def tested(folder: Path) -> set[str]:
    """SHA-256 of a run's test images."""
    table = pd.read_csv(folder / "splits.csv", dtype=str)
    return set(table.loc[table["split"] == "test", "sha256"])


def averages(runs: Sequence[Predictions]) -> list[Predictions]:
    """The mean of all runs' probabilities, decided at 0.5, and with two labels at the mean of thresholds."""
    mean = replace(runs[0], name="average, at 0.5", probabilities=np.mean([r.probabilities for r in runs], axis=0),
                   threshold=None)  # fmt: skip
    if runs[0].threshold is None:
        return [replace(mean, name="average")]
    threshold = np.mean([run.threshold for run in runs], axis=0)
    return [mean, replace(mean, name="average, at the mean of thresholds", threshold=threshold)]


def report(folders: Sequence[Path], resamples: int) -> str:
    """Markdown of both tables."""
    check_same_folds(folders)
    runs = [read(folder) for folder in folders]
    for run in runs[1:]:
        if not run.table.equals(runs[0].table):
            raise MedtlError(f"{runs[0].name} and {run.name} do not agree on labels or groups of the images.")
    models = [*runs, *averages(runs)]
    lines = [f"{len(runs[0].labels)} images in {runs[0].table['group'].nunique()} groups, out of fold", ""]
    lines += [f"| model | {' | '.join(METRICS.values())} |", "|---" * (len(METRICS) + 1) + "|"]
    for run in models:
        intervals = metric_intervals(
            run.labels, run.probabilities, run.table["group"], run.positive, run.threshold, resamples
        )
        lines.append(f"| {run.name} | {' | '.join(show(intervals[name]) for name in METRICS)} |")
    titles = [METRICS[name] for name in COMPARED]
    lines += ["", f"| first minus second | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for one, other in itertools.combinations(reversed(models), 2):
        differences = [show(difference([one], [other], name, resamples), "+") for name in COMPARED]
        lines.append(f"| {one.name} minus {other.name} | {' | '.join(differences)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="finished cross-validations, two or more")
    parser.add_argument("--resamples", type=int, default=2000, help="of the bootstrap")
    options = parser.parse_args()
    if len(options.folders) < 2:
        parser.error("two or more cross-validations are needed")
    try:
        print(report(options.folders, options.resamples))
    except MedtlError as error:
        parser.exit(1, f"Error: {error}\n")


if __name__ == "__main__":
    main()
