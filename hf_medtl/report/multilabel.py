"""What a report says of a run with several labels a picture."""

from typing import Any

import numpy as np
import pandas as pd

from hf_medtl.data.loading import Loaded
from hf_medtl.data.specs import labels_of
from hf_medtl.publish.templates import interval
from hf_medtl.report import plots
from hf_medtl.report.blocks import Block, Gallery, Prose, Section, Table
from hf_medtl.report.classification import outliers
from hf_medtl.report.images import EACH, shown
from hf_medtl.report.plots import Scores
from hf_medtl.report.tables import folds_blocks, metrics_table, name_of
from hf_medtl.runs.loaded_run import Run

SHOWN = ("roc_auc", "average_precision", "sensitivity", "specificity", "ppv")


def sections(run: Run, loaded: Loaded | None, missing: str) -> list[Section]:
    """Results, ranking, calibration, decisions, pictures and the external test of a run."""
    found = [
        Section("Results", [*results(run.result, "Metrics, means over labels"),
                            *(folds_blocks(run) if "folds" in run.result else [])]),
        Section("Ranking", ranking(run.result, run.table)),
        Section("Calibration", calibration(run.result, run.table)),
        Section("Decisions", [thresholds(run.result), *outliers(run.result)]),
        Section("Pictures", gallery(run, loaded, missing)),
    ]  # fmt: skip
    if run.external is not None and "external" in run.result:
        outside = run.result["external"]
        blocks = [*results(outside, "Metrics on the external data"), *ranking(outside, run.external)]
        found.append(Section("External test", blocks))
    return found


def results(part: dict[str, Any], title: str) -> list[Block]:
    """Means over labels, and each label by itself."""
    rows = [
        (label, f"{its['n_positive']:,}", *(interval(its["metrics"][name]) for name in SHOWN))
        for label, its in part["per_label"].items()
    ]
    note = (
        "Value [95 % interval]. Of one label rates have Wilson's interval and ROC AUC has DeLong's, both over groups."
    )
    return [
        Prose(
            "A picture can have any number of the labels, or none; each has a probability and a threshold of its own."
        ),
        metrics_table(part, title),
        Table("Each label", ("label", "pictures with it", *map(name_of, SHOWN)), rows, note),
    ]


def scores(part: dict[str, Any], table: pd.DataFrame) -> list[Scores]:
    """Of each label."""
    cells = [labels_of(cell) for cell in table["label"]]
    groups = table["group"].tolist()
    return [
        Scores(name, np.array([name in cell for cell in cells]), table[f"p_{name}"].to_numpy(np.float64), groups)
        for name in part["labels"]
    ]


def ranking(part: dict[str, Any], table: pd.DataFrame) -> list[Block]:
    """ROC, and precision and recall, a line each label."""
    return [*plots.ranking_plots(scores(part, table))]


def calibration(part: dict[str, Any], table: pd.DataFrame) -> list[Block]:
    """Reliability and distribution of all labels' probabilities together."""
    its = scores(part, table)
    together = Scores("labels", np.concatenate([one.positive for one in its]),
                      np.concatenate([one.score for one in its]), [*its[0].groups] * len(its))  # fmt: skip
    known = [("Temperature, fitted on validation", f"{part['temperature']:.3f}")] if "temperature" in part else []
    rows = [*known, *((name_of(name) + " [95 % interval], mean over labels", interval(part["metrics"][name]))
                      for name in ("brier", "ece") if name in part["metrics"])]  # fmt: skip
    shown = f"labels of {len(table):,} pictures"
    kinds = {"label is there": together.score[together.positive],
             "label is not there": together.score[~together.positive]}  # fmt: skip
    return [
        plots.reliability_plot(together, "a label", shown),
        plots.distribution_plot(kinds, "a label", None),
        Table("Calibration", ("", "value"), rows),
    ]


def thresholds(part: dict[str, Any]) -> Table:
    """From which probability each label is decided, and what comes of it."""
    rows = []
    for label, its in part["per_label"].items():
        fitted = "" if its["threshold_fitted"] else " (not fitted)"
        cut = "each fold's own" if its["threshold"] is None else f"{its['threshold']:.3f}{fitted}"
        (tn, fp), (fn, tp) = its["confusion_matrix"]
        rows.append((label, cut, f"{tp:,}", f"{fn:,}", f"{tn:,}", f"{fp:,}"))
    columns = ("label", "threshold", "rightly found", "missed", "rightly not found", "false alarms")
    return Table("Thresholds", columns, rows, "From the validation split; counts are of the test pictures.")


def gallery(run: Run, loaded: Loaded | None, missing: str) -> list[Block]:
    """Pictures whose labels are all right, and those with most mistakes; by a threshold of 0.5 if folds have theirs."""
    if loaded is None:
        return [Prose(f"No pictures: {missing}", "note")]
    its = scores(run.result, run.table)
    cuts = [run.result["per_label"][one.name]["threshold"] for one in its]
    decided = np.array([one.score >= (0.5 if cut is None else cut) for one, cut in zip(its, cuts, strict=True)])
    mistakes = (decided != np.array([one.positive for one in its])).sum(axis=0)
    order = np.argsort(mistakes, kind="stable")
    names = [one.name for one in its]
    blocks: list[Block] = []
    for title, rows in (
        ("Every label right", order[mistakes[order] == 0][:EACH]),
        ("Most labels wrong", order[::-1][:EACH][mistakes[order[::-1][:EACH]] > 0]),
    ):
        items = [
            shown(
                loaded,
                run.table["image_id"].iloc[row],
                f"true: {', '.join(labels_of(run.table['label'].iloc[row])) or 'none'}; decided: "
                f"{', '.join(name for name, yes in zip(names, decided[:, row], strict=True) if yes) or 'none'}",
                "wrong" if mistakes[row] else "right",
            )
            for row in rows
        ]
        if items:
            blocks.append(Gallery(title, items, "Pictures are drawn anew from their pixels, small, without metadata."))
    return blocks
