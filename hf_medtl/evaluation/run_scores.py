"""Metrics, decisions and per-image quality of a run, in the form in which runs are compared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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

IMAGE_COLUMNS = ("image_id", "label", "group", "source", "sha256")  # must be equal in all runs


@dataclass(frozen=True, kw_only=True)
class RunScores:
    """Test images of a run with its metrics, decisions and quality on each.

    Attributes:
        table: image_id, label, group and, where known, source and sha256, sorted by image_id.
        labels: labels of the outputs.
        metrics: metric -> value with limits.
        methods: metric -> description of the interval's method.
        parts: label, class or source -> metric -> value with limits.
        part_kind: "label", "class" or "source".
        default_metrics: metrics to test unless others are requested, the one to rank by first.
        measure: function of a metric's name and weights (B, n) or None that returns (B,) or ().
        strata: (n,) class indices, within which groups are drawn.
        quality: (n,) probability of the true label, or Dice; at best 1.
        answers: (n,) answers as text.
        decisions: (n,) decisions; None where no two answers are equal, as with masks.
        correct: (n,) True for a correct decision; None where answers are not simply right or wrong.
        positive: the positive label of a binary classifier, else None.
        scores: (n,) its probabilities, else None.
        surface_tolerance: tolerance of surface_dice, such as "2 pixels"; None if it is not measured.
    """

    table: pd.DataFrame
    labels: tuple[str, ...]
    metrics: dict[str, Interval]
    methods: dict[str, str]
    parts: dict[str, dict[str, Interval]]
    part_kind: str
    default_metrics: tuple[str, ...]
    measure: Callable[[str, NDArray | None], NDArray]
    strata: NDArray[np.int64]
    quality: NDArray[np.float64]
    answers: list[str]
    decisions: list[str] | None = None
    correct: NDArray[np.bool_] | None = None
    positive: str | None = None
    scores: NDArray[np.float64] | None = None
    surface_tolerance: str | None = None

    @property
    def one_image_per_group(self) -> bool:
        """True if all images are independent."""
        return not self.table["group"].duplicated().any()

    @classmethod
    def from_labels(
        cls,
        table: pd.DataFrame,
        names: Sequence[str],
        positive: str | None,
        threshold: float | NDArray[np.float64] | None,
    ) -> "RunScores":
        """Score a classifier of one label per image.

        Args:
            table: predictions.csv: image_id, label, group and p_LABEL.
            names: (K,) labels in output order.
            positive: as in `evaluate.classification_results`.
            threshold: as in `evaluate.classification_results`.
        """
        index = len(names) - 1 if positive is None else list(names).index(positive)
        labels = table["label"].map(list(names).index).to_numpy(np.int64)
        probabilities = table[[f"p_{name}" for name in names]].to_numpy(np.float64)
        decided, group = decide(probabilities, index, threshold), table["group"]
        binary = len(names) == 2

        def measure(name: str, weights: NDArray | None) -> NDArray:
            metrics = classification_metrics(labels, probabilities, index, threshold, weights, names=[name])
            return np.asarray(metrics[name])

        parts = {}
        for k, name in enumerate(names):
            is_one = (labels == k).astype(np.int64)
            decision, score = _two_columns((decided == k).astype(np.float64)), _two_columns(probabilities[:, k])
            parts[name] = metric_intervals(is_one, decision, group, names=("sensitivity", "ppv", "f1"))
            if not binary:  # both labels of two have the same ROC AUC
                parts[name] |= metric_intervals(is_one, score, group, names=("roc_auc",))
        shown = np.full(len(labels), index) if binary else decided
        rows = np.arange(len(labels))
        return cls(
            table=_image_columns(table),
            labels=tuple(names),
            metrics=metric_intervals(labels, probabilities, group, index, threshold),
            methods=describe_methods(False, len(names)),
            parts=parts,
            part_kind="label",
            default_metrics=("roc_auc", "accuracy"),
            measure=measure,
            strata=labels,
            quality=probabilities[rows, labels],
            answers=[f"{names[k]} {p:.2f}" for k, p in zip(shown, probabilities[rows, shown], strict=True)],
            decisions=[names[k] for k in decided],
            correct=decided == labels,
            positive=names[index] if binary else None,
            scores=probabilities[:, index] if binary else None,
        )

    @classmethod
    def from_multilabel(
        cls, table: pd.DataFrame, targets: NDArray[np.bool_], thresholds: Mapping[str, float | NDArray[np.float64]]
    ) -> "RunScores":
        """Score a multilabel classifier, whose metrics are means over labels.

        Args:
            table: predictions.csv.
            targets: (n, K), True where an image has a label.
            thresholds: label, in output order, -> threshold as in `evaluate.multilabel_results`.
        """
        names = list(thresholds)
        probabilities = table[[f"p_{name}" for name in names]].to_numpy(np.float64)
        means, per_label = multilabel_metric_intervals(
            targets, probabilities, table["group"], list(thresholds.values())
        )
        columns = list(zip(targets.T.astype(np.int64), probabilities.T, thresholds.values(), strict=True))
        decided = np.column_stack([p >= threshold for _, p, threshold in columns])

        def measure(name: str, weights: NDArray | None) -> NDArray:
            values = [
                np.asarray(classification_metrics(target, _two_columns(p), 1, threshold, weights, names=[name])[name])
                for (target, p, threshold), metrics in zip(columns, per_label, strict=True)
                if np.isfinite(metrics[name].value)
            ]
            return np.mean(values, axis=0) if values else np.asarray(np.nan)

        answers = ["|".join(names[k] for k in np.flatnonzero(row)) or "none" for row in decided]
        return cls(
            table=_image_columns(table),
            labels=tuple(names),
            metrics=means,
            methods=describe_methods(True, 2),
            parts=dict(zip(names, per_label, strict=True)),
            part_kind="label",
            default_metrics=("roc_auc",),
            measure=measure,
            strata=rarest_label(targets),
            quality=1 - np.abs(probabilities - targets).mean(axis=1),
            answers=answers,
            decisions=answers,
        )

    @classmethod
    def from_masks(cls, table: pd.DataFrame, names: Sequence[str]) -> "RunScores":
        """Score a segmentation model, whose metrics are means over images.

        Args:
            table: predictions.csv: image_id, group, source and the metrics of `mask_metrics`; an older one has no
                surface_dice.
            names: (K,) labels in output order, the background first.
        """
        means = masks.measured_metrics(table)
        classes = names[1:] if len(names) > 2 else ()
        columns = {name: [f"{metric}_{name}" for metric in means] for name in classes}
        measured = [*means, *chain.from_iterable(columns.values())]
        intervals = intervals_by_source({name: table[name] for name in measured}, table["group"], table["source"])
        overall, sources = intervals["overall"]["metrics"], intervals["sources"]
        parts = {
            name: {metric: overall[column] for metric, column in zip(means, of_class, strict=True)}
            for name, of_class in columns.items()
        }
        if not parts and len(sources) > 1:
            parts = {name: part["metrics"] for name, part in sources.items()}

        def measure(name: str, weights: NDArray | None) -> NDArray:
            values = table[name].to_numpy(np.float64)
            return np.asarray(values.mean()) if weights is None else weights @ values / weights.sum(axis=1)

        dice = table["dice"].to_numpy(np.float64)
        return cls(
            table=_image_columns(table),
            labels=tuple(names),
            metrics={name: overall[name] for name in means},
            methods=dict.fromkeys(means, METHOD_DESCRIPTIONS["studentised"]),
            parts=parts,
            part_kind="class" if columns else "source",
            default_metrics=("dice", "iou"),
            measure=measure,
            strata=pd.factorize(table["source"])[0].astype(np.int64),
            quality=dice,
            answers=[f"Dice {value:.3f}" for value in dice],
            surface_tolerance=str(table["surface_tolerance"].iloc[0]) if "surface_dice" in means else None,
        )


def _two_columns(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.column_stack([1 - p, p])


def _image_columns(table: pd.DataFrame) -> pd.DataFrame:
    return table[[column for column in IMAGE_COLUMNS if column in table]]
