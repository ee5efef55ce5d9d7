"""What a finished run leaves to read: predictions, figures, model card and results."""

import hashlib
from pathlib import Path
from typing import Any

from transformers import TrainerState

from hf_medtl.common.files import write
from hf_medtl.data.loading import Loaded
from hf_medtl.data.splits import SPLITS
from hf_medtl.evaluation import plots
from hf_medtl.evaluation.names import NAMES
from hf_medtl.evaluation.subgroups import drops
from hf_medtl.models.preprocessing import describe_processor
from hf_medtl.publish.base_model import origin
from hf_medtl.publish.card import card
from hf_medtl.publish.sentences import split_prose, wording
from hf_medtl.tasks import Task
from hf_medtl.training.recipe import Recipe
from hf_medtl.training.runtime import environment, peak_memory_mb
from hf_medtl.training.trainer import MedicalTrainer

WORST = 5  # pictures that the card says the model does worst on


def report(
    recipe: Recipe,
    task: Task,
    folder: Path,
    tested: list[tuple[Loaded, Any]],
    processor: Any,
    trainer: MedicalTrainer,
    unlike: dict[str, Any],
    kwh: float | None,
) -> dict[str, Any]:
    """Write predictions, figures/, README.md and results.json; return the results.

    Args:
        tested: the data set and the answers on its test split, and those of an external one, if any.
        unlike: of `find_outliers`.
        kwh: energy of training, if it was measured.
    """
    loaded, answers = tested[0]
    precision = trainer.accelerator.mixed_precision.replace("no", "float32")  # accelerate's own flags included
    measured = [
        {"dataset": data.spec.name, "task": data.spec.task, "split": "test"}
        | task.measure(data, values, trainer.model.config)
        for data, values in tested
    ]
    result = {
        **measured[0],
        **({"outliers": unlike} if unlike else {}),
        "train_seconds": round(trainer.progress.total_seconds(), 1),
        "peak_memory_mb": round(peak_memory_mb(), 1),
        **({} if kwh is None else {"energy_kwh": kwh}),
        "splits_sha256": hashlib.sha256((folder / "splits.csv").read_bytes()).hexdigest(),
        "environment": environment(precision, recipe.world_size),
    }
    table = task.predictions(loaded, answers)
    write(folder / "predictions.csv", table.to_csv(index=False))
    if len(tested) > 1:
        outside, values = tested[1]
        fall = drops(measured[0]["metrics"], measured[1]["metrics"])
        result["external"] = measured[1] | {"drop": fall, "excluded": left_out(outside)}
        write(folder / "external.csv", task.predictions(outside, values).to_csv(index=False))

    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    log, best = trainer.state.log_history, trainer.state.best_global_step
    plots.history(log, best, figures / "history.png", task.watched, NAMES[task.watched])
    task.draw(folder, figures, loaded, answers, result)

    base = task.base_model(recipe)
    facts = {
        **story(recipe, loaded, trainer.state),
        "results": result,
        "spec": loaded.spec,
        "external_spec": tested[-1][0].spec,
        "counts": loaded.counts(),
        "excluded": left_out(loaded),
        "name": str(recipe.hub_model_id) if recipe.push_to_hub else folder.name,
        "worst": task.worst(table, result, WORST),
        "origin": origin(*base) if base else None,
        "start": task.start(recipe, trainer.model),
        "license": recipe.model_license,
        "model_class": type(trainer.model).__name__,
        "parameters": trainer.model.num_parameters(),
        "processor": describe_processor(processor),
        "own_code": sorted(path.name for path in folder.glob("*.py")),
        "recipe_yaml": recipe.to_yaml(),
    }
    findings, prose = written(recipe)
    facts["wording"] = wording(findings, result, loaded.spec.title)
    if facts["wording"]:  # Predictor and the Space say it
        trainer.model.config.update({"wording": facts["wording"]})
        trainer.model.config.save_pretrained(folder)
    write(folder / "README.md", card(facts, prose))
    write(folder / "results.json", result)
    return result


def written(recipe: Recipe) -> tuple[dict[str, str], str]:
    """Words for the labels, and prose, of the recipe's model card."""
    return split_prose(Path(recipe.model_card).read_text(encoding="utf-8") if recipe.model_card else "")


