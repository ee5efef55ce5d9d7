"""Parsing of a recipe's options: recipe file, YAML file and command line. Light: nothing here imports torch."""

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_medtl.common.text import suggest
from hf_medtl.errors import MedtlError
from hf_medtl.training.flags import Flag, all_flags, groups
from hf_medtl.training.options import FITTED_STRATEGIES, LISTS, STEP_OPTIONS

# Options of a recipe file that hold for its own data set only: what its images show, and what may be done to them.
DATASET_OPTIONS = (
    *("columns", "model_card", "augmentation", "preprocessing", "lung_model", "largest_components", "fill_holes"),
)

EXAMPLES = """examples:
  {program} --dry_run
      check data, model and options, and show the plan
  {program} --num_train_epochs 5 --seed 1 --output_dir runs/short
      change some options
  {program} --resume_from_checkpoint auto
      go on after an interruption
"""


def read_options(
    defaults: Mapping[str, Any] | None = None, argv: Sequence[str] | None = None
) -> tuple[dict[str, Any], set[str], dict[str, Any]]:
    """Read the options of a run; later sources take precedence. --help and --help_all print help and exit.

    Args:
        defaults: values of a recipe file.
        argv: command-line flags, among them --config with a YAML file, which ranks between the two.

    Returns:
        Value of each option; the names that the recipe file or the YAML file sets; and the values of `DATASET_OPTIONS`
        that are left out, because the data set is another than the recipe file's and the user did not give them.

    Raises:
        MedtlError: an unknown key or flag, with the closest valid one; a value of the wrong type.
    """
    flags = all_flags()
    argv = [_spell(word) for word in (sys.argv[1:] if argv is None else argv)]
    recipe = _convert(flags, defaults or {}, "the recipe")
    if {"-h", "--help", "--help_all"} & {*argv}:
        print(format_help(recipe, everything="--help_all" in argv))
        raise SystemExit(0)
    options, unknown = _parser(flags.values(), recipe).parse_known_args(argv)
    given = vars(options)
    if unknown:
        what = "option" if unknown[0].startswith("-") else "argument"
        raise MedtlError(f"Unknown {what} {unknown[0]!r}. {suggest(unknown[0].lstrip('-').split('=')[0], [*flags])}")
    for name, value in given.items():
        given[name] = flags[name].convert(value)
    path = given.get("config", recipe.get("config"))
    from hf_medtl.common.yaml_files import read_yaml  # PyYAML takes 20 ms to import, and --help needs none

    file = _convert(flags, read_yaml(Path(path).expanduser(), "--config"), path) if path else {}
    values = {name: flag.default for name, flag in flags.items()} | recipe | file | given
    left_out = _leave_out(values, recipe, {*file, *given})
    unused = _reset_step_options(values, [recipe, file, given])
    return values, {*recipe, *file} - unused, left_out


def format_help(values: Mapping[str, Any] | None = None, everything: bool = False, program: str | None = None) -> str:
    """Return the help of a recipe.

    Args:
        values: the recipe's own defaults.
        everything: list all options of transformers.TrainingArguments, too.
        program: the command; the running one by default.
    """
    parser = _parser(all_flags().values() if everything else (), values or {}, program)
    return parser.format_help().strip()


class OptionParser(argparse.ArgumentParser):
    """Argument parser that raises MedtlError."""

    def error(self, message: str) -> Any:
        """Raise the message alone: argparse would print two screens of usage before it."""
        raise MedtlError(f"{message[0].upper()}{message[1:]}. See --help.")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help in two columns, as wide as the terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=38, width=min(120, shutil.get_terminal_size((100, 24)).columns))


def _parser(flags: Any, values: Mapping[str, Any], program: str | None = None) -> OptionParser:
    """Return the parser of options, which leaves out those that are not given; --help shows the ones in `groups`."""
    script = sys.argv[0].endswith(".py")
    parser = OptionParser(
        program or (f"python {sys.argv[0]}" if script else None),
        usage="%(prog)s [options]",
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=_HelpFormatter,
        description="Fine-tune a pretrained model on medical images. All options are keys of a YAML file, too.",
    )
    parser.epilog = EXAMPLES.format(program=parser.prog + " --data_dir DIR" * parser.prog.endswith("train"))
    shown = set()
    for heading, members in groups().items():
        group = parser.add_argument_group(heading)
        for flag in members:
            _add(group, flag, values)
            shown.add(flag.name)
    if rest := [flag for flag in flags if flag.name not in shown]:
        group = parser.add_argument_group("More options of transformers.TrainingArguments")
        for flag in rest:
            _add(group, flag, values)
    group = parser.add_argument_group("Help")
    group.add_argument("--help", action="store_true", help="Show these options and exit.")
    group.add_argument(
        "--help_all", action="store_true", help="Show every option of transformers.TrainingArguments, too."
    )
    return parser


def _add(group: Any, flag: Flag, values: Mapping[str, Any]) -> None:
    default = values.get(flag.name, flag.default)
    text = flag.help
    if flag.kind == "text" and 0 < len(flag.choices) < 10:
        text += f" {'Any' if flag.name in LISTS else 'One'} of {', '.join(flag.choices)}."
    if default not in (None, "", [], False):
        text += f" (default: {str(default).lower() if default is True else default})"
    metavars = {"bool": "true|false", "int": "N", "float": "X", "list": "NAME"}
    keywords: dict[str, Any] = {"help": text.replace("%", "%%"), "metavar": metavars.get(flag.kind, "VALUE")}
    if flag.kind == "bool" or flag.bare is not None:
        keywords |= {"nargs": "?", "const": True if flag.bare is None else flag.bare}
    elif flag.kind == "list":
        keywords["nargs"] = "+"
    group.add_argument(f"--{flag.name}", **keywords)
    if flag.kind == "bool" and flag.default is True:
        group.add_argument(
            f"--no_{flag.name}", dest=flag.name, action="store_const", const=False, help=argparse.SUPPRESS
        )


def _spell(word: str) -> str:
    """Return a flag with underscores: --data-dir=a-b is --data_dir=a-b."""
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else word


def _convert(flags: Mapping[str, Flag], values: Mapping[str, Any], source: object) -> dict[str, Any]:
    for key in values:
        if key not in flags:
            raise MedtlError(f"Unknown key {key!r} in {source}. {suggest(str(key), [*flags])}")
    return {key: flags[key].convert(value) for key, value in values.items()}


def _leave_out(values: dict[str, Any], recipe: Mapping[str, Any], given: set[str]) -> dict[str, Any]:
    """Reset the `DATASET_OPTIONS` of a recipe file in `values` if they are for another data set; return them."""
    if values["dataset"] == recipe.get("dataset", values["dataset"]):
        return {}
    flags = all_flags()
    left_out = {
        name: recipe[name]
        for name in DATASET_OPTIONS
        if name in recipe and name not in given and recipe[name] != flags[name].default
    }
    values |= {name: flags[name].default for name in left_out}
    return left_out


def _reset_step_options(values: dict[str, Any], sources: Sequence[Mapping[str, Any]]) -> set[str]:
    """Reset the options of training steps in `values` if a later source chose a strategy without; return them.

    Args:
        values: value of each option.
        sources: options of the recipe file, the YAML file and the command line.
    """
    if values["strategy"] not in FITTED_STRATEGIES:
        return set()
    flags = all_flags()
    chosen = max(rank for rank, source in enumerate(sources) if "strategy" in source)
    later = {name for source in sources[chosen:] for name in source}
    unused = {name for source in sources[:chosen] for name in source if name in STEP_OPTIONS} - later
    values |= {name: flags[name].default for name in unused}
    return unused
