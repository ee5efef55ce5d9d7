"""Report sections of a run with one label per image."""

from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.evaluation import probability_charts as charts
from hf_medtl.evaluation.calibration import brier_decomposition, calibration_error, calibration_line
from hf_medtl.evaluation.decisions import DecisionRule
from hf_medtl.evaluation.delong import auc_interval
from hf_medtl.evaluation.intervals import Interval, to_json
from hf_medtl.evaluation.metrics import decide
from hf_medtl.evaluation.names import short_name
from hf_medtl.evaluation.probability_charts import Scores
from hf_medtl.evaluation.subgroups import subgroup_metrics
from hf_medtl.explain.gallery import select_examples
from hf_medtl.publish.templates import format_interval
from hf_medtl.report.blocks import Block, Matrix, Prose, Section, Table
from hf_medtl.report.images import PER_GALLERY, gallery
from hf_medtl.report.sections import external_intro, folds_blocks, image_count, metrics_table, number

SUBGROUP_METRICS = ("roc_auc", "accuracy", "sensitivity", "specificity")
MAX_SOURCES = 12  # of which subgroups are shown
GALLERIES = {
    "most_certain_right": "Correct, most confident",
    "most_certain_wrong": "Wrong, most confident",
    "least_certain": "Least confident",
}


class Predictions:
    """Labels, probabilities and decisions on test images.

    Args:
        results: results.json, or its external part.
        table: predictions.csv or external.csv.

    Attributes:
        names: (K,) labels.
        groups: (n,) of the images.
        labels: (n,) true class indices.
        probabilities: (n, K).
        positive: index of the positive label, the last one if none is named.
        threshold: of the positive label's probability, None to take the most probable label, or (n,) for folds.
        decided: (n,) decided class indices.
    """

    def __init__(self, results: dict[str, Any], table: pd.DataFrame) -> None:
        self.results, self.table = results, table
        self.names: list[str] = results["labels"]
        self.groups: list[str] = table["group"].tolist()
        self.labels = table["label"].map(self.names.index).to_numpy(np.int64)
        self.probabilities = table[[f"p_{name}" for name in self.names]].to_numpy(np.float64)
        label = results["positive_label"]
        self.positive = len(self.names) - 1 if label is None else self.names.index(label)
        self.threshold: float | NDArray[np.float64] | None = results["threshold"]
        if label is not None and results.get("folds"):  # each fold's model has its own
            self.threshold = np.array([fold["threshold"] for fold in results["folds"]], np.float64)[table["fold"]]
        self.decided = decide(self.probabilities, self.positive, self.threshold)

    @property
    def is_binary(self) -> bool:
        """True if there are two labels."""
        return len(self.names) == 2

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(n,) True where the decision is right."""
        return self.decided == self.labels

    @property
    def common_threshold(self) -> float | None:
        """The threshold, if it is the same for all images."""
        return float(self.threshold) if isinstance(self.threshold, float | int) else None

    def scores(self) -> list[Scores]:
        """Return the probabilities of the positive label, or of each label against the rest."""
        indices = [self.positive] if self.is_binary else range(len(self.names))
        return [Scores(self.names[k], self.labels == k, self.probabilities[:, k], self.groups) for k in indices]


def sections(run: RunFolder, loaded: LoadedDataset | None, missing: str) -> list[Section]:
    """Return all sections of a run with one label per image.

    Args:
        run: finished run or cross-validation.
        loaded: its data set, for images and sources.
        missing: why there is no data set.
    """
    predictions = Predictions(run.results, run.predictions)
    parts = [
        _results_section(run, predictions),
        Section("Ranking", _ranking(predictions)),
        Section("Calibration", _calibration(predictions)),
        Section("Decisions", _decisions(predictions)),
        Section("Subgroups", _subgroups(predictions, loaded, missing)),
        Section("Images", _gallery(predictions, loaded, missing)),
    ]
    if run.external is not None and "external" in run.results:
        parts.append(_external_section(run.results["external"], run.external))
    return parts


def _results_section(run: RunFolder, predictions: Predictions) -> Section:
    blocks: list[Block] = [metrics_table(run.results, "Metrics")]
    threshold, rule = predictions.common_threshold, run.results.get("threshold_rule")
    if threshold is not None:
        positive, labels = run.results["positive_label"], tuple(run.results["labels"])
        decision = DecisionRule(labels, positive=positive, threshold=threshold, threshold_rule=rule)
        blocks.append(Prose(decision.sentence()))
    split = "out-of-fold predictions" if run.folds else "test split"
    blocks.append(_confusion_matrix("Confusion matrix", run.results, f"; {split}. Percentages are of the row."))
    return Section("Results", [*blocks, *folds_blocks(run)])


def _confusion_matrix(title: str, results: dict[str, Any], note: str = "") -> Matrix:
    return Matrix(title, results["labels"], results["confusion_matrix"], image_count(results) + note)


def _ranking(predictions: Predictions) -> list[Block]:
    """ROC and precision-recall curves, and the AUC of each label if there are more than two."""
    if not predictions.is_binary:
        rows = [
            (line.name, f"{line.positive.sum():,}", _interval(auc_interval(line.positive, line.score, line.groups)))
            for line in predictions.scores()
        ]
        note = "One label against the rest. DeLong's standard error over groups (Obuchowski); from predictions.csv."
        table = Table("ROC AUC of each label", ("label", "images", "ROC AUC [95 % interval]"), rows, note)
        return [*charts.ranking_plots(predictions.scores()), table]
    decided, positive = predictions.decided == predictions.positive, predictions.labels == predictions.positive
    point = charts.operating_point(decided, positive, predictions.common_threshold)
    return [*charts.ranking_plots(predictions.scores(), point)]


def _calibration(predictions: Predictions) -> list[Block]:
    """Reliability, score distributions and calibration metrics.

    They are of the positive label's probability, or, with more than two labels, of the most probable one's.
    """
    results = predictions.results
    if predictions.is_binary:
        scores = predictions.scores()[0]
        classes = {name: scores.score[predictions.labels == k] for k, name in enumerate(predictions.names)}
        brier = "Brier score"
    else:
        scores = charts.top_label_scores(predictions.labels, predictions.probabilities, predictions.groups)
        classes = {"correct": scores.score[scores.positive], "wrong": scores.score[~scores.positive]}
        brier = f"Brier score of {scores.name}"
    line = calibration_line(scores.positive, scores.score)
    temperatures = [fold["temperature"] for fold in results.get("folds", [])] or [results.get("temperature")]
    fitted = ", ".join(f"{value:.3f}" for value in temperatures if value is not None)
    rows = [("Temperature, fitted on validation", fitted or "not known")]
    for name, title in (("ece", "Expected calibration error"), ("brier", "Brier score")):
        if results["metrics"].get(name):
            rows.append((f"{title} [95 % interval]", format_interval(results["metrics"][name])))
    debiased = number(calibration_error(scores.positive, scores.score))
    rows += [
        ("Debiased calibration error (root mean square)", debiased),
        ("Calibration slope (1 is perfect; below: too extreme)", number(line.slope)),
        ("Calibration intercept (0 is perfect)", number(line.intercept)),
        ("Calibration in the large (0 is perfect; below: too high)", number(line.in_the_large)),
        *(
            (f"{brier}, component: {name}", number(value))
            for name, value in brier_decomposition(scores.positive, scores.score)._asdict().items()
        ),
    ]
    note = (
        f"For the probability of {scores.name}. Values with intervals are from results.json. The others are computed "
        "from predictions.csv: Cox's calibration line on the logit, Murphy's decomposition over ten equal-mass bins."
    )
    return [
        charts.reliability_plot(scores),
        charts.histogram_plot(classes, scores.name, predictions.common_threshold if predictions.is_binary else None),
        Table("Calibration", ("", "value"), rows, note),
    ]


def _decisions(predictions: Predictions) -> list[Block]:
    """Net benefit, selective prediction, conformal sets and out-of-distribution images."""
    blocks: list[Block] = []
    scores = predictions.scores()[0]
    if predictions.is_binary and scores.has_both_classes:
        blocks.append(charts.decision_plot(scores, predictions.common_threshold))
    sets = predictions.results.get("conformal")
    abstained = sets["abstained"]["value"] if sets else None
    coverage, confidence = None if abstained is None else 1 - abstained, predictions.probabilities.max(axis=1)
    count = image_count(predictions.results)
    blocks.append(charts.risk_coverage_plot(confidence, predictions.correct, coverage, count))
    if sets:
        rows = [
            ("Sets may miss the true label in at most", f"{100 * sets['alpha']:g} %"),
            *((f"“{label}” is included from a probability of", f"{low:.3f}") for label, low in sets["lowest"].items()),
            ("Sets that contain the true label", format_interval(sets["coverage"])),
            *((f"Sets that contain it, images of “{label}”", number(value))
              for label, value in zip(predictions.names, sets["coverage_by_label"], strict=True)),
            ("Labels in a set, mean", f"{sets['mean_size']:.2f}"),
            ("Abstained: no label, or more than one", format_interval(sets["abstained"])),
            ("Accuracy of the others", format_interval(sets["accuracy_of_the_rest"])),
        ]  # fmt: skip
        note = (
            "Label-conditional split conformal prediction, fitted on validation. Wilson intervals, which treat images "
            "as independent."
        )
        blocks.append(Table("Conformal sets and abstention", ("", "value [95 % interval]"), rows, note))
    else:
        blocks.append(Prose("This run's results.json has no conformal sets."))
    return [*blocks, ood_block(predictions.results)]


def ood_block(results: dict[str, Any]) -> Block:
    """Return the proportion of images flagged as out-of-distribution."""
    proportions = results.get("outliers")
    if not proportions:
        return Prose("This run's results.json has no out-of-distribution detection.")
    rows = [(f"{name} images flagged", format_interval(value)) for name, value in proportions.items()]
    note = (
        "By the features before the last layer; the cut-off lets 95 % of the validation images pass. Wilson intervals, "
        "which treat images as independent."
    )
    return Table("Out-of-distribution images", ("", "proportion [95 % interval]"), rows, note)


def _subgroups(predictions: Predictions, loaded: LoadedDataset | None, missing: str) -> list[Block]:
    """Metrics by source, where the data have sources."""
    if loaded is None:
        return [Prose(f"No subgroups by source: {missing}")]
    source = predictions.table["image_id"].map(loaded.table.set_index("image_id")["source"])
    if not 1 < source.nunique() <= MAX_SOURCES:
        count = "a single source" if source.nunique() == 1 else f"{source.nunique()} sources, which are too many"
        return [Prose(f"No subgroups by source: the data have {count}.")]
    subgroups = subgroup_metrics(
        predictions.labels, predictions.probabilities, predictions.groups, source, predictions.positive,
        predictions.threshold, SUBGROUP_METRICS,
    )  # fmt: skip
    cells = [
        (name, str(part.n), str(part.n_groups), *(_interval(part.metrics[metric]) for metric in SUBGROUP_METRICS),
         part.warning.split(":")[0]) for name, part in subgroups.items()
    ]  # fmt: skip
    columns = ("source", "images", "groups", *map(short_name, SUBGROUP_METRICS), "")
    note = "From predictions.csv, by the methods above. Among many subgroups one is the worst by chance."
    return [Table("Metrics by source", columns, cells, note)]


def _gallery(predictions: Predictions, loaded: LoadedDataset | None, missing: str) -> list[Block]:
    """The most confident correct and wrong decisions, and the least confident ones."""
    if loaded is None:
        return [Prose(f"No images: {missing}", "note")]
    confidence = predictions.probabilities[np.arange(len(predictions.labels)), predictions.decided]
    note = "The number is the probability of the decided label. One image of each group is shown."

    def example(row: int) -> tuple[str, str, bool]:
        true, decided = (predictions.names[classes[row]] for classes in (predictions.labels, predictions.decided))
        caption = f"true: {true}; decided: {decided} ({confidence[row]:.2f})"
        return predictions.table["image_id"].iloc[row], caption, bool(predictions.correct[row])

    selected = select_examples(predictions.labels, predictions.decided, confidence, PER_GALLERY, predictions.groups)
    galleries = [gallery(loaded, title, list(map(example, selected[name])), note) for name, title in GALLERIES.items()]
    return [*chain.from_iterable(galleries)]


def _external_section(results: dict[str, Any], table: pd.DataFrame) -> Section:
    """The second data set, with the same model and threshold."""
    predictions = Predictions(results, table)
    return Section(
        "External test",
        [
            *external_intro(results),
            metrics_table(results, "Metrics on the external data"),
            _confusion_matrix("Confusion matrix, external", results),
            *_ranking(predictions),
            *_calibration(predictions),
        ],
    )


def _interval(values: Interval) -> str:
    return format_interval(to_json(values))
