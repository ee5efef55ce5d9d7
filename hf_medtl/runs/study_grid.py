"""Grid of a study: backbones, strategies, fractions of the training groups and seeds, and the runs that they give."""

import argparse
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from hf_medtl.common.run_folder import RunFolder
from hf_medtl.common.text import suggest
from hf_medtl.data.loading import LoadedDataset
from hf_medtl.data.subset import subsample_training
from hf_medtl.errors import MedtlError
from hf_medtl.tasks import check_recipe, get_task
from hf_medtl.training.command_line import read_options
from hf_medtl.training.recipe import PRIVATE_OPTIONS, Recipe, strip_path

BUDGETS = ("steps", "epochs")
# Options that would have cells tested on different images, or that the study itself sets.
COMMON_OPTIONS = (
    *("dataset", "fold", "folds", "mask_values", "official_split", "push_to_hub", "search", "seed", "sources"),
    *("split_seed", "task", "test_fraction", "train_fraction", "validation_fraction"),
)


@dataclass(frozen=True)
class Grid:
    """What the cells of a study differ in; what they have in common is a recipe.

    Attributes:
        models: Names or folders of backbones; of encoders for segmentation.
        strategies: Training strategies of each pretrained backbone, see the recipe's.
        fractions: Fractions of the training groups, in percent.
        seeds: Each draws a split, a subset of its training groups, and weights.
        scratch: Options for training from random weights, which each backbone gets, too; None to leave that out.
        budget: "steps" gives each cell as many optimizer steps and evaluations as all training images would get;
            "epochs" keeps the recipe's epochs, so that fewer images get fewer steps.
        options: Backbone or strategy -> options of those arms alone.
    """

    models: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ("full",)
    fractions: tuple[float, ...] = (1, 5, 10, 25, 50, 100)
    seeds: tuple[int, ...] = (1, 2, 3)
    scratch: dict[str, Any] | None = None
    budget: str = "steps"
    options: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("models", "strategies", "fractions", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise MedtlError(f"--{name} are one or more, each once; found {' '.join(map(str, values)) or 'none'}.")
        if not all(0 < percent <= 100 for percent in self.fractions):
            raise MedtlError(f"--fractions are percent above 0 and up to 100, found {self.fractions}.")
        if self.budget not in BUDGETS:
            raise MedtlError(f"--budget is {' or '.join(BUDGETS)}, found {self.budget!r}.")
        names = [*map(strip_path, self.models), *self.strategies]
        for name in self.options:
            if name not in names:
                raise MedtlError(f"The grid has options for {name!r}, which is not one of {', '.join(names)}.")

    @classmethod
    def from_cli(cls, defaults: dict[str, Any], argv: Sequence[str]) -> tuple["Grid", list[str]]:
        """Return a grid, and the flags that are left for the recipe.

        Args:
            defaults: Values of the recipe file, which a YAML file given with --grid overrides, which flags override.
            argv: Command-line flags.

        Raises:
            MedtlError: An unknown key, or a value of the wrong type.
        """
        options, rest = make_parser().parse_known_args(argv)
        given = vars(options)
        path = given.pop("grid")
        values = defaults | (_read_yaml(Path(path)) if path else {}) | {k: v for k, v in given.items() if v is not None}
        names = [f.name for f in fields(cls)]
        for key in values:
            if key not in names:
                raise MedtlError(f"Unknown key {key!r} in the grid. {suggest(key, names)}")
        try:
            values |= {
                name: tuple(convert(value) for value in values[name])
                for name, convert in (("models", str), ("strategies", str), ("fractions", float), ("seeds", int))
                if name in values
            }
        except (TypeError, ValueError) as error:
            raise MedtlError(f"The grid has a value that can't be read ({error}).") from error
        if isinstance(values.get("scratch"), list):
            values["scratch"] = dict(pair.partition("=")[::2] for pair in values["scratch"])
        if values.get("scratch") is not None:
            values["scratch"] = _convert_options(values["scratch"])
        values["options"] = {str(name): _convert_options(given) for name, given in values.get("options", {}).items()}
        return cls(**values), rest

    def to_yaml(self) -> str:
        """Return the grid as --grid reads it; of folders the names alone."""
        values = vars(self) | {"models": [*map(strip_path, self.models)]}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the flags of a grid; it leaves those of a recipe."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            raise MedtlError(f"{message[0].upper()}{message[1:]}. See --help.")

    parser = Parser(
        add_help=False,
        allow_abbrev=False,
        usage="python recipes/study.py --models A B [--scratch] [options below] [any option of a recipe]",
    )
    parser.add_argument("--grid", help="YAML file with any of models, strategies, fractions, seeds, scratch, budget, "
                        "and options: backbone or strategy -> recipe options for it alone; flags win")  # fmt: skip
    parser.add_argument("--models", nargs="+", help="backbones, by name or folder; encoders for segmentation")
    parser.add_argument("--strategies", nargs="+", help="training strategies of each pretrained backbone: full, ...")
    parser.add_argument("--fractions", nargs="+", help="fractions of the training groups, in percent: 1 5 10 25 50 100")
    parser.add_argument("--seeds", nargs="+", help="each draws split, training subset and weights: 1 2 3")
    parser.add_argument("--scratch", nargs="*", metavar="OPTION=VALUE",
                        help="train from random weights, too, with these options: learning_rate=1e-3")  # fmt: skip
    parser.add_argument("--budget", help="steps (each cell gets as many as all training images would) or epochs")
    return parser


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise MedtlError(f"--grid {path} can't be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise MedtlError(f"--grid {path} must hold `key: value` lines, found {type(content).__name__}.")
    return content


def _convert_options(options: Any) -> dict[str, Any]:
    """Convert recipe options of some arms to their types; refuse those that must be the same in all cells."""
    if not isinstance(options, dict):
        raise MedtlError(f"Options of the grid are pairs such as learning_rate: 1e-3, found {options!r}.")
    for name in options:
        if name in (*COMMON_OPTIONS, *PRIVATE_OPTIONS):
            raise MedtlError(f"{name} must be the same in all cells of a study. Give it as a flag, or leave it out.")
    values, _ = read_options(Recipe, options, [])
    return {name: values[name] for name in options}


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
        return int((self.loaded.table["split"] == split).sum())


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
                options = own | {"strategy": strategy} | grid.options.get(strategy, {})
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
            groups = subset.table.loc[subset.table["split"] == "train", "group"].nunique()
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
                    sizes = [int((data.table["split"] == "train").sum()) for data in (subset, whole)]
                    variant = match_steps(variant, *sizes)
                check_recipe(variant)
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
    if recipe.max_steps > 0:
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
    batch = math.prod(recipe.undivided)
    steps = math.ceil(train / batch) * recipe.num_train_epochs
    evaluations = steps / (recipe.eval_steps or steps) if recipe.eval_strategy == "steps" else recipe.num_train_epochs
    frozen = recipe.plan.name == "feature_extraction" and recipe.cache_features
    learning = train * recipe.feature_views if frozen else 3 * steps * min(batch, train)
    return learning + (1 if frozen else evaluations) * validation + train + 2 * validation + 2 * test
