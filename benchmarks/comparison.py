"""Mean metrics of runs with several seeds, and differences of such runs, paired by image or between two test sets."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.intervals import Interval, bootstrap_means, bootstrap_weights, metric_intervals
from hf_medtl.evaluation.metrics import classification_metrics
from hf_medtl.evaluation.paired import different_images
from hf_medtl.evaluation.resampling import percentile_limits


@dataclass(frozen=True)
class Predictions:
    """A run's test images and the predictions of its model.

    Attributes:
        name: name of the run, for errors.
        table: image_id, label and group of each of n images.
        labels: (n,) class indices.
        probabilities: (n, K).
        positive: as in `classification_metrics`.
        threshold: as in `classification_metrics`; for pooled folds each image has its own.
    """

    name: str
    table: pd.DataFrame
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    positive: int
    threshold: float | NDArray[np.float64] | None

    @classmethod
    def read(cls, folder: str | Path) -> "Predictions":
        """Read the folder of a finished run or cross-validation.

        Raises:
            MedtlError: The folder has no results, or those of segmentation or multilabel classification.
        """
        folder = Path(folder)
        try:
            result = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            table = pd.read_csv(folder / "predictions.csv", dtype={"image_id": str, "label": str, "group": str})
        except FileNotFoundError as error:
            missing = Path(str(error.filename)).name
            raise MedtlError(f"{folder} has no {missing}: it is not a finished run.") from error
        if "by_source" in result:
            raise MedtlError(f"{folder} is a segmentation run: compare its predictions.csv with `mean_difference`.")
        if "per_label" in result:
            raise MedtlError(f"{folder} is a multilabel run. Only runs with one label per image can be compared here.")
        names = list(result["labels"])
        threshold = result["threshold"]
        if "folds" in result and result["positive_label"]:
            threshold = np.array([fold["threshold"] for fold in result["folds"]])[table["fold"]]
        return cls(
            folder.name,
            table[["image_id", "label", "group"]],
            table["label"].map(names.index).to_numpy(np.int64),
            table[[f"p_{name}" for name in names]].to_numpy(np.float64),
            names.index(result["positive_label"]) if result["positive_label"] else len(names) - 1,
            threshold,
        )

    def metric(self, name: str, weights: NDArray | None = None) -> NDArray[np.float64]:
        """Return one of `classification_metrics`: (), or (B,) with weights (B, n)."""
        values = classification_metrics(
            self.labels, self.probabilities, self.positive, self.threshold, weights, names=[name]
        )
        return np.asarray(values[name])


def average(runs: Sequence[Predictions], metric: str, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return the mean of a metric over runs of different seeds or folds, with 95 % limits.

    Percentile bootstrap over groups (patients or duplicates): each resample draws groups from the test images of all
    runs together, so that an image that several runs were tested on counts once as evidence. The limits show how the
    mean of these models would vary with other test images, not with other training images or seeds.

    Raises:
        MedtlError: The runs disagree about the label or group of an image.
    """
    value = float(np.mean([run.metric(metric) for run in runs]))
    draws = np.mean([run.metric(metric, w) for run, w in zip(runs, _draws(runs, resamples, seed), strict=True)], axis=0)
    low, high = percentile_limits(draws, 0.95)
    if high - low < 1e-12:  # no observed error does not mean certainty: the runs' own limits are wider
        own = [
            metric_intervals(run.labels, run.probabilities, run.table["group"], run.positive, run.threshold, resamples)[
                metric
            ]
            for run in runs
        ]
        low, high = (float(np.mean([getattr(interval, side) for interval in own])) for side in ("low", "high"))
    return Interval(value, low, high)


def difference(
    ones: Sequence[Predictions], others: Sequence[Predictions], metric: str, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the mean over pairs of runs of one metric minus the other, with 95 % limits, paired by image.

    Each resample of `average` is applied to both runs of a pair.

    Raises:
        MedtlError: The runs of a pair were not tested on the same images, or the numbers of runs differ.
    """
    if len(ones) != len(others):
        raise MedtlError(f"Runs are compared in pairs, but there are {len(ones)} and {len(others)}.")
    for one, other in zip(ones, others, strict=True):
        if not one.table.equals(other.table):
            raise different_images(one.name, other.name)
    pairs = list(zip(ones, others, _draws(ones, resamples, seed), strict=True))
    value = np.mean([one.metric(metric) - other.metric(metric) for one, other, _ in pairs])
    draws = np.mean([one.metric(metric, w) - other.metric(metric, w) for one, other, w in pairs], axis=0)
    return Interval(float(value), *percentile_limits(draws, 0.95))


def unpaired_difference(
    one: pd.DataFrame, other: pd.DataFrame, metrics: Sequence[str], resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Return the mean over the images of one table minus that of a table of other images, with 95 % limits.

    Percentile bootstrap over groups within each source, separately in each table. Arguments as for `mean_difference`.
    """
    tables = [(table[list(metrics)].to_numpy(np.float64), table["group"], table["source"]) for table in (one, other)]
    means = np.subtract(*(values.mean(axis=0) for values, *_ in tables))
    first, second = (bootstrap_means(*table, resamples, seed + i) for i, table in enumerate(tables))
    return {
        name: Interval(float(mean), *percentile_limits(column, 0.95))
        for name, mean, column in zip(metrics, means, (first - second).T, strict=True)
    }


def _draws(runs: Sequence[Predictions], resamples: int, seed: int) -> list[NDArray]:
    """Return for each run how often each resample contains each of its images, (B, n)."""
    union = pd.concat([run.table for run in runs]).drop_duplicates()
    if union["image_id"].duplicated().any():
        raise MedtlError("The runs disagree about the label or group of an image: they use different data sets.")
    labels, groups = (pd.factorize(union[name])[0].astype(np.int64) for name in ("label", "group"))
    weights = bootstrap_weights(labels, groups, resamples, seed)
    column = pd.Series(range(len(union)), index=union["image_id"])
    return [weights[:, column[run.table["image_id"]].to_numpy()] for run in runs]
