"""Imports of optional dependencies (extras)."""

import importlib
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
    """Return the command that installs an extra of pyproject.toml, such as "jpeg"."""
    return f'pip install "hf_medtl[{extra}]"'
