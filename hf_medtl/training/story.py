"""What a card says of how a run was made, beyond its results."""

from typing import Any

from transformers import TrainerState

from hf_medtl.data.load import Loaded
from hf_medtl.data.splits import SPLITS
from hf_medtl.training.recipe import Recipe

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
