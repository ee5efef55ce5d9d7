"""What a person reads on the screen before and after a run."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from hf_medtl.data.load import Loaded
from hf_medtl.models.preprocessing import describe_processor
from hf_medtl.publish.card import NAMES, interval
from hf_medtl.training.recipe import Recipe


def show_plan(
    recipe: Recipe,
    loaded: Loaded,
    outside: Loaded | None,
    model: PreTrainedModel,
    processor: Any,
    needed: float,
    checkpoint: str | None,
) -> None:
    """Print what will run: data and split, model, preprocessing, training, disk."""
    table = Table(title=loaded.spec.title, title_justify="left")
    for column in ("split", *loaded.labels, "groups"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, counts in loaded.counts().items():
        groups = loaded.table.loc[loaded.table["split"] == split, "group"].nunique()
        table.add_row(split, *map(str, counts.values()), str(groups))
    if outside:
        groups = outside.table["group"].nunique()
        table.add_row(f"external: {outside.spec.name}", *map(str, outside.counts()["test"].values()), str(groups))
    console = Console()
    console.print(table)
    start = "random weights" if recipe.from_scratch else recipe.model_name_or_path
    batch = recipe.train_batch_size * recipe.gradient_accumulation_steps * recipe.world_size
    rates = f"{recipe.learning_rate:g}" + (f", head {recipe.head_learning_rate:g}" if recipe.head_learning_rate else "")
    for name, value in {
        "model": f"{type(model).__name__}, {model.num_parameters() / 1e6:.1f} million parameters, from {start}",
        "preprocessing": describe_processor(processor),
        "training": f"{recipe.num_train_epochs:g} epochs at most, batch {batch}, learning rate {rates}, "
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
    ours = "import hf_medtl; " if any(folder.glob("*.py")) else ""
    console.print(
        f"\nThe run is in [bold]{folder}[/bold]: weights, README.md (model card), results.json, splits.csv, figures/.\n"
        f'\nUse it:\n  python -c "{ours}from transformers import pipeline; '
        f"print(pipeline('{result['task']}', '{folder}')('PICTURE'))\"\n",
        highlight=False,
        soft_wrap=True,
    )
