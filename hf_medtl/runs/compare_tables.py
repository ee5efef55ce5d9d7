"""Tables of a comparison as text: metrics, differences, costs, parts and disagreements."""

import math

import pandas as pd

from hf_medtl.evaluation.names import METRIC_NAMES
from hf_medtl.runs.compare import Comparison, Costs

UNKNOWN = "–"


def tables(comparison: Comparison, costs: Costs) -> dict[str, pd.DataFrame]:
    """Return metrics, differences, costs, parts and disagreements as tables of text; the last two may be empty."""
    return {
        "metrics": _wide(comparison.metrics, ["metric"]),
        "differences": _differences_table(comparison),
        "costs": _costs_table(comparison, costs),
        "parts": _wide(comparison.parts, ["part", "metric"]),
        "disagreements": _disagreements_table(comparison),
    }


def _wide(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """A row for each value of the keys and a column for each run, with `0.953 [0.871, 0.990]` in the cells."""
    cells = table.assign(
        cell=[interval_text(*row) for row in zip(table["value"], table["low"], table["high"], strict=True)],
        metric=table["metric"].map(METRIC_NAMES),
    )
    runs = list(dict.fromkeys(table["run"]))
    rows = {key: dict(zip(part["run"], part["cell"], strict=True)) for key, part in cells.groupby(keys, sort=False)}
    return pd.DataFrame(
        [[*key, *(by_run.get(run, UNKNOWN) for run in runs)] for key, by_run in rows.items()], columns=[*keys, *runs]
    )


def _differences_table(comparison: Comparison) -> pd.DataFrame:
    """A row for each run and metric, tested metrics first."""
    tested = list(comparison.tested)
    rows = comparison.differences.sort_values(
        "metric", key=lambda column: column.map(lambda name: [*tested, name].index(name)), kind="stable"
    )
    return pd.DataFrame(
        [
            {
                "run": row["run"],
                "metric": METRIC_NAMES[row["metric"]],
                "difference [95 % interval]": interval_text(row["value"], row["low"], row["high"], "+.3f"),
                "p": p_value_text(row["p_value"]),
                "p, corrected": p_value_text(row["p_holm"]),
                "test": row["test"] or UNKNOWN,
            }
            for row in rows.to_dict("records")
        ]
    )


def _costs_table(comparison: Comparison, costs: Costs) -> pd.DataFrame:
    """A row for each cost and a column for each run."""
    all_folds = " of all folds" if comparison.facts["folds"] else ""
    table, formats = costs.table, {
        f"training{all_folds}, minutes": ("train_seconds", 60, ".1f"),
        "peak memory in training, MB": ("peak_memory_mb", 1, ",.0f"),
        "energy of training, kWh": ("energy_kwh", 1, ".3g"),
        "parameters, millions": ("parameters", 1e6, ".3g"),
        "multiply-accumulates per image, billions": ("macs", 1e9, ".3g"),
        "weights on disk, MB": ("weights_mb", 1, ".3g"),
    }  # fmt: skip
    rows = {
        title: [UNKNOWN if math.isnan(value) else format(value / unit, spec) for value in table[column]]
        for title, (column, unit, spec) in formats.items()
    }
    times = zip(table["latency_ms"], table["latency_lower"], table["latency_upper"], strict=True)
    rows["one image, ms [quartiles]"] = [interval_text(*time, ".1f") for time in times]
    rows["trained on"] = [hardware or UNKNOWN for hardware in table["trained_on"]]
    return pd.DataFrame([[title, *cells] for title, cells in rows.items()], columns=["cost", *table.index])


def _disagreements_table(comparison: Comparison) -> pd.DataFrame:
    """The images that are shown, with each run's decision."""
    return pd.DataFrame(
        [
            {"image": row["image_id"], comparison.label_title: row["label"], **row["answers"]}
            for row in comparison.with_identifiers(comparison.shown_disagreements).to_dict("records")
        ]
    )


def interval_text(value: float, low: float, high: float, spec: str = ".3f") -> str:
    """Return `0.953 [0.871, 0.990]`, with – for unknown values."""
    if math.isnan(value):
        return UNKNOWN
    limits = (UNKNOWN if math.isnan(limit) else format(limit, spec) for limit in (low, high))
    return f"{value:{spec}} [{', '.join(limits)}]"


def p_value_text(p: float) -> str:
    """Return a p-value with three decimals, with – if nothing was tested."""
    return UNKNOWN if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