def left_out(loaded: Loaded) -> dict[str, int]:
    """Kind -> number of the files that are in no split."""
    return {str(kind): int(number) for kind, number in loaded.excluded["kind"].value_counts().items()}


WHAT_TRAINS = {
    "full": "all weights",
    "feature_extraction": "the head alone",
    "last_n": "the last blocks and the head",
    "progressive": "the head first, then block after block",
    "differential": "all weights, earlier blocks more slowly",
    "lp_ft": "the head alone first, then all weights",
    "lora": "low-rank adapters, which are part of the weights now, and the head",
}


def story(recipe: Recipe, loaded: Loaded, state: TrainerState) -> dict[str, Any]:
    """Of the facts of `publish.card.card`: sizes, found, split_rule, procedure."""
    return {
        "sizes": sizes(loaded),
        "found": found(loaded),
        "split_rule": loaded.rule,
        "procedure": procedure(recipe, state),
    }


def sizes(loaded: Loaded) -> dict[str, dict[str, int]]:
    """Split -> pictures, groups and, as far as known, patients."""
    parts = {split: loaded.table[loaded.table["split"] == split] for split in SPLITS}
    return {
        split: {
            "pictures": len(its),
            "groups": its["group"].nunique(),
            "patients": its.loc[its["patient"] != "", "patient"].nunique(),
        }
        for split, its in parts.items()
    }


def found(loaded: Loaded) -> list[str]:
    """Sentences on what loading the data found: copies, patients, sources."""
    table = loaded.table
    total, equal = len(table), int(table["sha256"].duplicated(keep=False).sum())
    alone = int((table["group"].value_counts() == 1).sum())
    unknown = int((table["patient"] == "").sum())
    said = [
        f"{total - alone} of {total} pictures are in a group with another one; {equal} are the same file as another."
    ]
    if unknown:
        said.append(f"{unknown} of {total} pictures do not tell their patient.")
    sources = table["source"].value_counts()
    if len(sources) > 1:
        said.append(f"Sources: {', '.join(f'{name} ({number} pictures)' for name, number in sources.items())}.")
    return said


def procedure(recipe: Recipe, state: TrainerState) -> list[str]:
    """Sentences on training and on how the weights were chosen.

    Args:
        recipe: of the run.
        state: of its trainer, after training.
    """
    batch = recipe.undivided[0] * recipe.undivided[1]
    optimizer = "adam" if recipe.plain_adam else str(getattr(recipe.optim, "value", recipe.optim))
    head = f" ({recipe.head_learning_rate:g} of the head)" if recipe.head_learning_rate else ""
    schedule = str(getattr(recipe.lr_scheduler_type, "value", recipe.lr_scheduler_type))
    said = [
        f"Training: {WHAT_TRAINS[recipe.strategy]}; {state.epoch or 0:g} of {recipe.num_train_epochs:g} epochs, "
        f"{state.global_step} steps of {batch} pictures; {optimizer}, learning rate {recipe.learning_rate:g}{head}, "
        f"schedule {schedule}, weight decay {recipe.weight_decay:g}; loss {recipe.loss.replace('_', ' ')}, class "
        f"weights {recipe.class_weights}.",
        f"Augmentation of training pictures: {recipe.augmentation}"
        + "".join(
            f", {name} {value:g}" for name, value in (("mixup", recipe.mixup), ("cutmix", recipe.cutmix)) if value
        )
        + ".",
    ]
    average = f" They are an average over steps (decay {recipe.ema_decay:g})." if recipe.ema_decay else ""
    if recipe.load_best_model_at_end and state.best_global_step:
        said.append(
            f"The weights are those of step {state.best_global_step}, where the {recipe.metric_for_best_model} of the "
            f"validation split was best.{average}"
        )
    else:
        said.append(f"The weights are those of the last step; validation did not choose them.{average}")
    if recipe.early_stopping_patience:
        said.append(
            f"Training would stop early after {recipe.early_stopping_patience} evaluations on the validation split "
            "without improvement."
        )
    said.append(f"Seeds: {recipe.seed} of training, {recipe.split_seed} of the split.")
    return said
