"""What a person reads on the screen before and after a run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from hf_medtl.data.loading import Loaded
from hf_medtl.evaluation.names import NAMES
from hf_medtl.models.preprocessing import describe_processor
from hf_medtl.publish.templates import interval, spread
from hf_medtl.training.recipe import Recipe


def show_plan(
    recipe: Recipe,
    loaded: Loaded,
    outside: Loaded | None,
    model: PreTrainedModel,
    start: str,
    processor: Any,
    needed: float,
    checkpoint: str | None,
) -> None:
    """Print what will run: data and split, model, preprocessing, training, disk."""
    parts = {
        split: (counts, loaded.table.loc[loaded.table["split"] == split]) for split, counts in loaded.counts().items()
    }
    if outside:
        parts[f"external: {outside.spec.name}"] = outside.counts()["test"], outside.table
    table = Table("label", title=loaded.spec.title, title_justify="left")
    for part in parts:
        table.add_column(part, justify="right")
    for label in loaded.counts()["train"]:  # a line each: there may be more labels than columns on a screen
        table.add_row(label, *(str(counts[label]) for counts, _ in parts.values()))
    table.add_row("groups", *(str(rows["group"].nunique()) for _, rows in parts.values()))
    console = Console()
    console.print(table)
    batch = math.prod(recipe.undivided)
    shared = ""
    if recipe.world_size > 1 or recipe.gradient_accumulation_steps > 1:
        shared = (
            f" ({recipe.world_size} process(es) x {recipe.gradient_accumulation_steps} accumulated batch(es) of up to "
            f"{recipe.per_device_train_batch_size})"
        )
    rates = f"{recipe.learning_rate:g}" + (f", head {recipe.head_learning_rate:g}" if recipe.head_learning_rate else "")
    for name, value in {
        "model": f"{type(model).__name__}, {model.num_parameters() / 1e6:.1f} million parameters, from {start}",
        "preprocessing": describe_processor(processor),
        "training": f"{recipe.num_train_epochs:g} epochs at most, batch {batch}{shared}, learning rate {rates}, "
        f"strategy {recipe.strategy}, loss {recipe.loss}, augmentation {recipe.augmentation}, seed {recipe.seed}",
        "hardware": f"{recipe.device}, {recipe.world_size} process(es)",
        "disk": f"up to {needed / 1e9:.2f} GB in {recipe.output_dir}",
        "resuming": checkpoint,
    }.items():
        if value:
            console.print(f"[bold]{name}[/bold] {value}", highlight=False, soft_wrap=True)


def show_results(folder: Path, result: dict[str, Any]) -> None:
    """Print the metrics with their intervals, the run folder, and what to type next."""
    console = Console()
    for place, part in {f"{result['split']} split": result, "external": result.get("external")}.items():
        if part:
            title = f"{place}, {part['dataset']}: {part['n']} pictures in {part['n_groups']} groups"
            table = Table("metric", title=title, title_justify="left")
            table.add_column("value [95 % interval]", justify="right")
            for name, metric in part["metrics"].items():
                table.add_row(NAMES[name], interval(metric))
            console.print(table)
            if "per_label" in part:
                console.print("These are means over the labels. Each by itself:")
                facts = {"pictures": "n_positive", "threshold": "threshold"}
                show_parts(console, "label", part["per_label"], facts, ("roc_auc", "sensitivity", "specificity"))
            if "conformal" in part:
                show_sets(console, part["conformal"])
            if len(part.get("by_source", {})) > 1:
                facts = {"pictures": "n", "groups": "n_groups"}
                show_parts(console, "source", part["by_source"], facts, ("dice", "iou", "hausdorff95"))
    ours = "import hf_medtl; " if any(folder.glob("*.py")) else ""
    console.print(
        f"\nThe run is in [bold]{folder}[/bold]: weights, README.md (model card), results.json, splits.csv, figures/.\n"
        f'\nUse it:\n  python -c "{ours}from transformers import pipeline; '
        f"print(pipeline('{result['task']}', '{folder}')('PICTURE'))\"\n",
        highlight=False,
        soft_wrap=True,
    )


def show_sets(console: Console, sets: dict[str, Any]) -> None:
    """Print how sets of labels do, from `conformal` of results.json."""
    line = f"Sets of labels held the true one in {interval(sets['coverage'])} of the pictures; "
    line += f"{interval(sets['abstained'])} have none or several"
    if sets["accuracy_of_the_rest"]["value"] is not None:
        line += f", and on the others {interval(sets['accuracy_of_the_rest'])} of the decisions are right"
    console.print(f"{line}.", highlight=False)


def show_evaluation(folder: Path, result: dict[str, Any], shown: Sequence[str]) -> None:
    """Print what `hf-medtl evaluate` found: metrics beside the model's own, slices with `shown` of them, warnings."""
    console = Console()
    title = f"{result['model']} on {result['dataset']}: {result['n']} pictures in {result['n_groups']} groups"
    table = Table("metric", title=title, title_justify="left")
    table.add_column("value [95 % interval]", justify="right")
    own = result["internal"]
    if result["drop"]:
        table.add_column(f"{own['dataset']}, {own['split']} split", justify="right")
        table.add_column("lower by", justify="right")
    for name, metric in result["metrics"].items():
        beside = [own["metrics"][name], result["drop"][name]] if name in result["drop"] else []
        table.add_row(NAMES[name], interval(metric), *map(interval, beside))
    console.print(table)
    lines = [
        f"{NAMES[name]} is undefined: {its['reason']}." for name, its in result["metrics"].items() if "reason" in its
    ]
    if not result["drop"]:
        lines.append(f"How much lower this is than on the model's own test pictures is not said: {result['no_drop']}.")
    elif any(its["value"] is not None and its["low"] is None for its in result["drop"].values()):
        lines.append("A difference has no interval where one of its two values has none.")
    if "conformal" in result:
        show_sets(console, result["conformal"])
    if "outliers" in result:
        lines.append(f"{interval(result['outliers'])} of the pictures are unlike those of training.")
    parts = {"label": result["per_label"]} if "per_label" in result else {}
    for column, its in (parts | result["slices"]).items():
        facts = (
            {"pictures": "n_positive"}
            if "n_positive" in next(iter(its.values()))
            else {"pictures": "n", "groups": "n_groups"}
        )
        show_parts(console, column, its, facts, [name for name in shown if name in result["metrics"]])
        lines += [f"{column} {value}: {part['warning']}." for value, part in its.items() if part.get("warning")]
    if "robustness" in result:
        show_robustness(console, result["robustness"])
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    where = f"\nLook at [bold]{folder}[/bold]: README.md, results.json, predictions.csv, figures/."
    console.print(where, highlight=False, soft_wrap=True)


