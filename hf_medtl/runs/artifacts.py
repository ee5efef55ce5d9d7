"""Artifacts of a finished run: predictions, figures, model card and results."""

import hashlib
from pathlib import Path
from typing import Any

from transformers import TrainerState

from hf_medtl.common.csv_cells import to_csv
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.evaluation import plots
from hf_medtl.evaluation.decisions import DecisionRule
from hf_medtl.evaluation.names import METRIC_NAMES
from hf_medtl.evaluation.subgroups import generalization_gap
from hf_medtl.publish.neutral_files import neutral_table
from hf_medtl.runs.model_card import count_excluded, warn_instead, write_card
from hf_medtl.runs.resuming import read_notes
from hf_medtl.tasks import Task
from hf_medtl.training.arguments import option_name
from hf_medtl.training.linear_probe import LinearProbe
from hf_medtl.training.nearest_neighbours import TEMPERATURE, NearestNeighbours
from hf_medtl.training.recipe import Recipe
from hf_medtl.training.runtime import environment, peak_memory_mb
from hf_medtl.training.trainer import MedicalTrainer

MAX_WORST = 5  # images listed in the card as those that the model handles worst

STRATEGIES = {
    "full": "all weights",
    "feature_extraction": "the head only",
    "last_n": "the last blocks and the head",
    "progressive": "first the head, then one block after another",
    "differential": "all weights, with lower learning rates for earlier blocks",
    "lp_ft": "first the head only, then all weights",
    "lora": "low-rank adapters (merged into the weights) and the head",
    "linear_probe": "the head only, by logistic regression",
    "knn": "nothing",
}


