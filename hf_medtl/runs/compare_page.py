"""Presentation of a comparison: figures, README.md, comparison.json and console output."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from hf_medtl.common.console import make_console
from hf_medtl.common.files import write_atomic
from hf_medtl.data.images import read_image
from hf_medtl.data.loading import locate_dataset
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation import comparison_plots as plots
from hf_medtl.evaluation.names import METRIC_NAMES
from hf_medtl.evaluation.paired import LOWER_IS_BETTER
from hf_medtl.publish.templates import render
from hf_medtl.runs.compare import Comparison, Costs, image_files
from hf_medtl.runs.compare_tables import UNKNOWN, tables
from hf_medtl.runs.output_folder import filling

COMPARISON = "comparison.json"
PART_METRICS = ("sensitivity", "ppv", "f1", "roc_auc", "dice", "iou")


def _interval_methods(comparison: Comparison) -> dict[str, str]:
    """Method of the intervals -> its metrics."""
    methods: dict[str, list[str]] = {}
    for metric, method in comparison.facts["interval_methods"].items():
        methods.setdefault(method, []).append(_short_name(metric))
    return {method: ", ".join(names) for method, names in methods.items()}


def _test_notes(comparison: Comparison) -> list[str]:
    """How the differences were tested."""
    tested = comparison.differences[comparison.differences["test"] != ""]
    tests = [
        f"{test} ({', '.join(map(_short_name, part['metric'].unique()))})" for test, part in tested.groupby("test")
    ]
    number = comparison.facts["n_tests"]
    return [
        f"p: two-sided, of no difference: {'; '.join(tests)}.",
        f"Corrected by Holm's method for {number} comparison{'s' * (number != 1)} together (runs × tested metrics): the"
        " probability of any false positive among all p below 0.05 is at most 5 %.",
        "Intervals are not corrected. They are DeLong's where that is the test, and otherwise from the jackknife over "
        "groups with Student's t. Other metrics have an interval but no p, because they were not selected for testing.",
        "The models are taken as given: no number includes the variation between training sets or seeds.",
    ]


def _cost_notes(comparison: Comparison, costs: Costs) -> list[str]:
    """How the costs were measured."""
    lines = [
        "Multiply-accumulates: half the operations counted by torch's FlopCounterMode (matrix products, convolutions, "
        f"attention). {UNKNOWN}: not recorded."
    ]
    if costs.table["energy_kwh"].notna().any():
        lines.append("Energy: of the whole machine, by codecarbon; estimated where its meters cannot be read.")
    if costs.device:
        lines.append(
            f"Time: the model alone on one preprocessed image, float32, on {costs.device}; median of measurements that "
            "alternate between the models, after a warm-up."
        )
    if comparison.facts["folds"]:
        lines.append("Cross-validation: the model is that of one fold, the training that of all folds.")
    if costs.table["trained_on"].nunique() > 1:
        lines.append(
            "The runs were trained on different hardware or in different number formats: their training time and "
            "memory are hardly comparable."
        )
    return lines


def _short_name(metric: str) -> str:
    return METRIC_NAMES[metric].partition(" (")[0]


def _disagreement_summary(comparison: Comparison) -> str:
    """The number of images on which the runs disagree, and the selection of those shown."""
    if not comparison.facts["decides"]:
        return "Shown are the images on which the runs' Dice differs most, one of each group."
    number = len(comparison.disagreements)
    summary = f"The runs disagree on {number} of {comparison.facts['n']} images."
    if not number:
        return summary
    return f"{summary} Shown are the largest gaps in the probability of the true label, one image of each group."


def _read_disagreements(comparison: Comparison, data_dir: Path | None) -> tuple[list[NDArray[np.uint8]], str]:
    """Read the images to show.

    Args:
        comparison: of runs.
        data_dir: the runs' data; runs do not save their location.

    Returns:
        The images (H, W, 3), and why they cannot be shown, or "".
    """
    if comparison.disagreements.empty:
        return [], ""
    if data_dir is None:
        return [], "Give --data_dir to see the images."
    try:
        root = locate_dataset(comparison.facts["dataset"], data_dir)[1]
        root = root.parent if root.is_file() else root
        files = image_files(next(iter(comparison.runs.values()))).loc[comparison.shown_disagreements["image_id"]]
        for path, sha256 in zip(files["path"], files["sha256"], strict=True):
            if hashlib.sha256((root / path).read_bytes()).hexdigest() != sha256:
                raise MedtlError(f"{path} has other contents than in the run.")
        return [np.asarray(read_image(root / path)) for path in files["path"]], ""
    except (MedtlError, OSError, KeyError) as error:
        reason = str(error.strerror if isinstance(error, OSError) else error).rstrip(".")
        return [], f"The images cannot be shown ({reason}). Give the runs' own data with --data_dir."


def write_comparison(comparison: Comparison, costs: Costs, out: Path, data_dir: Path | None = None) -> str:
    """Write comparison.json, README.md and figures/ to a folder.

    Args:
        comparison: of runs.
        costs: of the same runs.
        out: a folder that is new, empty or holds a comparison.
        data_dir: the runs' data, to show images.

    Returns:
        Why no images are shown, or "".

    Raises:
        MedtlError: The folder holds something else, or another process writes to it.
    """
    images, why_not = _read_disagreements(comparison, data_dir)
    facts = comparison.facts | {
        "runs": list(comparison.runs),
        "reference": comparison.reference,
        "reference_is_best": comparison.reference_is_best,
        "tables": tables(comparison, costs),
        "methods": _interval_methods(comparison),
        "tests": _test_notes(comparison),
        "notes": _cost_notes(comparison, costs),
        "disagreement_summary": _disagreement_summary(comparison),
        "why_not": why_not,
    }
    with filling(out, "writes a comparison", earlier=COMPARISON) as staging:
        (staging / "figures").mkdir()
        _draw_figures(comparison, costs, staging / "figures", images)
        write_atomic(staging / "README.md", render("comparison", facts))
        write_atomic(staging / COMPARISON, _to_json(comparison, costs))
    return why_not


def _draw_figures(comparison: Comparison, costs: Costs, figures: Path, images: list[NDArray[np.uint8]]) -> None:
    names, main = {metric: METRIC_NAMES[metric] for metric in comparison.tested}, comparison.tested[0]
    plots.metrics_and_differences(
        comparison.metrics, comparison.differences, comparison.reference, names, figures / "intervals.png"
    )
    table = costs.table.assign(parameters=costs.table["parameters"] / 1e6, macs=costs.table["macs"] / 1e9)
    axes = {"parameters": "parameters, millions", "macs": "multiply-accumulates per image, billions"}
    if costs.device:
        axes["latency_ms"] = f"ms for one image, {costs.device}"
    rows = comparison.metrics[comparison.metrics["metric"] == main]
    plots.pareto_front(rows, table, axes, METRIC_NAMES[main], main not in LOWER_IS_BETTER, figures / "pareto.png")
    if len(comparison.parts):
        present = set(comparison.parts["metric"])
        short = {metric: _short_name(metric) for metric in PART_METRICS if metric in present}
        plots.part_metrics(comparison.parts, short, figures / "parts.png")
    if images:
        captions = [
            "\n".join(
                [f"{comparison.label_title}: {row['label']}", *(f"{run}: {a}" for run, a in row["answers"].items())]
            )
            for row in comparison.shown_disagreements.to_dict("records")
        ]
        plots.image_grid(images, captions, "Where the runs disagree", figures / "disagreements.png")


def _to_json(comparison: Comparison, costs: Costs) -> dict[str, Any]:
    """comparison.json: plain values with null where unknown, and no paths."""
    frames = {
        "metrics": comparison.metrics,
        "differences": comparison.differences,
        "parts": comparison.parts,
        "costs": costs.table.reset_index(),
        "disagreements": comparison.with_identifiers(comparison.disagreements),
    }
    return {
        **comparison.facts,
        "runs": list(comparison.runs),
        "reference": comparison.reference,
        "reference_chosen_as_best": comparison.reference_is_best,
        "latency_measured_on": costs.device or None,
        **{name: json.loads(frame.to_json(orient="records", double_precision=15)) for name, frame in frames.items()},
    }


def show_comparison(comparison: Comparison, costs: Costs, out: Path, why_not: str) -> None:
    """Print the tables and where the rest is.

    Args:
        comparison: of runs.
        costs: of the same runs.
        out: folder of `write_comparison`.
        why_not: returned by `write_comparison`.
    """
    console, facts, texts = make_console(), comparison.facts, tables(comparison, costs)
    tested = texts["differences"][texts["differences"]["test"] != UNKNOWN].drop(columns="test")
    for title, table, notes in (
        (
            f"{facts['dataset']}, {facts['split']}: {facts['n']} images in {facts['n_groups']} groups",
            texts["metrics"],
            [],
        ),
        (f"Minus {comparison.reference}, paired by image", tested, _test_notes(comparison)[:2]),
        ("Costs", texts["costs"], []),
    ):
        grid = Table(title=title, title_justify="left")
        for index, column in enumerate(table.columns):
            left = index == 0 or column == "metric"
            grid.add_column(str(column), justify="left" if left else "right", overflow="fold")
        for row in table.itertuples(index=False, name=None):
            grid.add_row(*row)
        console.print(grid)
        if notes:
            console.print(" ".join(notes))
    console.print(f"{_disagreement_summary(comparison)} {why_not}".strip())
    console.print(f"\n{out}: README.md, comparison.json and figures/")