def show_robustness(console: Console, its: dict[str, Any]) -> None:
    """Print how balanced accuracy falls with each corruption, and what that comes to."""
    table = Table("corruption", title=f"Balanced accuracy, clean {interval(its['clean']['balanced_accuracy'])}")
    for level in range(1, 6):
        table.add_column(f"level {level}", justify="right")
    table.add_column("relative drop [95 % interval]", justify="right")
    for name, part in its["corruptions"].items():
        values = [level["balanced_accuracy"]["value"] for level in part["levels"]]
        table.add_row(name, *(f"{value:.3f}" for value in values), interval(part["relative_drop"]))
    console.print(table)
    for what in ("relative_drop", "corruption_error", "relative_corruption_error"):
        if f"mean_{what}" in its:
            console.print(f"Mean {what.replace('_', ' ')}: {interval(its[f'mean_{what}'])}", highlight=False)


def show_folds_plan(folds: Sequence[dict[str, Any]], folder: Path) -> None:
    """Print what will be done with each fold, from its fold, state and number of pictures by split."""
    table = Table(title=f"{len(folds)} folds in {folder}, each with the disk of one run", title_justify="left")
    for column in folds[0]:
        table.add_column(column, justify="left" if column == "state" else "right")
    for fold in folds:
        table.add_row(*map(str, fold.values()))
    Console().print(table)


def show_folds(folder: Path, result: dict[str, Any]) -> None:
    """Print the metrics of each fold and of all together, and where they are."""
    console = Console()
    usual = ("roc_auc", "accuracy", "dice", "iou")
    rows = {str(fold["fold"]): fold for fold in result["folds"]} | {"pooled": result}
    shown = [name for name in usual if name in result["metrics"]]
    show_parts(console, "fold", rows, {"pictures": "n", "groups": "n_groups", "threshold": "threshold"}, shown)
    table = Table("metric", title=f"All folds, {result['dataset']}", title_justify="left")
    table.add_column("pooled [95 % interval]", justify="right")
    table.add_column("mean over folds (lowest to highest)", justify="right")
    for name, metric in result["metrics"].items():
        table.add_row(NAMES[name], interval(metric), spread(result["mean_over_folds"][name]))
    console.print(table)
    console.print(
        f"\nThe folds are in [bold]{folder}[/bold]: a run each, and README.md, results.json, predictions.csv, figures/ "
        "of all.\n",
        highlight=False,
        soft_wrap=True,
    )


def show_parts(console: Console, kind: str, parts: dict[str, Any], facts: dict[str, str], shown: Sequence[str]) -> None:
    """Print a table with a row for each label or source.

    Args:
        kind: of the parts, the first column's name.
        parts: name -> what results.json says of it.
        facts: column -> key of a number that is no metric.
        shown: metrics.
    """
    table = Table(kind)
    for column in (*facts, *(NAMES[name] for name in shown)):
        table.add_column(column, justify="right")
    for name, its in parts.items():
        numbers = [its[key] for key in facts.values()]
        cells = [
            f"{number:.3f}" if isinstance(number, float) else "" if number is None else str(number)
            for number in numbers
        ]
        table.add_row(name, *cells, *(interval(its["metrics"][metric]) for metric in shown))
    console.print(table)
