"""Means over runs, and paired differences of runs on the same test images."""

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


@dataclass(frozen=True)
class Predictions:
    """A run's test images and what its model said of them.

    Args:
        name: of the run, for messages.
        table: image_id, label and group of each of n images.
        labels: (n,) class indices.
        probabilities: (n, K).
        positive, threshold: as in `classification_metrics`; of all folds together each image has its own threshold.
    """

    name: str
    table: pd.DataFrame
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    positive: int
    threshold: float | NDArray[np.float64] | None

    @classmethod
    def read(cls, folder: str | Path) -> "Predictions":
        """From the folder of a finished run, or of all folds.

        Raises:
            MedtlError: the folder has no results, or those of several labels per image.
        """
        folder = Path(folder)
        try:
            result = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            table = pd.read_csv(folder / "predictions.csv", dtype={"image_id": str, "label": str, "group": str})
        except FileNotFoundError as error:
            raise MedtlError(f"{folder} has no {Path(str(error.filename)).name}: it is no finished run.") from error
        if "by_source" in result:
            raise MedtlError(f"{folder} is a run of masks: compare the tables predictions.csv with `mean_difference`.")
        if "per_label" in result:
            raise MedtlError(f"{folder} has several labels a picture. Only runs with one are compared, so far.")
        names = list(result["labels"])
        positive = names.index(result["positive_label"]) if result["positive_label"] else len(names) - 1
        chances = table[[f"p_{name}" for name in names]].to_numpy(np.float64)
        threshold = result["threshold"]
        if "folds" in result and result["positive_label"]:
            threshold = np.array([fold["threshold"] for fold in result["folds"]])[table["fold"]]
        return cls(
            folder.name,
            table[["image_id", "label", "group"]],
            table["label"].map(names.index).to_numpy(np.int64),
            chances,
            positive,
            threshold,
        )

    def metric(self, name: str, weights: NDArray | None = None) -> NDArray[np.float64]:
        """One of `classification_metrics`: (), or (B,) with weights (B, n)."""
        values = classification_metrics(
            self.labels, self.probabilities, self.positive, self.threshold, weights, names=[name]
        )
        return np.asarray(values[name])


