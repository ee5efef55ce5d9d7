"""Report section that compares runs: metrics side by side, paired differences, curves and a learning curve."""

from collections.abc import Mapping

import numpy as np

from hf_medtl.common.run_folder import RunFolder
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.marks import Axis, Line, Plot, Points, line_style
from hf_medtl.evaluation.metric_charts import interval_arrays
from hf_medtl.evaluation.names import METRIC_NAMES, short_name
from hf_medtl.evaluation.probability_charts import Scores, ranking_plots
from hf_medtl.evaluation.run_scores import RunScores
from hf_medtl.publish.templates import format_interval
from hf_medtl.report.blocks import Block, Prose, Section, Table
from hf_medtl.report.sections import image_count, initial_weights, main_metric
from hf_medtl.runs.compare import Comparison, check_same_task_and_images, compare_scores, run_scores
from hf_medtl.runs.compare_tables import interval_text, p_value_text

IN_PIXELS = ("hausdorff95",)  # metrics that do not fit on an axis of proportions


def comparison_section(runs: Mapping[str, RunFolder]) -> Section | None:
    """Compare runs with the same test images; None for a single run.

    Args:
        runs: name -> finished run or cross-validation.
    """
    if len(runs) < 2:
        return None
    scores = {name: run_scores(run) for name, run in runs.items()}
    groups = _comparable_groups(runs, scores)
    alone = [name for names in groups if len(names) == 1 for name in names]
    note = f"Tested on images that no other of these runs was tested on: {', '.join(alone)}. They are not compared."
    sections = []
    for names in groups:
        if len(names) > 1:
            part = {name: runs[name] for name in names}
            title = f"{runs[names[0]].results['dataset']}: {len(names)} runs on the same images"
            sections.append(Section(title, _side_by_side(part, {name: scores[name] for name in names})))
    return Section("Comparison", [Prose(note)] if alone else [], sections)


def _comparable_groups(runs: Mapping[str, RunFolder], scores: Mapping[str, RunScores]) -> list[list[str]]:
    """The names of runs that can be compared with each other, in order."""
    groups: list[list[str]] = []
    for name in runs:
        for group in groups:
            pair = (group[0], name)
            try:
                check_same_task_and_images({key: runs[key] for key in pair}, {key: scores[key] for key in pair})
            except MedtlError:
                continue
            group.append(name)
            break
        else:
            groups.append([name])
    return groups


def _side_by_side(runs: Mapping[str, RunFolder], scores: Mapping[str, RunScores]) -> list[Block]:
    """Metrics of each run, the differences of the others from the first, and curves."""
    results = [run.results for run in runs.values()]
    comparison = compare_scores(runs, scores)
    shared = comparison.scores[comparison.reference].metrics
    metrics = [name for name in shared if all(name in result["metrics"] for result in results)]
    rows = [(METRIC_NAMES[name], *(format_interval(result["metrics"][name]) for result in results)) for name in metrics]
    n = image_count(results[0])
    return [
        Table("Side by side", ("metric", *runs), rows,
              f"The same {n}. Value [95 % interval over groups], from each run's results.json."),
        *_differences(comparison, metrics, n),
        *_ranking_plots(scores),
        *_learning_curve(runs),
    ]  # fmt: skip


def _differences(comparison: Comparison, metrics: list[str], n: str) -> list[Block]:
    """The differences from the reference as a table with a column for each other run, and as a plot."""
    rows = {(row["run"], row["metric"]): row for row in comparison.differences.to_dict("records")}
    others = [name for name in comparison.runs if name != comparison.reference]
    metrics = [name for name in metrics if (others[0], name) in rows]
    texts = {key: interval_text(row["value"], row["low"], row["high"], "+.3f") for key, row in rows.items()}
    for key, row in rows.items():
        if row["p_holm"] >= 0:  # not NaN: it was tested
            texts[key] += f", p = {p_value_text(row['p_holm'])}".replace("= <", "<")
    tests = {row["metric"]: row["test"] for row in rows.values() if row["test"]}
    tested = ", ".join(f"{METRIC_NAMES[name]} ({test})" for name, test in tests.items())
    note = (
        f"Minus {comparison.reference}, paired by image: the same {n}. 95 % intervals by the jackknife over groups, or "
        f"DeLong's. Tested: {tested}, with p-values corrected together (Holm). Intervals and tests do not include the "
        "variation between training sets or seeds. `hf-medtl compare` can test other metrics."
    )
    table = [(METRIC_NAMES[metric], *(texts[name, metric] for name in others)) for metric in metrics]
    columns = ("metric", *(f"{name} − {comparison.reference}" for name in others))
    shown = [metric for metric in metrics if metric not in IN_PIXELS][::-1]
    marks: list[Points | Line] = [Line("", [0, 0], [-0.6, len(shown) - 0.4], "grey", "dot")]
    for index, name in enumerate(others):
        value, low, high = interval_arrays(rows[name, metric] for metric in shown)
        y = np.arange(len(shown)) - 0.15 * (index - (len(others) - 1) / 2)
        hover = [f"{short_name(metric)}: {texts[name, metric]}" for metric in shown]
        colour = line_style(index)["colour"]
        marks.append(Points(name, value, y, low, high, colour, horizontal=True, texts=hover))
    return [
        Table("Paired differences", columns, table, note),
        Plot(
            "Paired differences",
            marks,
            Axis(f"difference from {comparison.reference}"),
            Axis("", -0.6, len(shown) - 0.4, [short_name(metric) for metric in shown]),
            n,
            "Bars: 95 % intervals, paired by image; methods as in the table.",
            "Differences: " + "; ".join(f"{name} {short_name(m)} {texts[name, m]}" for name in others for m in shown),
            wide=True,
        ),
    ]


def _ranking_plots(scores: Mapping[str, RunScores]) -> list[Plot]:
    """ROC and precision-recall curves of binary classifiers."""
    lines = [
        Scores(name, (run.table["label"] == run.positive).to_numpy(), run.scores, run.table["group"].tolist())
        for name, run in scores.items()
        if run.scores is not None
    ]
    return ranking_plots(lines)


def _learning_curve(runs: Mapping[str, RunFolder]) -> list[Plot]:
    """The main metric by number of training images, if the runs were trained on different numbers."""
    sizes = [
        int((run.splits["split"] == "train").sum()) for run in runs.values() if run.splits is not None and not run.folds
    ]
    if len(sizes) < len(runs) or len(set(sizes)) < 2:
        return []
    first = next(iter(runs.values()))
    metric = main_metric(first)
    curves: dict[str, list[tuple[int, dict]]] = {}
    for run, size in zip(runs.values(), sizes, strict=True):
        curves.setdefault(initial_weights(run), []).append((size, run.results["metrics"][metric]))
    marks: list[Line | Points] = []
    texts = []
    for index, (name, points) in enumerate(curves.items()):
        points.sort(key=lambda point: point[0])
        x, values = zip(*points, strict=True)
        y, low, high = interval_arrays(values)
        style = line_style(index)
        marks += [Line("", x, y, **style), Points(name, x, y, low, high, style["colour"])]
        texts.append(f"{name} " + ", ".join(f"{size}: {v:.3f}" for size, v in zip(x, y, strict=True) if v))
    return [
        Plot("Learning curve", marks, Axis("training images", 0), Axis(short_name(metric)),
             f"The same {first.results['n']:,} test images",
             "Bars: 95 % intervals over groups, from results.json; they do not include the variation between training "
             "sets.",
             f"{short_name(metric)} by number of training images: {'; '.join(texts)}.", wide=True)
    ]  # fmt: skip
