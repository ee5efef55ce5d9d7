"""Runs side by side: their metrics, paired differences, curves in one plot, and what more training pictures gain."""

from collections.abc import Sequence

import numpy as np

from hf_medtl.evaluation.names import NAMES
from hf_medtl.evaluation.paired import Paired, differences
from hf_medtl.publish.templates import interval
from hf_medtl.report import plots
from hf_medtl.report.blocks import Axis, Block, Line, Plot, Points, Prose, Section, Table, style
from hf_medtl.report.classification import Answers
from hf_medtl.report.tables import name_of
from hf_medtl.runs.compare import rival_of
from hf_medtl.runs.loaded_run import Run

SHARES = ("hausdorff95",)  # metrics in pixels, which no axis of shares has room for


def comparison(runs: Sequence[Run]) -> Section | None:
    """All runs, and for each set of test pictures what differs between its runs; None for a single run."""
    if len(runs) < 2:
        return None
    parts, alone = [], []
    for same in by_pictures(runs):
        if len(same) > 1:
            parts.append(
                Section(f"{same[0].result['dataset']}: {len(same)} runs on the same pictures", side_by_side(same))
            )
        else:
            alone.append(same[0].name)
    said = f"Tested on pictures that no other of these runs was tested on: {', '.join(alone)}. No difference is given."
    return Section("Comparison", [Prose(said)] if alone else [], parts)


def by_pictures(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs with the same task and the same test pictures together, in order."""
    found: dict[tuple, list[Run]] = {}
    for run in runs:
        columns = run.table[["image_id", "label", "group"]].astype(str).sort_values("image_id")
        key = run.task, tuple(run.result["labels"]), tuple(columns.itertuples(index=False, name=None))
        found.setdefault(key, []).append(run)
    return list(found.values())


def side_by_side(runs: Sequence[Run]) -> list[Block]:
    """Metrics of each run, and the differences of the others from the first."""
    first = runs[0]
    metrics = [name for name in first.result["metrics"] if all(name in run.result["metrics"] for run in runs)]
    rows = [(NAMES[name], *(interval(run.result["metrics"][name]) for run in runs)) for name in metrics]
    n = f"{first.result['n']:,} pictures in {first.result['n_groups']:,} groups"
    blocks: list[Block] = [
        Table("Side by side", ("metric", *(run.name for run in runs)), rows,
              f"The same {n}. Value [95 % interval over groups], from each run's results.json.")
    ]  # fmt: skip
    rivals = {run.name: rival_of(run.folder, run.result) for run in runs}
    found: dict[str, dict[str, Paired]] = {}
    for row in differences(rivals, first.name, rivals[first.name].usual):
        found.setdefault(row.run, {})[row.metric] = row
    metrics = [name for name in metrics if name in next(iter(found.values()))]
    blocks += [differences_table(first, found, metrics, n), differences_plot(first, found, metrics, n)]
    return blocks + overlaid(runs) + learning_curve(runs)


def differences_table(first: Run, found: dict[str, dict[str, Paired]], metrics: Sequence[str], n: str) -> Table:
    """A column for each other run."""
    rows = [(NAMES[name], *(told(its[name]) for its in found.values())) for name in metrics]
    tests = {row.metric: row.test for its in found.values() for row in its.values() if row.test}
    note = (
        f"Less {first.name}, paired by picture: the same {n}. 95 % limits by the jackknife over groups, or DeLong's. "
    )
    note += (
        f"Tested are {', '.join(f'{NAMES[name]} ({test})' for name, test in tests.items())}, with p-values corrected "
    )
    note += (
        "together (Holm). Limits and tests say nothing of other training pictures or seeds. `hf-medtl compare` tests "
    )
    note += "other metrics."
    return Table("Paired differences", ("metric", *(f"{name} − {first.name}" for name in found)), rows, note)


def told(row: Paired) -> str:
    """`+0.012 [−0.003, +0.027], p = 0.120`, with p only of what was tested."""
    value, low, high = (
        f"{number:+.3f}".replace("-", "−") if np.isfinite(number) else "?"
        for number in (row.difference.value, row.difference.low, row.difference.high)
    )
    p = f", p = {row.p_holm:.3f}" if np.isfinite(row.p_holm) else ""
    return f"{value} [{low}, {high}]{p}"


def differences_plot(first: Run, found: dict[str, dict[str, Paired]], metrics: Sequence[str], n: str) -> Plot:
    """A point for each metric and run, with its limits."""
    shown = [name for name in metrics if name not in SHARES][::-1]
    marks: list[Points | Line] = [Line("", [0, 0], [-0.6, len(shown) - 0.4], "grey", "dot")]
    for index, (name, its) in enumerate(found.items()):
        value, low, high = np.array([its[metric].difference[:3] for metric in shown], np.float64).T
        height = np.arange(len(shown)) - 0.15 * (index - (len(found) - 1) / 2)
        texts = [f"{name_of(metric)}: {told(its[metric])}" for metric in shown]
        marks.append(Points(name, value, height, low, high, style(index)["colour"], across=True, texts=texts))
    return Plot(
        "Paired differences",
        marks,
        Axis(f"difference from {first.name}"),
        Axis("", -0.6, len(shown) - 0.4, [name_of(name) for name in shown]),
        f"{n}. Bars: 95 % limits, paired by picture; methods as in the table.",
        "Differences: "
        + "; ".join(f"{name} {name_of(m)} {told(its[m])}" for name, its in found.items() for m in shown),
        wide=True,
    )


def overlaid(runs: Sequence[Run]) -> list[Block]:
    """ROC and precision-recall curves of runs with two labels."""
    first = runs[0]
    if "confusion_matrix" not in first.result or len(first.result["labels"]) != 2:
        return []
    lines = []
    for run in runs:
        answers = Answers(run.result, run.table, [fold["threshold"] for fold in run.result.get("folds", [])])
        lines.append(answers.scores()[0]._replace(name=run.name))
    return [*plots.ranking_plots(lines)]


def learning_curve(runs: Sequence[Run]) -> list[Block]:
    """The watched metric by number of training pictures, where runs have learnt from different ones."""
    tables = [run.splits for run in runs if run.splits is not None and not run.folds]
    sizes = [int((table["split"] == "train").sum()) for table in tables]
    if len(sizes) < len(runs) or len(set(sizes)) < 2:
        return []
    metric = runs[0].watched
    kinds: dict[str, list[tuple[int, dict]]] = {}
    for run, size in zip(runs, sizes, strict=True):
        kinds.setdefault(run.learns, []).append((size, run.result["metrics"][metric]))
    marks: list[Line | Points] = []
    for index, (name, points) in enumerate(kinds.items()):
        points.sort(key=lambda point: point[0])
        x = [point[0] for point in points]
        value, low, high = (
            [np.nan if its[key] is None else its[key] for _, its in points] for key in ("value", "low", "high")
        )
        look = style(index)
        marks += [Line("", x, value, **look), Points(name, x, value, low, high, look["colour"])]
    said = "; ".join(f"{name} " + ", ".join(f"{size}: {its['value']:.3f}" for size, its in points if its["value"])
                     for name, points in kinds.items())  # fmt: skip
    return [
        Plot("Learning curve", marks, Axis("training pictures", 0), Axis(name_of(metric)),
             f"The same {runs[0].result['n']:,} test pictures. Bars: 95 % intervals over groups, from results.json; "
             "they do not count that other training pictures would give another model.",
             f"{name_of(metric)} by number of training pictures: {said}.", wide=True)
    ]  # fmt: skip
