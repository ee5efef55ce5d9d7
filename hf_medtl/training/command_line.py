"""Parsing of a recipe's options: recipe file, YAML file and command line."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from hf_medtl.common.text import suggest
from hf_medtl.errors import MedtlError

# Options of a recipe file that hold for its own data set only: what its images show, and what may be done to them.
DATASET_OPTIONS = ("model_card", "augmentation", "preprocessing", "lung_model", "largest_components", "fill_holes")


def read_options(
    cls: Any, defaults: dict[str, Any] | None = None, argv: Sequence[str] | None = None
) -> tuple[dict[str, Any], set[str], dict[str, Any]]:
    """Read the values of a dataclass's fields; later sources take precedence.

    Args:
        cls: dataclass.
        defaults: values of a recipe file.
        argv: command-line flags, among them --config with a YAML file, which ranks between the two.

    Returns:
        Value of each field; the names that the recipe file or the YAML file sets; and the values of `DATASET_OPTIONS`
        that are left out, because the data set is another than the recipe file's and the user did not give them.

    Raises:
        MedtlError: an unknown key or flag, with the closest valid one; a value of the wrong type.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = OptionParser(cls, allow_abbrev=False, description="Fine-tune a model on medical images.")
    finder = OptionParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(argv)[0].config
    chosen = read_yaml(Path(path).expanduser(), "--config") if path else {}
    given = {**(defaults or {}), **chosen}
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    for key in given:
        if key not in names:
            raise MedtlError(f"Unknown key {key!r} in the recipe. {suggest(key, names)}")
    # Numbers as strings, so that argparse checks their type: YAML reads 2e-5 as a string anyway.
    parser.set_defaults(**{k: str(v) if type(v) in (int, float) else v for k, v in given.items()})
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        raise MedtlError(f"Unknown option {unknown[0]!r}. {suggest(unknown[0].lstrip('-').split('=')[0], names)}")
    flags = {word[2:].partition("=")[0].replace("-", "_").removeprefix("no_") for word in argv if word[:2] == "--"}
    values = vars(namespace)
    return values, {*given}, _leave_out(cls, values, defaults or {}, given={*chosen, *flags})


def _leave_out(cls: Any, values: dict[str, Any], defaults: Mapping[str, Any], given: set[str]) -> dict[str, Any]:
    """Reset the `DATASET_OPTIONS` of a recipe file in `values` if they are for another data set; return them."""
    if values.get("dataset") == defaults.get("dataset", values.get("dataset")):
        return {}
    usual = {f.name: f.default for f in dataclasses.fields(cls)}
    left_out = {
        name: defaults[name]
        for name in DATASET_OPTIONS
        if name in defaults and name not in given and defaults[name] != usual[name]
    }
    values |= {name: usual[name] for name in left_out}
    return left_out


class OptionParser(HfArgumentParser):
    """Parser of the fields of dataclasses, or of other options, that raises MedtlError."""

    def error(self, message: str) -> Any:
        """Raise the message alone: argparse would print two screens of usage before it."""
        raise MedtlError(f"{message[0].upper()}{message[1:]}. See --help.")


def read_yaml(path: Path, option: str) -> dict[str, Any]:
    """Read the YAML file that was given with `option`: a mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise MedtlError(f"{option} {path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise MedtlError(f"{option} {path} must contain `key: value` lines, but contains a {type(content).__name__}.")
    return content
