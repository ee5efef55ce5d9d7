"""Cells of a study: the runs of a grid, each an arm with a fraction of the training groups and a seed."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.subset import subsample_training
from hf_medtl.errors import MedtlError
from hf_medtl.runs.study_grid import Grid
from hf_medtl.tasks import get_task
from hf_medtl.training.options import strip_path
from hf_medtl.training.recipe import Recipe, uses_option


@dataclass(frozen=True, eq=False)
class Arm:
    """A backbone with a way to train it.

    Attributes:
        name: Unique name, for people.
        backbone: Name of the backbone.
        scratch: True for random initial weights.
        options: Recipe options.
    """

    name: str
    backbone: str
    scratch: bool
    options: dict[str, Any]


@dataclass(frozen=True, eq=False)  # a recipe has no hash
class StudyCell:
    """One run of a study.

    Attributes:
        arm: The backbone and the way to train it.
        percent: Fraction of the training groups, in percent.
        seed: Of split, training subset and weights.
        recipe: The recipe of the run.
        loaded: The data set with this subset of the training images.
        groups: Number of training groups.
    """

    arm: Arm
    percent: float
    seed: int
    recipe: Recipe
    loaded: LoadedDataset
    groups: int

    @property
    def name(self) -> str:
        """Human-readable name."""
        return f"{self.arm.name}, {self.percent:g} %, seed {self.seed}"

    @property
    def run(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(str(self.recipe.output_dir))

    @property
    def is_finished(self) -> bool:
        """True if the run is finished."""
        return self.run.is_finished

    def beside(self, suffix: str) -> Path:
        """Return the path of a file beside the run's folder: its name with a suffix."""
        path = self.run.path
        return path.with_name(f"{path.name}{suffix}")

    @property
    def note(self) -> dict[str, Any]:
        """NAME.json of a run that ended: its seconds, or the error; empty if it did not end."""
        path = self.beside(".json")
        return json.loads(path.read_text("utf-8")) if path.exists() else {}

    def count(self, split: str) -> int:
        """Return the number of images of a split."""
        return len(self.loaded.rows(split))


def list_arms(recipe: Recipe, grid: Grid) -> list[Arm]:
    """Return each backbone with each strategy, and from random weights if asked for or if it has no others.

    Args:
        recipe: What all cells have in common.
        grid: What they differ in.

    Raises:
        MedtlError: Options that do not go together, or two backbones with the same name.
    """
    task, arms = get_task(recipe.task), []
    for model in grid.models:
        name = strip_path(model)
        own = task.backbone_options(recipe, model) | grid.options.get(name, {})
        random = task.random_weight_options(recipe.variant(**own))
        if random:
            for strategy in grid.strategies:
                used = {name: value for name, value in own.items() if uses_option(strategy, name)}
                options = used | {"strategy": strategy} | grid.options.get(strategy, {})
                arms.append(Arm(f"{name}, {strategy}", name, False, options))
        if grid.scratch is not None or not random:
            arms.append(Arm(f"{name}, scratch", name, True, own | random | (grid.scratch or {})))
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise MedtlError(f"Two backbones have the same name: {', '.join(sorted(names))}. Rename a folder.")
    return arms


def list_cells(recipe: Recipe, grid: Grid) -> list[StudyCell]:
    """Return the runs of a study, seed by seed, so that a table of fewer seeds is complete as early as possible.

    Args:
        recipe: What all cells have in common.
        grid: What they differ in.

    Raises:
        MedtlError: Options that do not go together, two fractions with the same groups, or as `load`.
    """
    arms, folder = list_arms(recipe, grid), Path(str(recipe.output_dir)) / "cells"
    cells = []
    for seed in grid.seeds:
        whole = recipe.variant(seed=seed).load_data()
        before = 0
        for percent in sorted(grid.fractions):
            single = recipe.variant(seed=seed, train_fraction=percent / 100)
            subset = subsample_training(whole, percent / 100, int(single.split_seed or 0))
            groups = subset.rows("train")["group"].nunique()
            if groups == before:
                raise MedtlError(
                    f"{percent:g} % and a smaller fraction of the training groups are both {groups} groups, since each "
                    f"label needs one. Leave one out of --fractions."
                )
            before = groups
            for arm in arms:
                name = re.sub(r"[^\w.]+", "-", f"{arm.name}-{percent:g}-seed{seed}")
                options = {"output_dir": str(folder / name), "resume_from_checkpoint": "auto", "disable_tqdm": True}
                variant = single.variant(**arm.options, **options, dry_run=False)
                if grid.budget == "steps":
                    variant = match_steps(variant, len(subset.rows("train")), len(whole.rows("train")))
                get_task(variant.task).check_recipe(variant)
                cells.append(StudyCell(arm, percent, seed, variant, subset, groups))
    return cells


def match_steps(recipe: Recipe, images: int, all_images: int) -> Recipe:
    """Return the recipe with as many optimizer steps and evaluations for a subset as for all training images.

    Otherwise fewer images would get fewer steps, and the curve would show training that is too short.

    Args:
        recipe: With the epochs for all training images.
        images: Number of training images of the subset.
        all_images: Number of all training images.

    Raises:
        MedtlError: A schedule by epochs that can't be stretched.
    """
    if recipe.max_steps > 0 or recipe.plan.is_fitted:
        return recipe
    if recipe.unfreeze_schedule:
        raise MedtlError("--unfreeze_schedule counts epochs, which --budget steps stretches. Give --budget epochs.")
    batch = math.prod(recipe.undivided)
    steps, all_steps = math.ceil(images / batch), math.ceil(all_images / batch)
    changes: dict[str, Any] = {"num_train_epochs": math.ceil(recipe.num_train_epochs * all_steps / steps)}
    if recipe.strategy == "lp_ft":
        changes["probe_epochs"] = math.ceil(recipe.probe_epochs * all_steps / steps)
    if recipe.lr_step_epochs:
        changes["lr_step_epochs"] = recipe.lr_step_epochs * all_steps / steps
    if recipe.eval_strategy == "epoch":
        changes |= {"eval_strategy": "steps", "eval_steps": all_steps, "save_strategy": "steps"}
        changes["save_steps"] = all_steps
    return recipe.variant(**changes)


def count_passes(recipe: Recipe, train: int, validation: int, test: int) -> float:
    """Return how many images a run sends through its model at most, one with a backward pass counted as three.

    Args:
        recipe: The recipe of the run.
        train: Number of training images.
        validation: Number of validation images.
        test: Number of test images.
    """
    if recipe.plan.is_fitted:
        return train + 2 * validation + 2 * test
    batch = math.prod(recipe.undivided)
    steps = math.ceil(train / batch) * recipe.num_train_epochs
    evaluations = steps / (recipe.eval_steps or steps) if recipe.eval_strategy == "steps" else recipe.num_train_epochs
    frozen = recipe.plan.name == "feature_extraction" and recipe.cache_features
    learning = train * recipe.feature_views if frozen else 3 * steps * min(batch, train)
    return learning + (1 if frozen else evaluations) * validation + train + 2 * validation + 2 * test
