"""YAML files of users: options of a recipe, cells of a study."""

from pathlib import Path
from typing import Any

import yaml

from hf_medtl.errors import MedtlError


class _Loader(yaml.SafeLoader):
    """YAML in which only true and false are truth values: yes, no and off are names of labels."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path, option: str) -> dict[str, Any]:
    """Read the YAML file that was given with `option`: a mapping, in UTF-8, or in UTF-16 with a byte-order mark."""
    try:
        content = yaml.load(path.read_bytes(), _Loader)
    except FileNotFoundError:
        raise MedtlError(f"{option} {path} does not exist. Check the path; it is relative to {Path.cwd()}.") from None
    except (OSError, yaml.YAMLError) as error:
        raise MedtlError(f"{option} {path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise MedtlError(f"{option} {path} must contain `key: value` lines, but contains a {type(content).__name__}.")
    return content