def write_artifacts(
    recipe: Recipe,
    task: Task,
    folder: Path,
    tested: list[tuple[LoadedDataset, Any]],
    trainer: MedicalTrainer,
    ood_rates: dict[str, Any],
    kwh: float | None,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Write predictions, results.json, figures/ and README.md; return the results.

    Args:
        recipe: options of the run.
        task: its task.
        folder: of the run.
        tested: the data set and the predictions on its test split, and those of the external one, if any.
        trainer: after training.
        ood_rates: data set -> proportion of out-of-distribution images; empty if not measured.
        kwh: energy of training, if it was measured.
        facts: those of the card that are known before training.
    """
    (loaded, predictions), *external = tested
    rule = DecisionRule.from_config(trainer.model.config)
    measured = [
        {"dataset": data.spec.name, "task": data.spec.task, "split": "test"} | task.measure(data, values, rule)
        for data, values in tested
    ]
    precision = trainer.accelerator.mixed_precision.replace("no", "float32")  # as accelerate was configured, too
    results = {
        **measured[0],
        **({"outliers": ood_rates} if ood_rates else {}),
        **({"fitted": {"strategy": recipe.strategy, **trainer.fitted.facts}} if trainer.fitted else {}),
        "train_seconds": round(trainer.progress.total_seconds(), 1),
        "peak_memory_mb": round(peak_memory_mb(recipe.device), 1),
        **({} if kwh is None else {"energy_kwh": kwh}),
        "splits_sha256": hashlib.sha256((folder / "splits.csv").read_bytes()).hexdigest(),
        "environment": environment(precision, recipe.world_size, recipe.device),
    }
    table = task.prediction_table(loaded, predictions)
    run = RunFolder(folder)
    run.write("predictions.csv", to_csv(table))
    for data, values in external:
        gap = generalization_gap(measured[0]["metrics"], measured[1]["metrics"])
        results["external"] = measured[1] | {"drop": gap, "excluded": count_excluded(data)}
        run.write("external.csv", to_csv(task.prediction_table(data, values)))

    run.write("results.json", results)  # before anything that only shows them

    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    with warn_instead("Figures", folder, f"hf-medtl card write {folder} --figures {recipe.figures}"):
        if not trainer.fitted:
            log, best = trainer.state.log_history, trainer.state.best_global_step
            plots.training_history(log, best, figures / "history.png", task.main_metric, METRIC_NAMES[task.main_metric])
        task.draw_figures(folder, figures, loaded, predictions, results)
    with warn_instead("The model card", folder, f"hf-medtl card write {folder}"):
        of_training = {
            "procedure": [
                *(
                    _describe_fit(recipe, trainer.fitted)
                    if trainer.fitted
                    else _describe_training(recipe, trainer.state)
                ),
                *(f"{note.removeprefix('# ')}." for note in read_notes(run)),
            ],
            "worst": task.worst_images(neutral_table(run, table), results, MAX_WORST),
            "model_class": type(trainer.model).__name__,
            "parameters": trainer.model.num_parameters(),
            "own_code": sorted(path.name for path in folder.glob("*.py")),
        }
        write_card(folder, facts | of_training)
    return results


def _describe_fit(recipe: Recipe, fitted: LinearProbe | NearestNeighbours) -> list[str]:
    """Sentences about a classifier that was fitted on features, and how its one number was chosen."""
    if isinstance(fitted, NearestNeighbours):
        sentences = [
            "No weights were trained: the votes of the training images with the highest cosine similarity of features "
            f"are counted, each weighted by exp(similarity / {TEMPERATURE:g}), as in the kNN evaluation of DINO.",
            f"{fitted.k} neighbour{'s' * (fitted.k > 1)} had the lowest log loss on the training split, the votes of "
            "each image's own group left out.",
        ]
    else:
        chosen = [part["C"] for part in fitted.facts.get("labels", [fitted.facts]) if part["C"] is not None]
        values = " to ".join(f"{value:g}" for value in sorted({min(chosen), max(chosen)})) if chosen else "none"
        each = " for each label" * ("labels" in fitted.facts)
        sentences = [
            f"Training: {STRATEGIES[recipe.strategy]}{each}, on standardised features of the frozen encoder that were "
            "computed once; the standardisation is part of the head.",
            f"The L2 penalty (C = {values}) had the lowest log loss in cross-validation on the training split, whose "
            "folds share no group.",
        ]
    return [
        *sentences,
        f"Class weights: {recipe.class_weights}. Images were not augmented.",
        f"Seeds: {recipe.seed} for cross-validation, {recipe.split_seed} for the split.",
    ]


def _describe_training(recipe: Recipe, state: TrainerState) -> list[str]:
    """Sentences about training and the selection of the weights."""
    batch, items = recipe.undivided[0] * recipe.undivided[1], "tiles" if recipe.tile else "images"
    optimizer = "adam" if recipe.plain_adam else option_name(recipe.optim)
    head = f" (head: {recipe.head_learning_rate:g})" if recipe.head_learning_rate else ""
    schedule = option_name(recipe.lr_scheduler_type)
    mixing = [f", {name} {a:g}" for name, a in (("mixup", recipe.mixup), ("cutmix", recipe.cutmix)) if a]
    sentences = [
        f"Training: {STRATEGIES[recipe.strategy]}; {state.epoch or 0:g} of {recipe.num_train_epochs:g} epochs, "
        f"{state.global_step} steps of {batch} {items}; {optimizer}, learning rate {recipe.learning_rate:g}{head}, "
        f"schedule {schedule}, weight decay {recipe.weight_decay:g}; loss {recipe.loss.replace('_', ' ')}, class "
        f"weights {recipe.class_weights}.",
        f"Augmentation of training images: {recipe.augmentation}{''.join(mixing)}.",
    ]
    if recipe.oversampling:
        sentences.append(
            f"Oversampling: images with a class in less than {recipe.oversampling:g} of the training images were "
            f"repeated, the square root of ({recipe.oversampling:g} / its fraction) times in an epoch."
        )
    if stages := [f"{number} at {size} × {size} pixels" for size, number in recipe.sizes.stages]:
        sentences.append(f"Epochs on smaller images came first: {', then '.join(stages)}.")
    average = f" They are an exponential moving average (decay {recipe.ema_decay:g})." if recipe.ema_decay else ""
    if recipe.load_best_model_at_end and state.best_global_step:
        sentences.append(
            f"The weights are those of step {state.best_global_step}, which had the best {recipe.metric_for_best_model}"
            f" on the validation split.{average}"
        )
    else:
        sentences.append(f"The weights are those of the last step; validation did not select them.{average}")
    if recipe.early_stopping_patience:
        sentences.append(
            f"Training would stop early after {recipe.early_stopping_patience} evaluations on the validation split "
            "without improvement."
        )
    sentences.append(f"Seeds: {recipe.seed} for training, {recipe.split_seed} for the split.")
    return sentences
