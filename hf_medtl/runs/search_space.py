"""Search spaces: options that a search may change, default ranges, and sampling for a trial."""

import importlib.util
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from hf_medtl.common.console import make_console
from hf_medtl.common.extras import install_command
from hf_medtl.common.text import suggest
from hf_medtl.errors import MedtlError
from hf_medtl.tasks import get_task
from hf_medtl.training.recipe import Recipe, uses_option

Space = dict[str, list[Any]]  # option -> [low, high], [low, high, "log"], or choices

# Options that a search may change. Not among them: the seed, which would be luck; and data, split, preprocessing and
# backbone, which would have trials scored on different images.
SEARCHABLE: dict[str, type] = {
    "augmentation": str,
    "class_weights": str,
    "cutmix": float,
    "effective_beta": float,
    "ema_decay": float,
    "focal_gamma": float,
    "gradient_accumulation_steps": int,
    "head_dropout": float,
    "head_learning_rate": float,
    "label_smoothing_factor": float,
    "layer_decay": float,
    "learning_rate": float,
    "lora_alpha": int,
    "lora_rank": int,
    "loss": str,
    "lr_scheduler_type": str,
    "lr_step_epochs": float,
    "lr_step_factor": float,
    "max_grad_norm": float,
    "mixup": float,
    "num_train_epochs": int,
    "per_device_train_batch_size": int,
    "probe_epochs": int,
    "strategy": str,
    "unfreeze_blocks": int,
    "unfreeze_schedule": str,
    "warmup_steps": float,
    "weight_decay": float,
}
# Options that change what the validation loss measures.
LOSS_OPTIONS = ("class_weights", "effective_beta", "focal_gamma", "label_smoothing_factor", "loss")
# Options that change how much memory a trial needs.
MEMORY_OPTIONS = ("ema_decay", "lora_rank", "per_device_train_batch_size", "strategy", "unfreeze_blocks")
# What --search tries by default for a strategy.
STRATEGY_SPACES: dict[str, Space] = {
    "last_n": {"unfreeze_blocks": [1, 2, 4]},
    "differential": {"layer_decay": [0.5, 0.95]},
    "lora": {"lora_rank": [4, 8, 16]},
}


def check_search(recipe: Recipe) -> Space:
    """Return what the search of a recipe tries: --search_space, or a small space around the recipe's own values.

    Raises:
        MedtlError: Names or values that can't be searched, options that do not go with a search, or no Optuna.
    """
    if importlib.util.find_spec("optuna") is None:
        raise MedtlError(f"--search needs Optuna. Install it with: {install_command('search')}")
    if recipe.search < 0:
        raise MedtlError(f"--search is a number of trials, found {recipe.search}.")
    if recipe.all_folds:
        raise MedtlError("--search scores trials on one validation split. Give --fold with --folds, or neither.")
    if recipe.world_size > 1:
        raise MedtlError("--search runs in one process: accelerate launch --num_processes 1 ...")
    why = "not with --search, which publishes and tracks nothing. Give it to the run of best.yaml."
    recipe.refuse(("push_to_hub",), why)
    if recipe.report_to not in ("none", ["none"], []):
        raise MedtlError(f"--report_to: {why}")
    if recipe.eval_strategy == "no":
        raise MedtlError("--search compares trials by their evaluations. Give --eval_strategy epoch or steps.")
    if recipe.resume_from_checkpoint and Path(recipe.resume_from_checkpoint).exists():
        raise MedtlError("--search goes on from search.db of --output_dir. Give --resume_from_checkpoint auto or none.")
    space = _default_space(recipe) if recipe.search_space is None else read_space(recipe.search_space)
    changed = [name for name in LOSS_OPTIONS if name in space]
    if changed and str(recipe.metric_for_best_model).endswith("loss"):
        raise MedtlError(
            f"--search_space changes {', '.join(changed)}, so the trials' losses can't be compared. Give another "
            f"--metric_for_best_model, such as {get_task(recipe.task).main_metric}."
        )
    strategies = space.get("strategy", [recipe.strategy])
    for name, values in space.items():
        owner = next(({"strategy": s} for s in strategies if uses_option(s, name)), {})
        for value in values[:2] if is_range(name, values) else values:
            try:
                get_task(recipe.task).check_recipe(trial_recipe(recipe, {**owner, name: value}))
            except (MedtlError, ValueError) as error:
                raise MedtlError(f"--search_space, {name} {value}: {error}") from error
    return space


