"""Imports of optional dependencies (extras)."""

import importlib
import json
from typing import Any

from hf_medtl.errors import MedtlError


def require(module: str, extra: str, purpose: str) -> Any:
    """Import an optional dependency and return it.

    Args:
        module: dotted name, such as "optuna".
        extra: of pyproject.toml that installs it, such as "search".
        purpose: what needs it, as the subject of a sentence, such as "--search".

    Raises:
        MedtlError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise MedtlError(f"{purpose} needs {missing}. Install it with: {install_command(extra)}") from error


def install_command(extra: str) -> str:
    """Return the command that installs an extra of pyproject.toml, such as "jpeg", by where hf_medtl came from.

    pip adds the packages of an extra to an installed hf_medtl without looking for hf_medtl on an index, so its name is
    enough; but what was installed from a git URL is named by it (PEP 610), for environments made anew.
    """
    import importlib.metadata  # takes 25 ms, which --help would pay

    name = f"hf_medtl[{extra}]"
    try:
        origin = json.loads(importlib.metadata.distribution("hf_medtl").read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        origin = {}
    if version_control := origin.get("vcs_info"):
        revision = version_control.get("requested_revision")
        name += f" @ {version_control['vcs']}+{origin['url']}{f'@{revision}' if revision else ''}"
    return f'pip install "{name}"'
