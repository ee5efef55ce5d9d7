"""The grid of a study: backbones and ways to train them, shares of the training groups, seeds; and the cells of it."""

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from hf_medtl.common.text import nearest
from hf_medtl.data.loading import Loaded
from hf_medtl.data.subset import subsample_training
from hf_medtl.errors import MedtlError
from hf_medtl.tasks import TASKS, check
from hf_medtl.training.command_line import read_options
from hf_medtl.training.data import read
from hf_medtl.training.recipe import PLACES, Recipe, without_place

BUDGETS = ("steps", "epochs")
# What would have cells tested on other pictures than each other, or is the study's to say.
OF_ALL = (
    *("dataset", "fold", "folds", "mask_values", "official_split", "push_to_hub", "search", "seed", "sources"),
    *("split_seed", "task", "test_fraction", "train_fraction", "validation_fraction"),
)


@dataclass(frozen=True)
class Grid:
    """What a study varies; what it keeps is a recipe.

    Attributes:
        models: names or folders of backbones; of encoders for segmentation.
        strategies: of each pretrained backbone, see the recipe's.
        fractions: shares of the training groups, in percent.
        seeds: each draws a split, a part of its training groups, and weights.
        scratch: options of training from random weights, which each backbone gets, too; None for not.
        budget: "steps" gives each cell as many optimizer steps, and evaluations, as all training pictures would get;
            "epochs" leaves the recipe's epochs, so that fewer pictures get fewer steps.
        options: backbone or strategy -> options of those arms alone.
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
        names = [*map(without_place, self.models), *self.strategies]
        for name in self.options:
            if name not in names:
                raise MedtlError(f"The grid has options for {name!r}, which is none of {', '.join(names)}.")

    @classmethod
    def from_cli(cls, defaults: dict[str, Any], argv: Sequence[str]) -> tuple["Grid", list[str]]:
        """A grid from a recipe file's dict < a YAML file given with --grid < flags; and the flags that are left.

        Raises:
            MedtlError: an unknown key, or a value that can't be.
        """
        options, rest = parser().parse_known_args(argv)
        given = vars(options)
        path = given.pop("grid")
        values = defaults | (_read(Path(path)) if path else {}) | {k: v for k, v in given.items() if v is not None}
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise MedtlError(f"Unknown key {key!r} in the grid. {nearest(key, known)}")
        try:
            values |= {
                name: tuple(kind(value) for value in values[name])
                for name, kind in (("models", str), ("strategies", str), ("fractions", float), ("seeds", int))
                if name in values
            }
        except (TypeError, ValueError) as error:
            raise MedtlError(f"The grid has a value that can't be read ({error}).") from error
        if isinstance(values.get("scratch"), list):
            values["scratch"] = dict(pair.partition("=")[::2] for pair in values["scratch"])
        if values.get("scratch") is not None:
            values["scratch"] = typed(values["scratch"])
        values["options"] = {str(name): typed(its) for name, its in values.get("options", {}).items()}
        return cls(**values), rest

    def to_yaml(self) -> str:
        """As --grid reads it; of folders the names alone."""
        values = vars(self) | {"models": [*map(without_place, self.models)]}
        plain = {name: list(its) if isinstance(its, tuple) else its for name, its in values.items()}
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def parser() -> argparse.ArgumentParser:
    """Of the flags of a grid; those of a recipe are left over."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            raise MedtlError(f"{message[0].upper()}{message[1:]}. See --help.")

    found = Parser(
        add_help=False,
        allow_abbrev=False,
        usage="python recipes/study.py --models A B [--scratch] [options below] [any option of a recipe]",
    )
    found.add_argument("--grid", help="YAML file with any of models, strategies, fractions, seeds, scratch, budget, "
                       "and options: backbone or strategy -> options of a recipe for it alone; flags win")  # fmt: skip
    found.add_argument("--models", nargs="+", help="backbones, by name or folder; encoders for segmentation")
    found.add_argument("--strategies", nargs="+", help="ways to train each pretrained backbone: full, ...")
    found.add_argument("--fractions", nargs="+", help="shares of the training groups, in percent: 1 5 10 25 50 100")
    found.add_argument("--seeds", nargs="+", help="each draws split, part and weights: 1 2 3")
    found.add_argument("--scratch", nargs="*", metavar="OPTION=VALUE",
                       help="train from random weights, too, with these options: learning_rate=1e-3")  # fmt: skip
    found.add_argument("--budget", help="steps (each cell gets as many as all training pictures would) or epochs")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise MedtlError(f"--grid {path} can't be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise MedtlError(f"--grid {path} must hold `key: value` lines, found {type(content).__name__}.")
    return content


def typed(options: Any) -> dict[str, Any]:
    """Options of a recipe for some arms, with values of the right type.

    Raises:
        MedtlError: unknown ones, values of a wrong type, or those that must be the same in all cells.
    """
    if not isinstance(options, dict):
        raise MedtlError(f"Options of the grid are pairs such as learning_rate: 1e-3, found {options!r}.")
    for name in options:
        if name in (*OF_ALL, *PLACES):
            raise MedtlError(f"{name} must be the same in all cells of a study. Give it as a flag, or leave it out.")
    values, _ = read_options(Recipe, options, [])
    return {name: values[name] for name in options}


@dataclass(frozen=True, eq=False)
class Arm:
    """A backbone with its way of training: name, the backbone's name, whether from random weights, recipe options."""

    name: str
    backbone: str
    scratch: bool
    options: dict[str, Any]


@dataclass(frozen=True, eq=False)  # a recipe has no hash
class Cell:
    """One run of a study.

    Attributes:
        arm, percent, seed: where it stands in the grid.
        recipe: of the run.
        part: the data set with the training pictures that it has.
        groups: their number of groups.
    """

    arm: Arm
    percent: float
    seed: int
    recipe: Recipe
    part: Loaded
    groups: int

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(str(self.recipe.output_dir))

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.arm.name}, {self.percent:g} %, seed {self.seed}"

    def pictures(self, split: str) -> int:
        """Number in a split."""
        return int((self.part.table["split"] == split).sum())


