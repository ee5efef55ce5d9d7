"""A comparison for people: tables, figures, README.md, and what is printed."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from hf_medtl.common.files import write
from hf_medtl.data.images import read_image
from hf_medtl.data.loading import locate
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation import comparison_plots as plots
from hf_medtl.evaluation.names import NAMES
from hf_medtl.evaluation.paired import LOWER_IS_BETTER
from hf_medtl.publish.templates import page
from hf_medtl.runs.compare import Comparison, pictures_of

UNKNOWN = "–"
SHOWN = 12  # pictures in dispute


def tables(found: Comparison) -> dict[str, pd.DataFrame]:
    """metrics, differences, costs, parts and disagreements as tables of words; the last two may be empty."""
    return {
        "metrics": wide(found.metrics, ["metric"]),
        "differences": differences_table(found),
        "costs": costs_table(found),
        "parts": wide(found.parts, ["part", "metric"]),
        "disagreements": disagreements_table(found),
    }


def wide(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """A row for each of some keys and a column a run, with `0.953 [0.871, 0.990]` in the cells."""
    cells = table.assign(
        cell=[in_words(*row) for row in zip(table["value"], table["low"], table["high"], strict=True)],
        metric=table["metric"].map(NAMES),
    )
    runs = list(dict.fromkeys(table["run"]))
    rows = {key: dict(zip(its["run"], its["cell"], strict=True)) for key, its in cells.groupby(keys, sort=False)}
    return pd.DataFrame(
        [[*key, *(its.get(run, UNKNOWN) for run in runs)] for key, its in rows.items()], columns=[*keys, *runs]
    )


def differences_table(found: Comparison) -> pd.DataFrame:
    """A row a run and metric, those tested first."""
    tested = found.facts["tested"]
    rows = found.differences.sort_values(
        "metric", key=lambda its: its.map(lambda name: [*tested, name].index(name)), kind="stable"
    )
    return pd.DataFrame(
        [
            {
                "run": row["run"],
                "metric": NAMES[row["metric"]],
                "difference [95 % interval]": in_words(row["value"], row["low"], row["high"], "+.3f"),
                "p": chance(row["p_value"]),
                "p, corrected": chance(row["p_holm"]),
                "test": row["test"] or UNKNOWN,
            }
            for row in rows.to_dict("records")
        ]
    )


def costs_table(found: Comparison) -> pd.DataFrame:
    """A row a cost and a column a run; what is not known is –."""
    all_folds = " of all folds" if found.facts["folds"] else ""
    costs, kinds = found.costs, {
        f"training{all_folds}, minutes": ("train_seconds", 60, ".1f"),
        "highest memory in training, MB": ("peak_memory_mb", 1, ",.0f"),
        "energy of training, kWh": ("energy_kwh", 1, ".3g"),
        "parameters, millions": ("parameters", 1e6, ".3g"),
        "multiply-accumulates of a picture, billions": ("macs", 1e9, ".3g"),
        "weights on disk, MB": ("weights_mb", 1, ".3g"),
    }  # fmt: skip
    rows = {
        title: [UNKNOWN if math.isnan(value) else format(value / unit, form) for value in costs[column]]
        for title, (column, unit, form) in kinds.items()
    }
    times = zip(costs["latency_ms"], costs["latency_lower"], costs["latency_upper"], strict=True)
    rows["one picture, ms [quartiles]"] = [in_words(*its, ".1f") for its in times]
    rows["trained on"] = [words or UNKNOWN for words in costs["trained_on"]]
    return pd.DataFrame([[title, *cells] for title, cells in rows.items()], columns=["cost", *costs.index])


def disagreements_table(found: Comparison) -> pd.DataFrame:
    """The first pictures in dispute, with what each run says of them."""
    title = true_label(found)
    return pd.DataFrame(
        [
            {"picture": row["image_id"], title: row["label"], **row["answers"]}
            for row in first_in_dispute(found).to_dict("records")
        ]
    )


def first_in_dispute(found: Comparison) -> pd.DataFrame:
    """The rows to show, one of each group: copies of a picture are in dispute together."""
    return found.disagreements.drop_duplicates("group").head(SHOWN)


def true_label(found: Comparison) -> str:
    """What a picture's label is called beside the runs' answers: with masks it is no answer to anything."""
    return "true" if found.facts["decides"] else "label"


def in_words(value: float, low: float, high: float, form: str = ".3f") -> str:
    """`0.953 [0.871, 0.990]`; – for what is not known."""
    if math.isnan(value):
        return UNKNOWN
    limits = (UNKNOWN if math.isnan(limit) else format(limit, form) for limit in (low, high))
    return f"{value:{form}} [{', '.join(limits)}]"


def chance(p: float) -> str:
    """A p-value to three digits."""
    return UNKNOWN if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def methods(found: Comparison) -> dict[str, str]:
    """How the intervals were made: method -> its metrics."""
    its: dict[str, list[str]] = {}
    for metric, method in found.facts["interval_methods"].items():
        its.setdefault(method, []).append(short(metric))
    return {method: ", ".join(names) for method, names in its.items()}


def tests(found: Comparison) -> list[str]:
    """How the differences were tested, a sentence or two each."""
    done = found.differences[found.differences["test"] != ""]
    words = [f"{test} ({', '.join(map(short, its['metric'].unique()))})" for test, its in done.groupby("test")]
    number = found.facts["n_tests"]
    return [
        f"p, two-sided, of no difference: {'; '.join(words)}.",
        f"Corrected by Holm's method for {number} comparison{'s' * (number != 1)} together (runs × metrics tested): the"
        " chance that any below 0.05 is a false finding is 5 % at most.",
        "Intervals are not corrected. They are DeLong's where that is the test, else by the jackknife over groups with "
        "Student's t. Other metrics have an interval and no p, as they were not named for testing.",
        "The models are taken as given: that others would come of other training pictures or seeds is in no number.",
    ]


def notes(found: Comparison) -> list[str]:
    """How the costs were measured."""
    lines = [
        "Multiply-accumulates: half the operations that torch's FlopCounterMode counts (matrix products, convolutions, "
        f"attention). {UNKNOWN}: not recorded."
    ]
    if found.costs["energy_kwh"].notna().any():
        lines.append("Energy: of the whole machine, by codecarbon; estimated where its meters can't be read.")
    if found.measured_on:
        lines.append(
            f"Time: the model alone, a batch of one, already prepared, float32, on {found.measured_on}; median of "
            "measurements in turn after a warm-up."
        )
    if found.facts["folds"]:
        lines.append("Of folds: one fold's model, and the training of all.")
    if len(set(found.costs["trained_on"])) > 1:
        lines.append(
            "The runs were not trained on the same hardware in the same number format: time and memory say little."
        )
    return lines


def short(metric: str) -> str:
    """A metric's name without what is in brackets."""
    return NAMES[metric].partition(" (")[0]


