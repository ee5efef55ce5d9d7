"""Report sections of a multilabel run, whose images can have any number of the labels."""

from typing import Any

import numpy as np
import pandas as pd

from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.specs import split_labels
from hf_medtl.evaluation import probability_charts as charts
from hf_medtl.evaluation.names import short_name
from hf_medtl.evaluation.probability_charts import Scores
from hf_medtl.publish.templates import format_interval
from hf_medtl.report.blocks import Block, Prose, Section, Table
from hf_medtl.report.classification import ood_block
from hf_medtl.report.images import PER_GALLERY, gallery
from hf_medtl.report.sections import external_intro, folds_blocks, metrics_table

LABEL_METRICS = ("roc_auc", "average_precision", "sensitivity", "specificity", "ppv")


def sections(run: RunFolder, loaded: LoadedDataset | None, missing: str) -> list[Section]:
    """Return all sections of a multilabel run.

    Args:
        run: finished run or cross-validation.
        loaded: its data set, for images.
        missing: why there is no data set.
    """
    results, scores = run.results, _scores(run.results, run.predictions)
    parts = [
        Section("Results", [*_results(results, "Metrics, means over labels"), *folds_blocks(run)]),
        Section("Ranking", charts.ranking_plots(scores)),
        Section("Calibration", _calibration(results, scores)),
        Section("Decisions", [_thresholds(results), ood_block(results)]),
        Section("Images", _gallery(run, scores, loaded, missing)),
    ]
    if run.external is not None and "external" in results:
        external = results["external"]
        curves = charts.ranking_plots(_scores(external, run.external))
        blocks = [*external_intro(external), *_results(external, "Metrics on the external data"), *curves]
        parts.append(Section("External test", blocks))
    return parts


def _scores(results: dict[str, Any], table: pd.DataFrame) -> list[Scores]:
    """The probabilities of each label."""
    cells, groups = [split_labels(cell) for cell in table["label"]], table["group"].tolist()
    return [
        Scores(name, np.array([name in cell for cell in cells]), table[f"p_{name}"].to_numpy(np.float64), groups)
        for name in results["labels"]
    ]


def _results(results: dict[str, Any], title: str) -> list[Block]:
    """Means over labels, and each label by itself."""
    rows = [
        (label, f"{part['n_positive']:,}", *(format_interval(part["metrics"][name]) for name in LABEL_METRICS))
        for label, part in results["per_label"].items()
    ]
    note = "Value [95 % interval]. Rates have Wilson's interval and ROC AUC has DeLong's, both over groups."
    return [
        Prose("An image can have any number of the labels, or none. Each label has its own probability and threshold."),
        metrics_table(results, title),
        Table("Each label", ("label", "images with it", *map(short_name, LABEL_METRICS)), rows, note),
    ]


def _calibration(results: dict[str, Any], scores: list[Scores]) -> list[Block]:
    """Reliability and distribution of all labels' probabilities together."""
    pooled = charts.pool_labels(scores)
    rows = [("Temperature, fitted on validation", f"{results['temperature']:.3f}")] if "temperature" in results else []
    rows += [
        (f"{short_name(name)} [95 % interval], mean over labels", format_interval(results["metrics"][name]))
        for name in ("brier", "ece")
        if name in results["metrics"]
    ]
    classes = {"label present": pooled.score[pooled.positive], "label absent": pooled.score[~pooled.positive]}
    return [
        charts.reliability_plot(pooled, f"labels of {len(scores[0].score):,} images"),
        charts.histogram_plot(classes, pooled.name, None),
        Table("Calibration", ("", "value"), rows),
    ]


def _thresholds(results: dict[str, Any]) -> Table:
    """The threshold of each label and its confusion matrix."""
    rows = []
    for label, part in results["per_label"].items():
        fitted = "" if part["threshold_fitted"] else " (not fitted)"
        threshold = "each fold's own" if part["threshold"] is None else f"{part['threshold']:.3f}{fitted}"
        (tn, fp), (fn, tp) = part["confusion_matrix"]
        rows.append((label, threshold, f"{tp:,}", f"{fn:,}", f"{tn:,}", f"{fp:,}"))
    columns = ("label", "threshold", "true positives", "false negatives", "true negatives", "false positives")
    return Table("Thresholds", columns, rows, "Chosen on the validation split; the counts are of the test images.")


def _gallery(run: RunFolder, scores: list[Scores], loaded: LoadedDataset | None, missing: str) -> list[Block]:
    """Images whose labels are all correct, and those with most errors; at 0.5 if folds have their own thresholds."""
    if loaded is None:
        return [Prose(f"No images: {missing}", "note")]
    thresholds = [run.results["per_label"][line.name]["threshold"] for line in scores]
    decided = np.array([line.score >= (0.5 if t is None else t) for line, t in zip(scores, thresholds, strict=True)])
    errors = (decided != np.array([line.positive for line in scores])).sum(axis=0)
    order = np.argsort(errors, kind="stable")
    worst = order[::-1][:PER_GALLERY]

    def example(row: int) -> tuple[str, str, bool]:
        true = ", ".join(split_labels(run.predictions["label"].iloc[row])) or "none"
        names = ", ".join(line.name for line, yes in zip(scores, decided[:, row], strict=True) if yes) or "none"
        return run.predictions["image_id"].iloc[row], f"true: {true}; decided: {names}", not errors[row]

    return [
        *gallery(loaded, "All labels correct", list(map(example, order[errors[order] == 0][:PER_GALLERY]))),
        *gallery(loaded, "Most labels wrong", list(map(example, worst[errors[worst] > 0]))),
    ]
