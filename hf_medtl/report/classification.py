"""What a report says of a run with one label a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_medtl.data.loading import Loaded
from hf_medtl.evaluation.delong import auc_interval
from hf_medtl.evaluation.metrics import decide
from hf_medtl.evaluation.reliability import brier_parts, calibration_error, calibration_line
from hf_medtl.evaluation.subgroups import Slice, metrics_by_slice
from hf_medtl.publish.templates import interval
from hf_medtl.report import plots
from hf_medtl.report.blocks import Block, Gallery, Matrix, Plot, Prose, Section, Table
from hf_medtl.report.images import chosen, shown
from hf_medtl.report.plots import Scores
from hf_medtl.report.tables import folds_blocks, metrics_table, name_of, pictures
from hf_medtl.runs.loaded_run import Run

SLICED = ("roc_auc", "accuracy", "sensitivity", "specificity")
SOURCES = 12  # at most, of which slices are shown


class Answers:
    """Test pictures and what the model says of them.

    Args:
        result: results.json, or its external part.
        table: predictions.csv that belongs to it.
        thresholds: (folds,) of each fold's model, if the table has folds.
    """

    def __init__(self, result: dict[str, Any], table: pd.DataFrame, thresholds: Sequence[float | None] = ()) -> None:
        self.names: list[str] = result["labels"]
        self.table, self.result = table, result
        self.groups = table["group"].tolist()
        self.labels = table["label"].map(self.names.index).to_numpy(np.int64)
        self.chances = table[[f"p_{name}" for name in self.names]].to_numpy(np.float64)
        self.positive: str | None = result["positive_label"]
        self.index = len(self.names) - 1 if self.positive is None else self.names.index(self.positive)
        self.cut: float | NDArray[np.float64] | None = result["threshold"]
        if thresholds and self.positive is not None:
            self.cut = np.array(thresholds, np.float64)[table["fold"]]
        self.decided = decide(self.chances, self.index, self.cut)

    @property
    def right(self) -> NDArray[np.bool_]:
        """(n,)"""
        return self.decided == self.labels

    @property
    def single_cut(self) -> float | None:
        """The threshold, where all pictures have the same."""
        return float(self.cut) if isinstance(self.cut, float | int) else None

    def scores(self) -> list[Scores]:
        """Of the positive label, or of each against the rest."""
        wanted = [self.index] if len(self.names) == 2 else range(len(self.names))
        return [Scores(self.names[k], self.labels == k, self.chances[:, k], self.groups) for k in wanted]

    def outcome(self) -> tuple[str, Scores]:
        """What calibration is looked at: the positive label, or the decision being right."""
        if len(self.names) == 2:
            return self.names[self.index], self.scores()[0]
        right = self.chances.argmax(axis=1) == self.labels
        return "the most probable label", Scores("top label", right, self.chances.max(axis=1), self.groups)


def sections(run: Run, loaded: Loaded | None, missing: str) -> list[Section]:
    """Results, ranking, calibration, decisions, slices, pictures and the external test of a run."""
    answers = Answers(run.result, run.table, [fold["threshold"] for fold in run.result.get("folds", [])])
    found = [
        results_section(run, answers),
        Section("Ranking", ranking(answers)),
        Section("Calibration", calibration(answers, run.result)),
        Section("Decisions", decisions(answers, run.result)),
        Section("Slices", slices(answers, loaded, missing)),
        Section("Pictures", gallery(answers, loaded, missing)),
    ]
    if run.external is not None and "external" in run.result:
        found.append(external_section(run))
    return found


def results_section(run: Run, answers: Answers) -> Section:
    """Metrics, the decision, and the confusion matrix."""
    result = run.result
    blocks: list[Block] = [metrics_table(result, "Metrics")]
    if answers.single_cut is not None:
        rule = result.get("threshold_rule")
        said = f"“{answers.positive}” is decided at a probability of {answers.single_cut:.3f} or more"
        blocks.append(Prose(f"{said}{f' (rule: {rule})' if rule else ''}, a threshold from the validation split."))
    split = "out-of-fold predictions" if run.folds else "test split"
    counts = result["confusion_matrix"]
    blocks.append(Matrix("Confusion matrix", answers.names, counts, f"{pictures(result)}; {split}. Rows are the true "
                         "label, columns the decided one; percentages are of the row."))  # fmt: skip
    if "folds" in result:
        blocks += folds_blocks(run)
    return Section("Results", blocks)


def ranking(answers: Answers) -> list[Block]:
    """ROC, precision and recall, and with more than two labels the area of each."""
    point = None
    if len(answers.names) == 2:
        called, actual = answers.decided == answers.index, answers.labels == answers.index
        if actual.any() and not actual.all():
            caption = "own thresholds" if answers.single_cut is None else f"threshold {answers.single_cut:.3f}"
            point = float(called[~actual].mean()), float(called[actual].mean()), caption
    blocks: list[Block] = [*plots.ranking_plots(answers.scores(), point)]
    if len(answers.names) > 2:
        rows = [
            (its.name, f"{its.positive.sum():,}", _interval(auc_interval(its.positive, its.score, its.groups)))
            for its in answers.scores()
        ]
        note = "One label against the rest. DeLong's standard error over groups (Obuchowski); from predictions.csv."
        blocks.append(Table("ROC AUC of each label", ("label", "pictures", "ROC AUC [95 % interval]"), rows, note))
    return blocks


def distributions(answers: Answers) -> Plot:
    """Of the positive label by true label, or of the most probable one by whether it is right."""
    if len(answers.names) == 2:
        kinds = {name: answers.chances[answers.labels == k, answers.index] for k, name in enumerate(answers.names)}
        return plots.distribution_plot(kinds, answers.names[answers.index], answers.single_cut)
    top = answers.chances.max(axis=1)
    return plots.distribution_plot({"right": top[answers.right], "wrong": top[~answers.right]},
                                   "the most probable label", None)  # fmt: skip


def calibration(answers: Answers, result: dict[str, Any]) -> list[Block]:
    """Reliability, score distributions, and the numbers of calibration."""
    what, scores = answers.outcome()
    line = calibration_line(scores.positive, scores.score)
    parts = brier_parts(scores.positive, scores.score)
    error = calibration_error(scores.positive, scores.score)
    temperature = [fold["temperature"] for fold in result.get("folds", [])] or [result.get("temperature")]
    known = [value for value in temperature if value is not None]
    rows = [("Temperature, fitted on validation", ", ".join(f"{value:.3f}" for value in known) or "not known")]
    ece = result["metrics"].get("ece")
    if ece:
        rows.append(("Expected calibration error [95 % interval]", interval(ece)))
    if "brier" in result["metrics"]:
        rows.append(("Brier score [95 % interval]", interval(result["metrics"]["brier"])))
    brier = "Brier score" if len(answers.names) == 2 else f"Brier score of {what}"
    rows += [
        ("Calibration error, noise of the bins taken off (root mean square)", _number(error)),
        ("Calibration slope (1 is perfect, below: too extreme)", _number(line.slope)),
        ("Calibration intercept (0 is perfect)", _number(line.intercept)),
        ("Calibration in the large (0 is perfect, below: too high)", _number(line.in_the_large)),
        *((f"{brier}, part: {name}", _number(value)) for name, value in parts._asdict().items()),
    ]
    note = f"Of the probability of {what}. The error and the Brier score with intervals are those of results.json; the "
    note += (
        "others are computed from predictions.csv: Cox's line on the logit, Murphy's parts over ten equal-mass bins."
    )
    return [
        plots.reliability_plot(scores, what),
        distributions(answers),
        Table("Calibration", ("", "value"), rows, note),
    ]


def decisions(answers: Answers, result: dict[str, Any]) -> list[Block]:
    """Net benefit, abstaining, conformal sets and outliers."""
    blocks: list[Block] = []
    sets = result.get("conformal")
    scores = answers.scores()[0]
    if len(answers.names) == 2 and scores.both:
        blocks.append(plots.decision_plot(scores, answers.single_cut))
    decided = None if sets is None or sets["abstained"]["value"] is None else 1 - sets["abstained"]["value"]
    blocks.append(plots.abstaining_plot(answers.chances.max(axis=1), answers.right, decided, len(set(answers.groups))))
    if sets:
        rows = [
            ("Sets may miss the true label in, at most", f"{100 * sets['alpha']:g} %"),
            *((f"“{label}” is in from a probability of", f"{low:.3f}") for label, low in sets["lowest"].items()),
            ("Sets with the true label", interval(sets["coverage"])),
            *((f"Sets with it, of “{label}”", _number(value))
              for label, value in zip(answers.names, sets["coverage_by_label"], strict=True)),
            ("Labels in a set, mean", f"{sets['mean_size']:.2f}"),
            ("Abstained: no label, or several", interval(sets["abstained"])),
            ("Accuracy of the others", interval(sets["accuracy_of_the_rest"])),
        ]  # fmt: skip
        note = (
            "Split conformal prediction for each label, fitted on validation. Limits: Wilson, pictures as independent."
        )
        blocks.append(Table("Conformal sets and abstention", ("", "value [95 % interval]"), rows, note))
    else:
        blocks.append(Prose("No conformal sets are in this run's results.json."))
    return blocks + outliers(result)


def outliers(result: dict[str, Any]) -> list[Block]:
    """Share of pictures unlike those of training."""
    found = result.get("outliers")
    if not found:
        return [Prose("No outliers were looked for in this run, or its results.json does not say.")]
    rows = [(f"{name} pictures called outliers", interval(its)) for name, its in found.items()]
    return [Table("Outliers", ("", "share [95 % interval]"), rows, "By the features before the last layer; 95 % of the "
                  "validation pictures pass. Limits: Wilson, pictures as independent.")]  # fmt: skip


def slices(answers: Answers, loaded: Loaded | None, missing: str) -> list[Block]:
    """Metrics by source, where the data tell sources."""
    if loaded is None:
        return [Prose(f"No slices by source: {missing}")]
    source = answers.table["image_id"].map(loaded.table.set_index("image_id")["source"])
    if not 1 < source.nunique() <= SOURCES:
        few = "a single source" if source.nunique() == 1 else f"{source.nunique()} sources, which are too many"
        return [Prose(f"No slices by source: the data name {few}.")]
    found: dict[str, Slice] = {}
    for name in sorted(source.unique()):
        rows = (source == name).to_numpy()
        cut: Any = answers.cut[rows] if isinstance(answers.cut, np.ndarray) else answers.cut
        groups = np.array(answers.groups, dtype=object)[rows]
        found |= metrics_by_slice(
            answers.labels[rows], answers.chances[rows], groups, source[rows], answers.index, cut, SLICED
        )
    table = [
        (name, str(its.n), str(its.n_groups), *(_interval(its.metrics[metric]) for metric in SLICED),
         its.warning.split(":")[0]) for name, its in found.items()
    ]  # fmt: skip
    columns = ("source", "pictures", "groups", *map(name_of, SLICED), "")
    note = "From predictions.csv, by the methods of the metrics above. Of many slices one is worst by chance."
    return [Table("Metrics by source", columns, table, note)]


def gallery(answers: Answers, loaded: Loaded | None, missing: str) -> list[Block]:
    """Pictures that the model is sure of, right and wrong, and those it is least sure of."""
    if loaded is None:
        return [Prose(f"No pictures: {missing}", "note")]
    said = "The number is the probability of the decided label. Of each group, such as copies, one picture is shown, "
    said += "drawn anew from its pixels, small and without metadata."
    confidence = answers.chances[np.arange(len(answers.labels)), answers.decided]
    blocks: list[Block] = []
    for title, rows in chosen(answers.right, confidence, answers.groups).items():
        items = [
            shown(
                loaded,
                answers.table["image_id"].iloc[row],
                f"true: {answers.names[answers.labels[row]]}; decided: {answers.names[answers.decided[row]]} "
                f"({confidence[row]:.2f})",
                "right" if answers.right[row] else "wrong",
            )
            for row in rows
        ]
        if items:
            blocks.append(Gallery(title, items, said))
    return blocks


def external_section(run: Run) -> Section:
    """The second data set: the same model and threshold."""
    result = run.result["external"]
    assert run.external is not None
    answers = Answers(result, run.external)
    blocks: list[Block] = [Prose(f"{result['dataset']}, with the threshold of the run. No picture of it is a copy of "
                                 "one in training.")]  # fmt: skip
    for kind, number in result.get("excluded", {}).items():
        blocks.append(Prose(f"{number:,} of its pictures are left out: {kind}."))
    blocks += [metrics_table(result, "Metrics on the external data"),
               Matrix("Confusion matrix, external", answers.names, result["confusion_matrix"], pictures(result)),
               *ranking(answers), *calibration(answers, result)]  # fmt: skip
    return Section("External test", blocks)


def _number(value: float | None) -> str:
    return "undefined" if value is None or not np.isfinite(value) else f"{value:.3f}"


def _interval(of: Any) -> str:
    return interval({key: value if np.isfinite(value) else None for key, value in of._asdict().items()})
