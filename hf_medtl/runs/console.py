"""Console output before and after a run, an evaluation or a cross-validation."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hf_medtl.common.console import make_console, with_bold
from hf_medtl.common.progress import in_notebook
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data.positive_label import describe_positive
from hf_medtl.evaluation.names import METRIC_NAMES
from hf_medtl.models.preprocessing import describe_processor
from hf_medtl.publish.templates import format_interval, format_range
from hf_medtl.runs.preflight import Plan
from hf_medtl.tasks import task_for_results
from hf_medtl.training.recipe import Recipe

FOLD_METRICS = ("roc_auc", "accuracy", "dice", "iou")
LABEL_METRICS = ("roc_auc", "sensitivity", "specificity")
SOURCE_METRICS = ("dice", "iou", "hausdorff95")

FITTED = {
    "linear_probe": "logistic regression on features that are computed once becomes the head",
    "knn": "the nearest neighbours among features that are computed once measure the encoder, without a model to save",
}


def show_plan(recipe: Recipe, plan: Plan) -> None:
    """Print what will run: data and split, model, preprocessing, training, disk space."""
    loaded, model = plan.loaded, plan.model
    parts = {split: (counts, loaded.rows(split)) for split, counts in loaded.counts().items()}
    if plan.external:
        parts[f"external: {plan.external.spec.name}"] = plan.external.counts()["test"], plan.external.table
    table = _table(loaded.spec.title, "label", *parts)
    for label in loaded.counts()["train"]:  # one row each: there may be more labels than columns on a screen
        table.add_row(label, *(str(counts[label]) for counts, _ in parts.values()))
    table.add_row("groups", *(str(rows["group"].nunique()) for _, rows in parts.values()))
    console = make_console()
    console.print(table)
    for note in (*loaded.spec.notes, *(plan.external.spec.notes if plan.external else ())):
        console.print(f"- {note}", soft_wrap=True)
    division = ""
    if recipe.world_size > 1 or recipe.gradient_accumulation_steps > 1:
        division = (
            f" ({recipe.world_size} process(es) x {recipe.gradient_accumulation_steps} accumulated batch(es) of up to "
            f"{recipe.per_device_train_batch_size})"
        )
    rates = f"{recipe.learning_rate:g}" + (f", head {recipe.head_learning_rate:g}" if recipe.head_learning_rate else "")
    start = plan.task.describe_initial_weights(recipe, model)
    for name, value in {
        "positive label": loaded.positive and describe_positive(loaded.positive, loaded.spec.positive_source),
        "model": f"{type(model).__name__}, {_parameters(model.num_parameters())}, from {start}",
        "preprocessing": describe_processor(plan.processor),
        "training": f"none: {FITTED[recipe.strategy]}, class weights {recipe.class_weights}, seed {recipe.seed}"
        if recipe.plan.is_fitted
        else f"at most {_training_length(recipe)}, batch size {math.prod(recipe.undivided)}{division}, "
        f"learning rate {rates}, strategy {recipe.strategy}, loss {recipe.loss}, augmentation {recipe.augmentation}, "
        f"seed {recipe.seed}",
        "model card": recipe.model_card
        or "none: the card will list what its author has to state. hf-medtl card new FILE writes the headings, "
        "--model_card FILE takes them",
        "licence": plan.card["license"],
        "left out": recipe.left_out
        and "of the recipe, which is for another data set: "
        + ", ".join(f"{name} {Path(str(value)).name}" for name, value in recipe.left_out.items()),
        "hardware": f"{recipe.device}, {recipe.world_size} process(es)",
        "disk": f"up to {plan.disk_bytes / 1e9:.2f} GB in {recipe.output_dir}",
        "resuming": plan.checkpoint and ". ".join((plan.checkpoint, *(note.removeprefix("# ") for note in plan.notes))),
    }.items():
        if value:
            console.print(with_bold("", name, f" {value}"), soft_wrap=True)


def _parameters(number: int) -> str:
    return f"{number / 1e6:.1f} million parameters" if number >= 1e6 else f"{number:,} parameters"


def _training_length(recipe: Recipe) -> str:
    number, unit = (recipe.max_steps, "step") if recipe.max_steps > 0 else (recipe.num_train_epochs, "epoch")
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def show_results(folder: Path, results: dict[str, Any]) -> None:
    """Print the metrics with their intervals, the run folder, and a command to try next.

    Args:
        folder: of the run.
        results: results.json.
    """
    console = make_console()
    for name, part in {f"{results['split']} split": results, "external": results.get("external")}.items():
        if not part:
            continue
        table = _table(f"{name}, {part['dataset']}: {_image_count(part)}", "metric", "value [95 % interval]")
        for metric, value in part["metrics"].items():
            table.add_row(METRIC_NAMES[metric], format_interval(value))
        console.print(table)
        if per_label := task_for_results(results).label_results(part):
            console.print("These are means over the labels. Each label by itself:")
            facts = {"images": "n_positive", "threshold": "threshold"}
            _show_parts(console, "label", per_label, facts, LABEL_METRICS)
        if "conformal" in part:
            _show_conformal_sets(console, part["conformal"])
        if len(part.get("by_source", {})) > 1:
            _show_parts(console, "source", part["by_source"], {"images": "n", "groups": "n_groups"}, SOURCE_METRICS)
    if RunFolder(folder).only_measures:
        files = ": README.md, results.json, predictions.csv, splits.csv, figures/. There is no model.\n"
        console.print(with_bold("\nThe run is in ", str(folder), files), soft_wrap=True)
        return
    own_classes = "import hf_medtl; " if any(folder.glob("*.py")) else ""
    code = f"{own_classes}from transformers import pipeline; "
    code += f"print(pipeline('{results['task']}', {str(folder)!r})('IMAGE'))"
    quoted = shlex.quote(code) if '"' in code or "$" in code else f'"{code}"'  # cmd.exe knows double quotes alone
    files = ": weights, README.md (model card), results.json, splits.csv, figures/.\n"
    console.print(with_bold("\nThe run is in ", str(folder), files), soft_wrap=True)
    uses = f"hf-medtl predict {shlex.quote(str(folder))} IMAGE", f"python -c {quoted}"
    if in_notebook():
        uses = "from hf_medtl import Predictor", f"Predictor.from_pretrained({str(folder)!r}).predict(['IMAGE'])"
    console.print("\n  ".join(("To use it:", *uses)) + "\n", soft_wrap=True)


def _show_conformal_sets(console: Console, sets: dict[str, Any]) -> None:
    """Print the coverage of conformal sets, from `conformal` of results.json."""
    line = f"Conformal sets contain the true label of {format_interval(sets['coverage'])} of the images; "
    line += f"{format_interval(sets['abstained'])} have no label or more than one"
    if sets["accuracy_of_the_rest"]["value"] is not None:
        line += f", and on the others {format_interval(sets['accuracy_of_the_rest'])} of the decisions are correct"
    console.print(f"{line}.")


def show_evaluation(folder: Path, results: dict[str, Any], shown: Sequence[str]) -> None:
    """Print the results of `hf-medtl evaluate`: metrics beside the model's own, subgroups, warnings.

    Args:
        folder: of the evaluation.
        results: results.json.
        shown: metrics of subgroups, those that the task has.
    """
    console = make_console()
    internal, gaps = results["internal"], results["drop"]
    columns = [f"{internal['dataset']}, {internal['split']} split", "lower by"] if gaps else []
    table = _table(
        f"{results['model']} on {results['dataset']}: {_image_count(results)}",
        "metric",
        "value [95 % interval]",
        *columns,
    )
    for name, metric in results["metrics"].items():
        beside = [internal["metrics"][name], gaps[name]] if name in gaps else []
        table.add_row(METRIC_NAMES[name], *map(format_interval, [metric, *beside]))
    console.print(table)
    lines = [
        f"{METRIC_NAMES[name]} is undefined: {metric['reason']}."
        for name, metric in results["metrics"].items()
        if "reason" in metric
    ]
    if not gaps:
        lines.append(f"No difference from the model's own test split is given: {results['no_drop']}.")
    elif any(gap["value"] is not None and gap["low"] is None for gap in gaps.values()):
        lines.append("A difference has no interval where one of its two values has none.")
    if "conformal" in results:
        _show_conformal_sets(console, results["conformal"])
    if "outliers" in results:
        lines.append(f"{format_interval(results['outliers'])} of the images are out-of-distribution.")
    metrics = [name for name in shown if name in results["metrics"]]
    if per_label := task_for_results(results).label_results(results):
        _show_parts(console, "label", per_label, {"images": "n_positive"}, metrics)
    for column, parts in results["slices"].items():
        _show_parts(console, column, parts, {"images": "n", "groups": "n_groups"}, metrics)
        lines += [f"{column} {value}: {part['warning']}." for value, part in parts.items() if part.get("warning")]
    if "robustness" in results:
        _show_robustness(console, results["robustness"])
    lines.append(f"\nSee {folder}: README.md, results.json, predictions.csv, figures/.")
    for line in lines:
        console.print(line, soft_wrap=True)


def _show_robustness(console: Console, robustness: dict[str, Any]) -> None:
    """Print the loss of balanced accuracy under each corruption, and its means."""
    table = _table(
        f"Balanced accuracy, clean {format_interval(robustness['clean']['balanced_accuracy'])}",
        "corruption",
        *(f"level {level}" for level in range(1, 6)),
        "relative drop [95 % interval]",
    )
    for name, part in robustness["corruptions"].items():
        values = [level["balanced_accuracy"]["value"] for level in part["levels"]]
        table.add_row(name, *(f"{value:.3f}" for value in values), format_interval(part["relative_drop"]))
    console.print(table)
    for name in ("relative_drop", "corruption_error", "relative_corruption_error"):
        if f"mean_{name}" in robustness:
            mean = format_interval(robustness[f"mean_{name}"])
            console.print(f"Mean {name.replace('_', ' ')}: {mean}")


def show_folds_plan(folds: Sequence[dict[str, Any]], folder: Path) -> None:
    """Print the status of each fold and its number of images by split.

    Args:
        folds: column -> cell of each fold.
        folder: of the cross-validation.
    """
    table = Table(title=f"{len(folds)} folds in {folder}, each needs the disk space of a run", title_justify="left")
    for column in folds[0]:
        table.add_column(column, justify="left" if column == "state" else "right")
    for fold in folds:
        table.add_row(*map(str, fold.values()))
    make_console().print(table)


def show_folds(folder: Path, results: dict[str, Any]) -> None:
    """Print the metrics of each fold and of all folds together.

    Args:
        folder: of the cross-validation.
        results: its results.json.
    """
    console = make_console()
    rows = {str(fold["fold"]): fold for fold in results["folds"]} | {"pooled": results}
    shown = [name for name in FOLD_METRICS if name in results["metrics"]]
    _show_parts(console, "fold", rows, {"images": "n", "groups": "n_groups", "threshold": "threshold"}, shown)
    title = f"All folds, {results['dataset']}"
    table = _table(title, "metric", "pooled [95 % interval]", "mean over folds (lowest to highest)")
    for name, metric in results["metrics"].items():
        table.add_row(METRIC_NAMES[name], format_interval(metric), format_range(results["mean_over_folds"][name]))
    console.print(table)
    files = ": a run for each fold, and README.md, results.json, predictions.csv and figures/ of all folds.\n"
    console.print(with_bold("\nThe folds are in ", str(folder), files), soft_wrap=True)


def _show_parts(
    console: Console, kind: str, parts: Mapping[str, Any], facts: dict[str, str], metrics: Sequence[str]
) -> None:
    """Print a table with a row for each label, source or fold.

    Args:
        console: to print to.
        kind: of the parts, the title of the first column.
        parts: name -> its part of results.json.
        facts: column -> key of a number that is not a metric.
        metrics: further columns.
    """
    table = _table(None, kind, *facts, *(METRIC_NAMES[name] for name in metrics))
    for name, part in parts.items():
        numbers = [part[key] for key in facts.values()]
        cells = [f"{n:.3f}" if isinstance(n, float) else "" if n is None else str(n) for n in numbers]
        table.add_row(name, *cells, *(format_interval(part["metrics"][metric]) for metric in metrics))
    console.print(table)


def _table(title: str | None, first: str, *columns: str) -> Table:
    """A table whose first column is aligned left and the others right."""
    table = Table(first, title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _image_count(results: dict[str, Any]) -> str:
    return f"{results['n']} images in {results['n_groups']} groups"