def arms_of(recipe: Recipe, grid: Grid) -> list[Arm]:
    """Each backbone with each strategy, and from random weights if asked for or if it has no others.

    Raises:
        MedtlError: options that can't work, or two backbones of one name.
    """
    task, found = TASKS[str(recipe.task)], []
    for model in grid.models:
        name = without_place(model)
        own = task.backbone(recipe, model) | grid.options.get(name, {})
        random = task.scratch(recipe.variant(**own))
        if random:
            for strategy in grid.strategies:
                options = own | {"strategy": strategy} | grid.options.get(strategy, {})
                found.append(Arm(f"{name}, {strategy}", name, False, options))
        if grid.scratch is not None or not random:
            found.append(Arm(f"{name}, scratch", name, True, own | random | (grid.scratch or {})))
    names = [arm.name for arm in found]
    if len(set(names)) < len(names):
        raise MedtlError(f"Two backbones have one name: {', '.join(sorted(names))}. Rename a folder.")
    return found


def cells_of(recipe: Recipe, grid: Grid) -> list[Cell]:
    """The runs of a study, seed by seed, so that a table of fewer seeds is whole as early as possible.

    Raises:
        MedtlError: options that can't work, or as `load`.
    """
    arms, place = arms_of(recipe, grid), Path(str(recipe.output_dir)) / "cells"
    found = []
    for seed in grid.seeds:
        whole = read(recipe.variant(seed=seed))
        before = 0
        for percent in sorted(grid.fractions):
            single = recipe.variant(seed=seed, train_fraction=percent / 100)
            part = subsample_training(whole, percent / 100, int(single.split_seed or 0))
            groups = part.table.loc[part.table["split"] == "train", "group"].nunique()
            if groups == before:
                raise MedtlError(
                    f"{percent:g} % and a smaller share of the training groups are both {groups} groups, since each "
                    f"label needs one. Leave one out of --fractions."
                )
            before = groups
            for arm in arms:
                name = re.sub(r"[^\w.]+", "-", f"{arm.name}-{percent:g}-seed{seed}")
                options = {"output_dir": str(place / name), "resume_from_checkpoint": "auto", "disable_tqdm": True}
                wish = single.variant(**arm.options, **options, dry_run=False)
                if grid.budget == "steps":
                    wish = same_steps(wish, *(int((x.table["split"] == "train").sum()) for x in (part, whole)))
                check(wish)
                found.append(Cell(arm, percent, seed, wish, part, groups))
    return found


def same_steps(recipe: Recipe, pictures: int, every: int) -> Recipe:
    """The recipe for `pictures` with as many optimizer steps and evaluations as `every` training picture would give.

    Else fewer pictures would get fewer steps, and the curve would show training that is too short.

    Raises:
        MedtlError: a schedule by epochs that can't be stretched.
    """
    if recipe.max_steps > 0:
        return recipe
    if recipe.unfreeze_schedule:
        raise MedtlError("--unfreeze_schedule counts epochs, which --budget steps stretches. Give --budget epochs.")
    batch = math.prod(recipe.undivided)
    steps, whole = math.ceil(pictures / batch), math.ceil(every / batch)
    changes: dict[str, Any] = {"num_train_epochs": math.ceil(recipe.num_train_epochs * whole / steps)}
    if recipe.strategy == "lp_ft":
        changes["probe_epochs"] = math.ceil(recipe.probe_epochs * whole / steps)
    if recipe.lr_step_epochs:
        changes["lr_step_epochs"] = recipe.lr_step_epochs * whole / steps
    if recipe.eval_strategy == "epoch":
        changes |= {"eval_strategy": "steps", "eval_steps": whole, "save_strategy": "steps", "save_steps": whole}
    return recipe.variant(**changes)


def passes(recipe: Recipe, train: int, validation: int, test: int) -> float:
    """About how many pictures a run sends through its model at most, one that is learnt from counted as three."""
    batch = math.prod(recipe.undivided)
    steps = math.ceil(train / batch) * recipe.num_train_epochs
    evaluations = steps / (recipe.eval_steps or steps) if recipe.eval_strategy == "steps" else recipe.num_train_epochs
    frozen = recipe.plan.name == "feature_extraction" and recipe.cache_features
    learning = train * recipe.feature_views if frozen else 3 * steps * min(batch, train)
    return learning + (1 if frozen else evaluations) * validation + train + 2 * validation + 2 * test
