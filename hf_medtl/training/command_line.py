"""Parsing of a recipe's options: recipe file, YAML file and command line."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from hf_medtl.common.text import suggest
from hf_medtl.errors import MedtlError


def read_options(
    cls: Any, defaults: dict[str, Any] | None = None, argv: Sequence[str] | None = None
) -> tuple[dict[str, Any], set[str]]:
    """Read the values of a dataclass's fields; later sources take precedence.

    Args:
        cls: dataclass.
        defaults: values of a recipe file.
        argv: command-line flags, among them --config with a YAML file, which ranks between the two.

    Returns:
        Value of each field, and the names that the recipe file or the YAML file sets.

    Raises:
        MedtlError: an unknown key or flag, with the closest valid one; a value of the wrong type.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(cls, allow_abbrev=False, description="Fine-tune a model on medical images.")
    finder = _Parser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    given = dict(defaults or {})
    if path := finder.parse_known_args(argv)[0].config:
        given |= _read_yaml(Path(path))
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    for key in given:
        if key not in names:
            raise MedtlError(f"Unknown key {key!r} in the recipe. {suggest(key, names)}")
    # Numbers as strings, so that argparse checks their type: YAML reads 2e-5 as a string anyway.
    parser.set_defaults(**{k: str(v) if type(v) in (int, float) else v for k, v in given.items()})
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        raise MedtlError(f"Unknown option {unknown[0]!r}. {suggest(unknown[0].lstrip('-').split('=')[0], names)}")
    return vars(namespace), {*given}


class _Parser(HfArgumentParser):
    def error(self, message: str) -> Any:  # argparse prints two screens of usage before its message
        raise MedtlError(f"{message[0].upper()}{message[1:]}. See --help.")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise MedtlError(f"--config {path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise MedtlError(f"--config {path} must contain `key: value` lines, but contains a {type(content).__name__}.")
    return content