def dispute(found: Comparison) -> str:
    """How many pictures are in dispute."""
    if not found.facts["decides"]:
        return "Shown are the pictures on which the runs' Dice differs most, one a group."
    number = len(found.disagreements)
    words = f"On {number} of {found.facts['n']} pictures the runs do not all decide alike."
    more = " Shown are the widest gaps between their probabilities of the truth, one picture a group."
    return f"{words}{more}" if number else words


def pictures(found: Comparison, data_dir: Path | None) -> tuple[list[NDArray[np.uint8]], str]:
    """The first pictures in dispute, or why they can't be shown.

    Args:
        found: a comparison.
        data_dir: the runs' data; they do not keep where it lay.
    """
    if found.disagreements.empty:
        return [], ""
    if data_dir is None:
        return [], "Give --data_dir to see the pictures."
    first = next(iter(found.runs.values()))
    try:
        root = locate(found.facts["dataset"], data_dir)[1]
        root = root.parent if root.is_file() else root
        files = pictures_of(first, found.facts["folds"]).loc[first_in_dispute(found)["image_id"]]
        for path, sha256 in zip(files["path"], files["sha256"], strict=True):
            if hashlib.sha256((root / path).read_bytes()).hexdigest() != sha256:
                raise MedtlError(f"{path} has other contents than in the run.")
        return [np.asarray(read_image(root / path)) for path in files["path"]], ""
    except (MedtlError, OSError, KeyError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        return [], f"The pictures can't be shown ({str(what).rstrip('.')}). Give the runs' own data with --data_dir."


def check_out(out: Path) -> None:
    """Refuse a folder whose README.md is another one's.

    Raises:
        MedtlError: it holds something else than a comparison.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / "comparison.json").exists()):
        raise MedtlError(f"--out {out} holds something else than a comparison. Give a folder that is new or empty.")


def write_comparison(found: Comparison, out: Path, data_dir: Path | None = None) -> str:
    """Write comparison.json, README.md and figures/ to a folder; return why pictures can't be shown, if so.

    Args:
        found: a comparison.
        out: a folder that is new, empty or holds a comparison.
        data_dir: the runs' data, to show pictures.

    Raises:
        MedtlError: as `check_out`.
    """
    check_out(out)
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    shown, why_not = pictures(found, data_dir)
    draw(found, figures, shown)
    facts = found.facts | {
        "runs": list(found.runs),
        "reference": found.reference,
        "chosen": found.chosen,
        "tables": tables(found),
        "methods": methods(found),
        "tests": tests(found),
        "notes": notes(found),
        "dispute": dispute(found),
        "why_not": why_not,
    }
    write(out / "README.md", page("comparison", facts))
    write(out / "comparison.json", as_json(found))
    return why_not


def draw(found: Comparison, figures: Path, shown: list[NDArray[np.uint8]]) -> None:
    """The figures of a comparison; `shown` are the first pictures in dispute."""
    tested, main = found.facts["tested"], found.facts["tested"][0]
    names = {metric: NAMES[metric] for metric in tested}
    plots.intervals(found.metrics, found.differences, found.reference, names, figures / "intervals.png")
    costs = found.costs.assign(parameters=found.costs["parameters"] / 1e6, macs=found.costs["macs"] / 1e9)
    axes = {"parameters": "parameters, millions", "macs": "multiply-accumulates of a picture, billions"}
    if found.measured_on:
        axes["latency_ms"] = f"ms for one picture, {found.measured_on}"
    rows = found.metrics[found.metrics["metric"] == main]
    plots.pareto(rows, costs, axes, NAMES[main], main not in LOWER_IS_BETTER, figures / "pareto.png")
    if len(found.parts):
        several = [
            metric
            for metric in ("sensitivity", "ppv", "f1", "roc_auc", "dice", "iou")
            if metric in set(found.parts["metric"])
        ]
        plots.parts(found.parts, {metric: short(metric) for metric in several}, figures / "parts.png")
    if shown:
        rows = first_in_dispute(found)
        captions = [
            "\n".join(
                [f"{true_label(found)}: {row['label']}", *(f"{run}: {words}" for run, words in row["answers"].items())]
            )
            for row in rows.to_dict("records")
        ]
        plots.sheet(shown, captions, "Where the runs disagree", figures / "disagreements.png")


def as_json(found: Comparison) -> dict[str, Any]:
    """Everything as plain values, with null for what is not known, and no folder's place."""
    frames = {
        "metrics": found.metrics,
        "differences": found.differences,
        "parts": found.parts,
        "costs": found.costs.reset_index(),
        "disagreements": found.disagreements,
    }
    return {
        **found.facts,
        "runs": list(found.runs),
        "reference": found.reference,
        "reference_chosen_as_best": found.chosen,
        "latency_measured_on": found.measured_on or None,
        **{name: json.loads(frame.to_json(orient="records", double_precision=15)) for name, frame in frames.items()},
    }


def show_comparison(found: Comparison, out: Path, why_not: str) -> None:
    """Print the tables, and where the rest is; `why_not` of `write_comparison`."""
    console, facts, every = Console(highlight=False), found.facts, tables(found)
    gaps = differences_table(found)
    parts = {
        f"{facts['dataset']}, {facts['split']}: {facts['n']} pictures in {facts['n_groups']} groups": every["metrics"],
        f"Less {found.reference}, paired by picture": gaps[gaps["test"] != UNKNOWN].drop(columns="test"),
        "Costs": every["costs"],
    }
    for title, words in parts.items():
        table = Table(title=title, title_justify="left")
        for place, column in enumerate(words.columns):
            left = place == 0 or column == "metric"
            table.add_column(str(column), justify="left" if left else "right", overflow="fold")
        for row in words.itertuples(index=False, name=None):
            table.add_row(*row)
        console.print(table)
        if title.startswith("Less"):
            console.print(" ".join(tests(found)[:2]), markup=False)
    console.print(f"{dispute(found)} {why_not}".strip(), markup=False)
    console.print(f"\n{out}: README.md, comparison.json and figures/", markup=False)
