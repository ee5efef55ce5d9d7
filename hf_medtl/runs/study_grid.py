"""Grid of a study: backbones, strategies, fractions of the training groups and seeds, from YAML and flags."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from hf_medtl.common.text import suggest
from hf_medtl.common.yaml_files import read_yaml
from hf_medtl.errors import MedtlError
from hf_medtl.training.command_line import OptionParser, read_options
from hf_medtl.training.options import PRIVATE_OPTIONS, strip_path

BUDGETS = ("steps", "epochs")
# Options that would have cells tested on different images, or that the study itself sets.
COMMON_OPTIONS = (
    *("columns", "dataset", "fold", "folds", "mask_values", "official_split", "push_to_hub", "search", "seed"),
    *("sources", "split_seed", "task", "test_fraction", "train_fraction", "validation_fraction"),
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
        values = (
            defaults
            | (read_yaml(Path(path), "--grid") if path else {})
            | {k: v for k, v in given.items() if v is not None}
        )
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


def make_parser() -> OptionParser:
    """Return the parser of the flags of a grid; it leaves those of a recipe."""
    parser = OptionParser(
        add_help=False,
        allow_abbrev=False,
        formatter_class=argparse.HelpFormatter,
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


def _convert_options(options: Any) -> dict[str, Any]:
    """Convert recipe options of some arms to their types; refuse those that must be the same in all cells."""
    if not isinstance(options, dict):
        raise MedtlError(f"Options of the grid are pairs such as learning_rate: 1e-3, found {options!r}.")
    for name in options:
        if name in (*COMMON_OPTIONS, *PRIVATE_OPTIONS):
            raise MedtlError(f"{name} must be the same in all cells of a study. Give it as a flag, or leave it out.")
    values, *_ = read_options(options, [])
    return {name: values[name] for name in options}