def read_space(given: dict[str, Any] | str) -> Space:
    """Return a search space with checked names and values of the right types.

    Two numbers are a range, on a logarithmic scale with "log" after them; anything else is a list of choices.

    Args:
        given: The space as a dict, or as text in YAML or JSON.

    Raises:
        MedtlError: It can't be read, names an option that can't be searched, or has a value of the wrong type.
    """
    try:
        space = yaml.safe_load(given) if isinstance(given, str) else given
    except yaml.YAMLError as error:
        raise MedtlError(f"--search_space can't be read as YAML or JSON: {error}") from error
    if not isinstance(space, dict) or not space:
        raise MedtlError(f"--search_space is a dict such as {{learning_rate: [1e-6, 1e-3, log]}}, found {given!r}.")
    for name, values in space.items():
        if name not in SEARCHABLE:
            raise MedtlError(
                f"--search_space can't change {name!r}. {suggest(str(name), list(SEARCHABLE))} It may change "
                f"{', '.join(SEARCHABLE)}."
            )
        if not isinstance(values, list) or not values:
            raise MedtlError(f"--search_space, {name}: expected a list of values, found {values!r}.")
    return {name: _typed(name, values) for name, values in space.items()}


def _typed(name: str, given: list[Any]) -> list[Any]:
    option_type = SEARCHABLE[name]
    numbers = given[:-1] if given[-1] == "log" and option_type is not str else given
    try:
        if any(isinstance(value, bool) or (option_type is str and not isinstance(value, str)) for value in numbers):
            raise ValueError
        values = [value if option_type is str else float(value) for value in numbers]  # YAML reads 1e-6 as text
        if option_type is int and any(value % 1 for value in values):
            raise ValueError
    except (TypeError, ValueError) as error:
        raise MedtlError(
            f"--search_space, {name}: each value is of type {option_type.__name__}, found {given}."
        ) from error
    values = [option_type(value) for value in values]
    logarithmic = len(numbers) < len(given)
    if logarithmic and (len(values) != 2 or min(values) <= 0):
        raise MedtlError(f"--search_space, {name}: log follows two numbers above 0, found {given}.")
    values += ["log"] * logarithmic
    if is_range(name, values) and not values[0] < values[1]:
        raise MedtlError(f"--search_space, {name}: the first number must be below the second, found {given}.")
    return values


def is_range(name: str, values: list[Any]) -> bool:
    """Return True if the values of an option are the ends of a range, not choices."""
    return SEARCHABLE[name] is not str and (len(values) == 2 or values[-1] == "log")


def _default_space(recipe: Recipe) -> Space:
    """Return the default space: learning rates within a factor of ten, weight decay, options of task and strategy."""

    def around(rate: float) -> list[Any]:
        return [rate / 10, rate * 10, "log"]

    space: Space = {"weight_decay": [1e-4, 0.3, "log"], **STRATEGY_SPACES.get(recipe.strategy, {})}
    if recipe.strategy != "feature_extraction":
        space["learning_rate"] = around(recipe.learning_rate)
    if not recipe.from_scratch:
        space["head_learning_rate"] = around(recipe.head_learning_rate or recipe.learning_rate)
    space |= get_task(recipe.task).search_space
    if recipe.plan.head_only(0):
        space.pop("mixup", None)  # features of mixed images can't be computed once
    space = {name: values for name, values in space.items() if uses_option(recipe.strategy, name)}
    if not space:
        raise MedtlError(
            f"--search has nothing to try with --strategy {recipe.strategy}, which chooses its own number by "
            "cross-validation. Give --search_space, such as {class_weights: [none, balanced]}, with "
            f"--metric_for_best_model {get_task(recipe.task).main_metric}."
        )
    return space


def show_space(space: Space) -> None:
    """Print the search space, if there is one."""
    table = Table("searched", "values")
    for name, values in space.items():
        numbers = [value if isinstance(value, str) else f"{value:g}" for value in values]
        scale = ", logarithmic" if values[-1] == "log" else ""
        table.add_row(name, f"{numbers[0]} to {numbers[1]}{scale}" if is_range(name, values) else ", ".join(numbers))
    if space:
        make_console().print(table)


def own_value(recipe: Recipe, name: str, values: list[Any]) -> Any:
    """Return the recipe's value of an option; None if the space does not contain it."""
    value = getattr(recipe, name)
    if name == "head_learning_rate" and value is None:
        value = recipe.learning_rate
    if is_range(name, values):
        return value if values[0] <= value <= values[1] else None
    return values[values.index(value)] if value in values else None


def sample(trial: Any, space: Space, strategy: str) -> dict[str, Any]:
    """Sample values for a trial; options of a strategy only for that strategy."""
    values: dict[str, Any] = {}
    for name in sorted(space, key=lambda name: name != "strategy"):
        if uses_option(values.get("strategy", strategy), name):
            if is_range(name, space[name]):
                low, high, *log = space[name]
                suggest = trial.suggest_int if SEARCHABLE[name] is int else trial.suggest_float
                values[name] = suggest(name, low, high, log=bool(log))
            else:
                values[name] = trial.suggest_categorical(name, space[name])
    return values


def trial_recipe(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """Return the recipe of a run with these values."""
    return recipe.variant(**values, search=0, search_space=None, resume_from_checkpoint=None)
