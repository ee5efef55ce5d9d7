"""Paired comparison of runs of any task: metrics, differences with tests, and disagreements."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation import masks
from hf_medtl.evaluation.intervals import (
    METHOD_DESCRIPTIONS,
    Interval,
    describe_methods,
    intervals_by_source,
    metric_intervals,
    multilabel_metric_intervals,
    rarest_label,
)
from hf_medtl.evaluation.metrics import classification_metrics, decide
from hf_medtl.evaluation.significance import Difference, auc_difference, holm, mcnemar, paired_jackknife

FACTS = ("image_id", "label", "group", "source", "sha256")
LOWER_IS_BETTER = ("brier", "ece", "hausdorff95")
DELONG = "DeLong's test"
MCNEMAR = "McNemar's test"
JACKKNIFE = "paired jackknife over groups with Student's t"


@dataclass(frozen=True)
class RunScores:
    """A run's test images, what it is worth on them, and what it said of each.

    Attributes:
        table: image_id, label, group and, where they are known, source and sha256, by image_id.
        labels: of the outputs.
        metrics: metric -> value with limits.
        methods: metric -> how the limits were made, in words.
        parts: label, class or source -> the same of it.
        part_kind: which of these.
        usual: metrics to test unless told otherwise, the first to rank by.
        measure: metric, weights (B, n) or None -> (B,) or ().
        strata: (n,) class indices, within which groups are drawn.
        quality: (n,) how good each answer is, at best 1: the true label's probability, or Dice.
        answers: (n,) in words.
        decided: (n,) decisions; None where no two answers are the same, as with masks.
        right: (n,) whether they are right; None where they are not just right or wrong.
        positive: the one of two labels that scores are of; None otherwise.
        scores: (n,) its probabilities; None otherwise.
    """

    table: pd.DataFrame
    labels: tuple[str, ...]
    metrics: dict[str, Interval]
    methods: dict[str, str]
    parts: dict[str, dict[str, Interval]]
    part_kind: str
    usual: tuple[str, ...]
    measure: Callable[[str, NDArray | None], NDArray]
    strata: NDArray[np.int64]
    quality: NDArray[np.float64]
    answers: list[str]
    decided: list[str] | None = None
    right: NDArray[np.bool_] | None = None
    positive: str | None = None
    scores: NDArray[np.float64] | None = None

    @property
    def one_picture_a_group(self) -> bool:
        """Whether all images are independent."""
        return not self.table["group"].duplicated().any()


def of_labels(
    table: pd.DataFrame, names: Sequence[str], positive: str | None, threshold: float | NDArray[np.float64] | None
) -> RunScores:
    """A classifier of one label an image.

    Args:
        table: predictions.csv: image_id, label, group and p_LABEL.
        names: (K,) labels in output order.
        positive, threshold: as in `evaluate.results`.
    """
    index = len(names) - 1 if positive is None else list(names).index(positive)
    labels = table["label"].map(list(names).index).to_numpy(np.int64)
    chances = table[[f"p_{name}" for name in names]].to_numpy(np.float64)
    decided, group = decide(chances, index, threshold), table["group"]

    def measure(name: str, weights: NDArray | None) -> NDArray:
        return np.asarray(classification_metrics(labels, chances, index, threshold, weights, names=[name])[name])

    parts = {}
    for k, name in enumerate(names):
        is_one = (labels == k).astype(np.int64)
        called, score = (np.column_stack([1 - p, p]) for p in ((decided == k).astype(np.float64), chances[:, k]))
        parts[name] = metric_intervals(is_one, called, group, names=("sensitivity", "ppv", "f1"))
        if len(names) > 2:  # of two both have the same
            parts[name] |= metric_intervals(is_one, score, group, names=("roc_auc",))
    said = chances[:, index] if len(names) == 2 else chances.max(axis=1)
    of = [names[index]] * len(labels) if len(names) == 2 else [names[k] for k in decided]
    return RunScores(
        facts(table),
        tuple(names),
        metric_intervals(labels, chances, group, index, threshold),
        describe_methods(False, len(names)),
        parts,
        "label",
        ("roc_auc", "accuracy"),
        measure,
        labels,
        chances[np.arange(len(labels)), labels],
        [f"{name} {p:.2f}" for name, p in zip(of, said, strict=True)],
        [names[k] for k in decided],
        decided == labels,
        names[index] if len(names) == 2 else None,
        chances[:, index] if len(names) == 2 else None,
    )


def of_several(
    table: pd.DataFrame, targets: NDArray[np.bool_], thresholds: Mapping[str, float | NDArray[np.float64]]
) -> RunScores:
    """A classifier of several labels per image, whose metrics are means over labels.

    Args:
        table: predictions.csv.
        targets: (n, K) which image has which label.
        thresholds: label, in output order, -> as in `evaluate.multilabel_results`.
    """
    names = list(thresholds)
    chances = table[[f"p_{name}" for name in names]].to_numpy(np.float64)
    means, each = multilabel_metric_intervals(targets, chances, table["group"], list(thresholds.values()))
    decided = np.column_stack([p >= cut for p, cut in zip(chances.T, thresholds.values(), strict=True)])

    def measure(name: str, weights: NDArray | None) -> NDArray:
        columns = [
            np.asarray(
                classification_metrics(
                    targets[:, k].astype(np.int64), np.column_stack([1 - p, p]), 1, cut, weights, names=[name]
                )[name]
            )
            for k, (p, cut) in enumerate(zip(chances.T, thresholds.values(), strict=True))
            if np.isfinite(each[k][name].value)
        ]
        return np.mean(columns, axis=0) if columns else np.asarray(np.nan)

    words = ["|".join(names[k] for k in np.flatnonzero(row)) or "none" for row in decided]
    return RunScores(
        facts(table),
        tuple(names),
        means,
        describe_methods(True, 2),
        dict(zip(names, each, strict=True)),
        "label",
        ("roc_auc",),
        measure,
        rarest_label(targets),
        1 - np.abs(chances - targets).mean(axis=1),
        words,
        words,
    )


def of_masks(table: pd.DataFrame, names: Sequence[str]) -> RunScores:
    """A model of masks, whose metrics are means over images.

    Args:
        table: predictions.csv: image_id, group, source and what `mask_metrics` gives.
        names: (K,) labels in output order, the background first.
    """
    single = (
        {name: [f"{metric}_{name}" for metric in masks.MASK_METRICS] for name in names[1:]} if len(names) > 2 else {}
    )
    columns = [*masks.MASK_METRICS, *chain.from_iterable(single.values())]
    found = intervals_by_source({name: table[name] for name in columns}, table["group"], table["source"])
    overall, sources = found["overall"]["metrics"], found["sources"]
    parts = {
        name: {m: overall[c] for m, c in zip(masks.MASK_METRICS, its, strict=True)} for name, its in single.items()
    }
    if not parts and len(sources) > 1:
        parts = {name: its["metrics"] for name, its in sources.items()}

    def measure(name: str, weights: NDArray | None) -> NDArray:
        values = table[name].to_numpy(np.float64)
        rows = np.ones((1, len(values))) if weights is None else weights.astype(np.float64)
        means = rows @ values / rows.sum(axis=1)
        return means if weights is not None else means[0]

    dice = table["dice"].to_numpy(np.float64)
    return RunScores(
        facts(table),
        tuple(names),
        {name: overall[name] for name in masks.MASK_METRICS},
        dict.fromkeys(masks.MASK_METRICS, METHOD_DESCRIPTIONS["studentised"]),
        parts,
        "class" if single else "source",
        ("dice", "iou"),
        measure,
        pd.factorize(table["source"])[0].astype(np.int64),
        dice,
        [f"Dice {value:.3f}" for value in dice],
    )


def facts(table: pd.DataFrame) -> pd.DataFrame:
    """What must be the same in all runs."""
    return table[[column for column in FACTS if column in table]]


def check_comparable(rivals: Mapping[str, RunScores]) -> None:
    """Refuse runs that were not tested on the same images, or for other labels.

    Groups may have other names, as long as they hold the same images.

    Raises:
        MedtlError: which runs differ, in what, and what to do.
    """
    (first, one), *others = rivals.items()
    for name, other in others:
        if other.labels != one.labels:
            raise MedtlError(
                f"{first} and {name} have other labels: {', '.join(one.labels)} and {', '.join(other.labels)}. Only "
                "runs of one task on one data set are compared."
            )
        here, there = set(one.table["image_id"]), set(other.table["image_id"])
        if here != there or len(one.table) != len(other.table):
            raise MedtlError(
                f"{first} and {name} were not tested on the same pictures: {len(here - there)} of {len(here)} are only "
                f"in {first}, {len(there - here)} of {len(there)} only in {name}. Train both with the same "
                "--split_seed (and --folds), or with --splits and the splits.csv of one."
            )
        if other.positive != one.positive:
            raise MedtlError(
                f"{first} and {name} have other positive labels, {one.positive} and {other.positive}. Train both with "
                "the same --positive_label."
            )
        for column in [column for column in one.table if column in other.table]:
            mine, theirs = (table[column].to_numpy() for table in (one.table, other.table))
            if column == "group":
                mine, theirs = (pd.factorize(names)[0] for names in (mine, theirs))
            if (mine != theirs).any():
                example = one.table["image_id"].iloc[int(np.flatnonzero(mine != theirs)[0])]
                raise MedtlError(
                    f"{first} and {name} disagree about the {column} of {int((mine != theirs).sum())} pictures, such "
                    f"as {example}. Train both on the same data with the same --split_seed (and --folds), or with "
                    "--splits and the splits.csv of one."
                )


class PairedDifference(NamedTuple):
    """A difference in a metric: a run less the reference, and how it was tested."""

    run: str
    metric: str
    difference: Difference
    p_holm: float
    test: str


def paired_differences(
    rivals: Mapping[str, RunScores], reference: str, tested: Sequence[str], seed: int = 0
) -> list[PairedDifference]:
    """Each run less the reference in each metric but ece, paired by image, with 95 % limits.

    Only the metrics named beforehand are tested; the p-values of all of them and of all runs are corrected together
    (Holm). roc_auc of two labels is tested by DeLong, accuracy by McNemar, where each group has one image; all else,
    and both where groups have several, by the jackknife over groups. Limits are of the same method, those of accuracy
    of the jackknife. Where two runs never differ the sample can't tell how far they might: limits are NaN.

    Args:
        rivals: name -> run, of which `check_comparable` has nothing to say.
        reference: name of one.
        tested: metrics.
        seed: as in `paired_jackknife`.

    Returns:
        A row a run and metric; p-values are NaN where nothing was tested.

    Raises:
        MedtlError: an unknown metric, or ece.
    """
    one = rivals[reference]
    names = [name for name in one.metrics if name != "ece"]
    if unknown := [name for name in tested if name not in names]:
        more = " What is noise in ece does not go away in a difference: take brier." if "ece" in unknown else ""
        raise MedtlError(f"--metric is one of {', '.join(names)}, found {', '.join(unknown)}.{more}")
    rows: list[PairedDifference] = []
    for run, other in rivals.items():
        for name in names if run != reference else ():
            found, test = _difference(other, one, name, seed)
            p = found.p_value if name in tested else np.nan
            rows.append(PairedDifference(run, name, found._replace(p_value=p), np.nan, test if name in tested else ""))
    known = [place for place, row in enumerate(rows) if np.isfinite(row.difference.p_value)]
    for place, p in zip(known, holm([rows[place].difference.p_value for place in known]), strict=True):
        rows[place] = rows[place]._replace(p_holm=float(p))
    return rows


def _difference(one: RunScores, other: RunScores, name: str, seed: int) -> tuple[Difference, str]:
    """One less the other, and the name of the test."""
    group, alone, test = one.table["group"], one.one_picture_a_group, JACKKNIFE
    found = paired_jackknife(lambda w: one.measure(name, w) - other.measure(name, w), one.strata, group, seed=seed)
    if name == "roc_auc" and one.scores is not None and other.scores is not None and alone:
        found, test = auc_difference(one.table["label"] == one.positive, one.scores, other.scores, group), DELONG
    elif name == "accuracy" and one.right is not None and other.right is not None and alone:
        found, test = found._replace(p_value=mcnemar(one.right, other.right, group)), MCNEMAR
    if found.low == found.high:
        found = found._replace(low=np.nan, high=np.nan)
    return found, test


def disagreements(rivals: Mapping[str, RunScores]) -> pd.DataFrame:
    """The images on which runs decide otherwise (of masks: all), those with the largest gap in `quality` first.

    Returns:
        image_id, label, group, gap, and answers: run -> words.
    """
    runs = list(rivals.values())
    quality = np.array([run.quality for run in runs])
    gap = quality.max(axis=0) - quality.min(axis=0)
    decided = [run.decided for run in runs if run.decided is not None]
    chosen = np.argsort(-gap, kind="stable")
    if decided:
        differ = np.array([len(set(row)) > 1 for row in zip(*decided, strict=True)])
        chosen = chosen[differ[chosen]]
    answers = [dict(zip(rivals, row, strict=True)) for row in zip(*(run.answers for run in runs), strict=True)]
    table = runs[0].table[["image_id", "label", "group"]].assign(gap=gap, answers=pd.Series(answers))
    return table.iloc[chosen].reset_index(drop=True)
