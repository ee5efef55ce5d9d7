"""YAML files of users: options of a recipe, cells of a study."""

import math
from pathlib import Path
from typing import Any

import yaml

from hf_medtl.errors import MedtlError

MAX_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """YAML in which only true and false are truth values: yes, no and off are names of labels."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path, option: str) -> dict[str, Any]:
    """Read the YAML file that was given with `option`: a mapping, in UTF-8, or in UTF-16 with a byte-order mark.

    Raises:
        MedtlError: The file can't be read, or holds something else, or aliases that repeat more than any options need.
    """
    try:
        content = yaml.load(path.read_bytes(), _Loader)
    except FileNotFoundError:
        raise MedtlError(f"{option} {path} does not exist. Check the path; it is relative to {Path.cwd()}.") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: a date such as 2024-13-45
        raise MedtlError(f"{option} {path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise MedtlError(f"{option} {path} must contain `key: value` lines, but contains a {type(content).__name__}.")
    if _count(content, {}) > MAX_VALUES:
        raise MedtlError(f"{option} {path} has more than {MAX_VALUES:,} values, with those that aliases (*) repeat.")
    return content


def _count(value: Any, counts: dict[int, float]) -> float:
    """Return the number of values in lists and mappings, repeated ones each time; infinity where they hold themselves.

    Args:
        value: What a file contains.
        counts: id of a list or mapping -> its number, of those counted before.
    """
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) not in counts:
        counts[id(value)] = math.inf
        items = [*value, *value.values()] if isinstance(value, dict) else value
        counts[id(value)] = 1 + sum(_count(item, counts) for item in items)
    return counts[id(value)]
