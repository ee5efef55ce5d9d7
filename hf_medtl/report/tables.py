"""Tables of a run that do not depend on its task."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from hf_medtl.data.audit import verdicts
from hf_medtl.data.specs import labels_of
from hf_medtl.data.splits import SPLITS
from hf_medtl.evaluation.names import NAMES
from hf_medtl.publish.templates import interval, spread
from hf_medtl.report.blocks import Axis, Block, Code, Gallery, Line, Picture, Plot, Points, Prose, Section, Table, style
from hf_medtl.report.images import jpeg
from hf_medtl.runs.loaded_run import Run


def name_of(metric: str) -> str:
    """Of a metric, without its direction."""
    return NAMES[metric].split(" (")[0]


def pictures(part: dict[str, Any]) -> str:
    """`51 pictures in 39 groups`."""
    return f"{part['n']:,} pictures in {part['n_groups']:,} groups"


def metrics_table(part: dict[str, Any], title: str) -> Table:
    """Every metric of a results.json, or of its external part, with how the intervals were made."""
    gains, drops = part.get("postprocessing_gain", {}), part.get("drop", {})
    more = {"change by postprocessing": gains, "lower than on the test split by": drops}
    more = {column: its for column, its in more.items() if its}
    rows = [
        (NAMES[name], worded(metric), *(interval(its[name]) for its in more.values()))
        for name, metric in part["metrics"].items()
    ]
    ways: dict[str, list[str]] = {}
    for name, way in part.get("interval_methods", {}).items():
        ways.setdefault(way, []).append(name_of(name))
    said = "; ".join(f"{way} ({', '.join(names)})" for way, names in ways.items())
    note = f"{pictures(part)}. 95 % intervals over groups (patients or copies)"
    note += f": {said}." if said else "; by which method is not in the run's results.json."
    return Table(title, ("metric", "value [95 % interval]", *more), rows, note)


def worded(metric: dict[str, Any]) -> str:
    """`0.953 [0.871, 0.990]`, or why there is no number."""
    return f"undefined: {metric['reason']}" if "reason" in metric and metric["value"] is None else interval(metric)


def folds_blocks(run: Run) -> list[Block]:
    """What the folds say one by one."""
    result, metric = run.result, run.watched
    shown = [name for name in ("roc_auc", "accuracy", "sensitivity", "specificity", "dice", "iou")
             if name in result["metrics"]]  # fmt: skip
    rows = [
        (str(fold["fold"]), str(fold["n"]), str(fold["n_groups"]), *(interval(fold["metrics"][name]) for name in shown))
        for fold in result["folds"]
    ]
    means = [(NAMES[name], spread(its)) for name, its in result["mean_over_folds"].items()]
    parts = [*(fold["metrics"][metric] for fold in result["folds"]), result["metrics"][metric]]
    names = [*(f"fold {fold['fold']}" for fold in result["folds"]), "pooled"]
    value, low, high = (np.array([part[key] for part in parts], np.float64) for key in ("value", "low", "high"))
    last = len(parts) - 1
    return [
        Prose(
            "Every picture was tested once, by the model of a fold that saw neither it nor a copy of it nor, where "
            "patients are known, another picture of its patient. Pooled numbers are those of all predictions together, "
            "each decided with the threshold of its own fold's model. They are about the recipe, not about one model."
        ),
        Table("Each fold", ("fold", "pictures", "groups", *(name_of(name) for name in shown)), rows,
              "Value [95 % interval over groups] of each fold's test pictures."),
        Plot(
            f"{name_of(metric)} by fold",
            [
                Points("folds", range(last), value[:-1], low[:-1], high[:-1], "grey"),
                Points("pooled", [last], value[-1:], low[-1:], high[-1:], "blue"),
            ],
            Axis("", -0.5, last + 0.5, names),
            Axis(name_of(metric)),
            f"{pictures(result)}. Bars: 95 % intervals over groups, from results.json.",
            f"{name_of(metric)}: " + "; ".join(f"{name} {its:.3f}" for name, its in zip(names, value, strict=True)),
        ),
        Table("Mean over folds", ("metric", "mean (lowest to highest)"), means, "Of the folds' own values."),
    ]  # fmt: skip


def training_section(run: Run) -> Section:
    """Loss and the watched metric by epoch, and what was trained."""
    metric = run.watched
    members = run.folds or [run]
    logs = [(member.name if run.folds else "", *member.history()) for member in members]
    losses: list[Line] = []
    values: list[Line | Points] = []
    for index, (name, log, best) in enumerate(logs):
        train = [(row["epoch"], row["loss"]) for row in log if "loss" in row]
        valid = [row for row in log if "eval_loss" in row]
        look = style(index)
        if train and not run.folds:
            losses.append(Line("training", [row[0] for row in train], [row[1] for row in train], "grey", "dash"))
        if valid:
            epochs = [row["epoch"] for row in valid]
            losses.append(Line(name or "validation", epochs, [row["eval_loss"] for row in valid], marks=True, **look))
            its = [row.get(f"eval_{metric}", float("nan")) for row in valid]
            values.append(Line(name or "validation", epochs, its, marks=True, **look))
            kept = [i for i, row in enumerate(valid) if row["step"] == best and not run.folds]
            if kept and run.recipe.get("load_best_model_at_end", True):
                values.append(Points("kept", [epochs[kept[0]]], [its[kept[0]]], colour="orange"))
    blocks: list[Block] = []
    if values:
        n = [int((its.splits["split"] == "validation").sum()) for its in members if its.splits is not None]
        said = f"{', '.join(map(str, dict.fromkeys(n)))} validation pictures, " if n else "Validation pictures, "
        said += (
            f"after each epoch; from trainer_state.json. No band: {name_of(metric)} there chooses the epoch at most, "
        )
        said += "and is no result."
        blocks += [
            Plot("Loss", losses, Axis("epoch"), Axis("loss", 0), said, f"Loss by epoch, last {_last(losses):.3f}."),
            Plot(f"Validation {name_of(metric)}", values, Axis("epoch"), Axis(name_of(metric), None, 1.01), said,
                 f"Validation {name_of(metric)} by epoch, last {_last(values):.3f}."),
        ]  # fmt: skip
    else:
        blocks += drawn_history(run)
    facts = {"started from": run.learns} | {
        name.replace("_", " "): str(run.recipe[name])
        for name in ("strategy", "num_train_epochs", "learning_rate", "head_learning_rate", "augmentation",
                     "preprocessing", "loss", "seed")
        if name in run.recipe
    }  # fmt: skip
    if "train_seconds" in run.result:
        facts["training time"] = f"{run.result['train_seconds']:,.0f} s"
    if "peak_memory_mb" in run.result:
        facts["peak memory"] = f"{run.result['peak_memory_mb']:,.0f} MB"
    where = run.result.get("environment", {})
    if "device" in where:
        facts["hardware"] = f"{where['device']}, {where.get('processes', 1)} process(es)"
    rows = list(facts.items())
    blocks.append(Table("Training", ("what", "value"), rows, "What recipe.yaml changes, and results.json measured."))
    return Section("Training", blocks)


def drawn_history(run: Run) -> list[Block]:
    """The figure that the run drew, where no checkpoint tells its numbers."""
    path = run.folder / "figures" / "history.png"
    if not path.is_file():
        return [Prose("No training history: the run's folder keeps neither a checkpoint nor its figure.", "note")]
    picture = Picture(jpeg(Image.open(path).convert("RGB")), "", "Loss and validation metric by epoch.", "figure")
    n = "" if run.splits is None else f"{(run.splits['split'] == 'validation').sum()} "
    said = f"As the run drew it: no checkpoint is kept, whose trainer_state.json would tell the numbers. {n}validation "
    said += f"pictures, after each epoch; no band: {name_of(run.watched)} there chooses the epoch at most."
    return [Gallery("Training history", [picture], said)]


def _last(marks: list[Any]) -> float:
    lines = [mark for mark in marks if isinstance(mark, Line)]
    return float(lines[-1].y[-1])


def data_section(run: Run) -> Section:
    """What the run has learnt from and was tested on, what was left out, and what an audit found."""
    blocks: list[Block] = []
    if run.splits is not None:
        table = run.splits
        whole = {"all": table} if run.folds else {split: table[table["split"] == split] for split in SPLITS}
        labels = list(dict.fromkeys(label for cell in table["label"] for label in labels_of(cell)))
        cells = {split: [labels_of(cell) for cell in its["label"]] for split, its in whole.items()}
        rows = [
            (label, *(f"{sum(label in cell for cell in cells[split]):,}" for split in whole))
            for label in sorted(labels)
        ]
        rows.append(("pictures", *(f"{len(its):,}" for its in whole.values())))
        rows.append(("groups", *(f"{its['group'].nunique():,}" for its in whole.values())))
        known = [its.loc[its["patient"] != "", "patient"].nunique() for its in whole.values()]
        rows.append(("known patients", *(f"{number:,}" if number else "none" for number in known)))
        note = "From splits.csv. A group is what must stay together: copies, near copies and pictures of one patient."
        blocks.append(Table("Pictures", ("", *whole), rows, note))
    out = run.folder / "excluded.csv"
    if out.is_file():
        kinds = Counter(pd.read_csv(out, dtype=str, keep_default_na=False)["kind"])
        if kinds:
            said = "; ".join(f"{kind}: {number:,}" for kind, number in kinds.items())
            blocks.append(Prose(f"Files in no split: {said}."))
    found = run.audit()
    if found:
        rows = list(verdicts(found))
        blocks.append(Table("Data audit", ("weight", "finding"), rows, f"From audit.json: {found['n']:,} pictures."))
    else:
        blocks.append(
            Prose(f"No audit of the data is in the run's folder. `hf-medtl data audit {run.result['dataset']} --out "
                  "RUN/audit` puts one there, and the next report sums it up.")
        )  # fmt: skip
    problems = run.spec.problems if run.spec else ()
    if problems:
        rows = [(str(number), problem) for number, problem in enumerate(problems, 1)]
        blocks.append(Table("Known problems of the data", ("", "problem"), rows))
    return Section("Data", blocks)


def again_section(run: Run) -> Section:
    """What is needed to repeat the run."""
    result, where = run.result, run.result.get("environment", {})
    rows = [(key.replace("_", " "), str(value)) for key, value in where.items() if not isinstance(value, dict)]
    rows += list(where.get("packages", {}).items())
    if "splits_sha256" in result:
        rows.append(("SHA-256 of splits.csv", result["splits_sha256"]))
    blocks: list[Block] = [Code("recipe.yaml: what differs from the defaults", yaml.safe_dump(run.recipe))]
    if rows:
        blocks.append(Table("Environment", ("what", "value"), rows))
    return Section("Reproduce", blocks)