def average(runs: Sequence[Predictions], metric: str, resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean of a metric over runs of different seeds or folds, and its 95 % limits.

    Percentile bootstrap over groups (patients or copies): each resample draws groups from all the runs' test images
    together, so an image that several runs were tested on counts once as evidence. It says how the mean of these very
    models would vary with other test images, not with other training images or seeds.

    Raises:
        MedtlError: the runs' groups contradict each other.
    """
    value = float(np.mean([run.metric(metric) for run in runs]))
    draws = np.mean([run.metric(metric, w) for run, w in zip(runs, _draws(runs, resamples, seed), strict=True)], axis=0)
    interval = _percentile(value, draws)
    if interval.high - interval.low < 1e-12:  # no error anywhere is no certainty: the runs' own limits are wider
        own = [
            metric_intervals(run.labels, run.probabilities, run.table["group"], run.positive, run.threshold, resamples)[
                metric
            ]
            for run in runs
        ]
        return Interval(value, float(np.mean([x.low for x in own])), float(np.mean([x.high for x in own])))
    return interval


def difference(
    ones: Sequence[Predictions], others: Sequence[Predictions], metric: str, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean over pairs of runs of the metric of `ones` minus that of `others`, with 95 % limits, paired by image.

    Each resample of `average` is given to both runs of a pair.

    Raises:
        MedtlError: the runs of a pair were not tested on the same images, or their numbers differ.
    """
    if len(ones) != len(others):
        raise MedtlError(f"Runs are compared in pairs, found {len(ones)} and {len(others)}.")
    for one, other in zip(ones, others, strict=True):
        if not one.table.equals(other.table):
            raise _other_pictures(one.name, other.name)
    pairs = list(zip(ones, others, _draws(ones, resamples, seed), strict=True))
    value = np.mean([one.metric(metric) - other.metric(metric) for one, other, _ in pairs])
    return _percentile(float(value), np.mean([a.metric(metric, w) - b.metric(metric, w) for a, b, w in pairs], axis=0))


def mean_difference(
    one: pd.DataFrame,
    other: pd.DataFrame,
    metrics: Sequence[str],
    names: tuple[str, str] = ("One run", "the other"),
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Mean over images of one run's values minus the other's, paired by image, with 95 % limits.

    Percentile bootstrap over groups; both runs are given the same resamples, stratified by source where the tables have
    that column. For values that each image has, such as Dice.

    Args:
        one, other: a row an image, in any order: image_id, group, perhaps source, and the metrics.
        metrics: columns to compare.
        names: of the runs, for messages.

    Raises:
        MedtlError: not the same images, or they contradict each other in group or source; a metric is missing or not
            a number somewhere.
    """
    facts = ["image_id", "group", *(["source"] if "source" in one and "source" in other else [])]
    for name, table in zip(names, (one, other), strict=True):
        absent = [column for column in (*facts, *metrics) if column not in table]
        if absent:
            raise MedtlError(f"{name} has no column {', '.join(absent)}; it has {', '.join(map(str, table.columns))}.")
        if not np.isfinite(table[list(metrics)].to_numpy(np.float64)).all():
            raise MedtlError(f"{name} has pictures without a number for {', '.join(metrics)}: nothing can be paired.")
    one, other = (table.sort_values("image_id", ignore_index=True) for table in (one, other))
    if not one[facts].equals(other[facts]) or one["image_id"].duplicated().any() or one.empty:
        raise _other_pictures(*names)
    gains = one[list(metrics)].to_numpy(np.float64) - other[list(metrics)].to_numpy(np.float64)
    draws = bootstrap_means(gains, one["group"], one["source"] if "source" in facts else None, resamples, seed)
    return {
        name: _percentile(float(gain.mean()), column)
        for name, gain, column in zip(metrics, gains.T, draws.T, strict=True)
    }


def unpaired_difference(
    one: pd.DataFrame, other: pd.DataFrame, metrics: Sequence[str], resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Mean over the images of one table minus that of another with other images, with 95 % limits.

    Percentile bootstrap over groups within each source, of each table by itself. Arguments as for `mean_difference`.
    """
    tables = [(table[list(metrics)].to_numpy(np.float64), table["group"], table["source"]) for table in (one, other)]
    means = np.subtract(*(values.mean(axis=0) for values, *_ in tables))
    first, second = (bootstrap_means(*table, resamples, seed + i) for i, table in enumerate(tables))
    draws = (first - second).T
    return {name: _percentile(float(mean), column) for name, mean, column in zip(metrics, means, draws, strict=True)}


def _other_pictures(one: str, other: str) -> MedtlError:
    return MedtlError(
        f"{one} and {other} were not tested on the same pictures. Give both the same --split_seed, or --splits with "
        "the splits.csv of one."
    )


def _draws(runs: Sequence[Predictions], resamples: int, seed: int) -> list[NDArray]:
    """For each run how often each of its images comes in each resample, (B, n)."""
    union = pd.concat([run.table for run in runs]).drop_duplicates()
    if union["image_id"].duplicated().any():
        raise MedtlError("The runs disagree about the label or group of a picture: they are not of one data set.")
    labels, groups = (pd.factorize(union[name])[0].astype(np.int64) for name in ("label", "group"))
    weights = bootstrap_weights(labels, groups, resamples, seed)
    place = pd.Series(range(len(union)), index=union["image_id"])
    return [weights[:, place[run.table["image_id"]].to_numpy()] for run in runs]


def _percentile(value: float, draws: NDArray) -> Interval:
    draws = draws[~np.isnan(draws)]
    low, high = np.quantile(draws, [0.025, 0.975]) if draws.size else (np.nan, np.nan)
    return Interval(value, float(low), float(high))
