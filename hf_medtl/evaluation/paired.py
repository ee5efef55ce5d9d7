"""Paired comparison of runs on the same test images: differences with intervals and tests, and disagreements."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.intervals import Interval, bootstrap_means
from hf_medtl.evaluation.resampling import percentile_limits
from hf_medtl.evaluation.run_scores import RunScores
from hf_medtl.evaluation.significance import Difference, auc_difference, holm, mcnemar, paired_jackknife

logger = logging.getLogger("hf_medtl")

LOWER_IS_BETTER = ("brier", "ece", "hausdorff95")
DELONG = "DeLong's test"
MCNEMAR = "McNemar's test"
JACKKNIFE = "paired jackknife over groups with Student's t"


def check_comparable(runs: Mapping[str, RunScores]) -> None:
    """Check that runs have the same labels and were tested on the same images.

    Groups may have different names, as long as they hold the same images.

    Args:
        runs: name -> scores of a run.

    Raises:
        MedtlError: Runs differ; the message says in what, and what to do.
    """
    (first, reference), *others = runs.items()
    for name, run in others:
        if run.labels != reference.labels:
            raise MedtlError(
                f"{first} and {name} have different labels: {', '.join(reference.labels)} and "
                f"{', '.join(run.labels)}. Compare runs of one task on one data set."
            )
        ids, run_ids = set(reference.table["image_id"]), set(run.table["image_id"])
        if ids != run_ids or len(reference.table) != len(run.table):
            raise MedtlError(
                f"{first} and {name} were not tested on the same images: {len(ids - run_ids)} of {len(ids)} are only "
                f"in {first}, {len(run_ids - ids)} of {len(run_ids)} only in {name}. Train both with the same "
                "--split_seed (and --folds), or with --splits and the splits.csv of one."
            )
        if run.positive != reference.positive:
            raise MedtlError(
                f"{first} and {name} have different positive labels, {reference.positive} and {run.positive}. Train "
                "both with the same --positive_label."
            )
        for column in reference.table.columns.intersection(run.table.columns):
            values, run_values = (table[column].to_numpy() for table in (reference.table, run.table))
            if column == "group":
                values, run_values = pd.factorize(values)[0], pd.factorize(run_values)[0]
            differ = np.flatnonzero(values != run_values)
            if differ.size:
                raise MedtlError(
                    f"{first} and {name} disagree about the {column} of {differ.size} images, such as "
                    f"{reference.table['image_id'].iloc[differ[0]]}. Train both on the same data with the same "
                    "--split_seed (and --folds), or with --splits and the splits.csv of one."
                )


def shared_metrics(runs: Mapping[str, RunScores]) -> dict[str, RunScores]:
    """Return runs with only the metrics that all of them have: runs of older versions have no surface Dice.

    Surface Dice at different tolerances is not one metric; it is left out, with a message.

    Args:
        runs: name -> scores of a run.
    """
    shared = set.intersection(*(set(run.metrics) for run in runs.values()))
    tolerances = {name: run.surface_tolerance for name, run in runs.items()}
    if "surface_dice" in shared and len({*tolerances.values()}) > 1:
        shared.remove("surface_dice")
        logger.warning(
            "Surface Dice is not compared, because its tolerances differ: %s.",
            ", ".join(f"{tolerance} in {name}" for name, tolerance in tolerances.items()),
        )

    def keep(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name in shared}

    return {
        name: replace(
            run,
            metrics=keep(run.metrics),
            methods=keep(run.methods),
            parts={part: keep(values) for part, values in run.parts.items()},
        )
        for name, run in runs.items()
    }


class PairedDifference(NamedTuple):
    """Difference in a metric, run minus reference, and the name of its test."""

    run: str
    metric: str
    difference: Difference
    p_holm: float
    test: str


def paired_differences(
    runs: Mapping[str, RunScores], reference: str, tested: Sequence[str], seed: int = 0
) -> list[PairedDifference]:
    """Return the difference of each run from the reference in each metric except ece, with paired 95 % limits.

    Only metrics named in advance are tested, and the p-values of all metrics and runs are corrected together (Holm).
    If each group has one image, roc_auc of two labels is tested by DeLong and accuracy by McNemar; otherwise, and for
    all other metrics, the test is the jackknife over groups. Limits use the method of the test, except for accuracy,
    which uses the jackknife. Limits are NaN if two runs never differ: the sample cannot show how far they might.

    Args:
        runs: name -> scores of a run; they pass `check_comparable` and have `shared_metrics`.
        reference: name of one of the runs.
        tested: metrics to test.
        seed: as in `paired_jackknife`.

    Returns:
        One row for each run and metric; p-values are NaN where nothing was tested.

    Raises:
        MedtlError: An unknown metric, or ece.
    """
    names = [name for name in runs[reference].metrics if name != "ece"]
    if unknown := [name for name in tested if name not in names]:
        hint = " The bias of ece does not cancel in a difference: use brier." if "ece" in unknown else ""
        raise MedtlError(f"--metric must be one of {', '.join(names)}, but is {', '.join(unknown)}.{hint}")
    rows: list[PairedDifference] = []
    for run in runs:
        for name in names if run != reference else ():
            difference, test = _difference(runs[run], runs[reference], name, seed)
            if name not in tested:
                difference, test = difference._replace(p_value=np.nan), ""
            rows.append(PairedDifference(run, name, difference, np.nan, test))
    with_p = [index for index, row in enumerate(rows) if np.isfinite(row.difference.p_value)]
    for index, p in zip(with_p, holm([rows[index].difference.p_value for index in with_p]), strict=True):
        rows[index] = rows[index]._replace(p_holm=float(p))
    return rows


def _difference(run: RunScores, reference: RunScores, name: str, seed: int) -> tuple[Difference, str]:
    """Return run minus reference, and the name of the test."""
    group, independent, test = run.table["group"], run.one_image_per_group, JACKKNIFE
    difference = paired_jackknife(
        lambda weights: run.measure(name, weights) - reference.measure(name, weights), run.strata, group, seed=seed
    )
    if name == "roc_auc" and run.scores is not None and reference.scores is not None and independent:
        difference = auc_difference(run.table["label"] == run.positive, run.scores, reference.scores, group)
        test = DELONG
    elif name == "accuracy" and run.correct is not None and reference.correct is not None and independent:
        difference, test = difference._replace(p_value=mcnemar(run.correct, reference.correct, group)), MCNEMAR
    if difference.low == difference.high:
        difference = difference._replace(low=np.nan, high=np.nan)
    return difference, test


def disagreements(runs: Mapping[str, RunScores]) -> pd.DataFrame:
    """Return the images on which decisions differ (of masks: all), by decreasing gap in `quality`.

    Args:
        runs: name -> scores of a run; they pass `check_comparable`.

    Returns:
        Columns image_id, label, group, gap, and answers (run -> text).
    """
    scores = list(runs.values())
    quality = np.array([run.quality for run in scores])
    gap = quality.max(axis=0) - quality.min(axis=0)
    order = np.argsort(-gap, kind="stable")
    if decisions := [run.decisions for run in scores if run.decisions is not None]:
        differ = np.array([len(set(row)) > 1 for row in zip(*decisions, strict=True)])
        order = order[differ[order]]
    answers = [dict(zip(runs, row, strict=True)) for row in zip(*(run.answers for run in scores), strict=True)]
    table = scores[0].table[["image_id", "label", "group"]].assign(gap=gap, answers=pd.Series(answers))
    return table.iloc[order].reset_index(drop=True)


def mean_difference(
    one: pd.DataFrame,
    other: pd.DataFrame,
    metrics: Sequence[str],
    names: tuple[str, str] = ("One run", "the other"),
) -> dict[str, Interval]:
    """Return the mean over images of one run's values minus the other's, paired by image, with 95 % limits.

    Percentile bootstrap over groups; both runs get the same resamples, stratified by source if the tables have that
    column. For metrics that each image has, such as Dice.

    Args:
        one: a row for each image, in any order: image_id, group, optionally source, and the metrics.
        other: the other run's table, likewise.
        metrics: columns to compare.
        names: names of the two runs, for errors.

    Raises:
        MedtlError: The images differ, or the tables disagree about group or source; a metric is missing or not finite.
    """
    facts = ["image_id", "group", *(["source"] if "source" in one and "source" in other else [])]
    for name, table in zip(names, (one, other), strict=True):
        absent = [column for column in (*facts, *metrics) if column not in table]
        if absent:
            raise MedtlError(f"{name} has no column {', '.join(absent)}; it has {', '.join(map(str, table.columns))}.")
        if not np.isfinite(table[list(metrics)].to_numpy(np.float64)).all():
            raise MedtlError(f"{name} has images without a number for {', '.join(metrics)}, so they cannot be paired.")
    one, other = (table.sort_values("image_id", ignore_index=True) for table in (one, other))
    if not one[facts].equals(other[facts]) or one["image_id"].duplicated().any() or one.empty:
        raise different_images(*names)
    gains = one[list(metrics)].to_numpy(np.float64) - other[list(metrics)].to_numpy(np.float64)
    draws = bootstrap_means(gains, one["group"], one["source"] if "source" in facts else None)
    return {
        name: Interval(float(gain.mean()), *percentile_limits(column, 0.95))
        for name, gain, column in zip(metrics, gains.T, draws.T, strict=True)
    }


def different_images(one: str, other: str) -> MedtlError:
    """Return the error for two runs whose test images differ."""
    return MedtlError(
        f"{one} and {other} were not tested on the same images. Give both the same --split_seed, or --splits with the "
        "splits.csv of one."
    )
