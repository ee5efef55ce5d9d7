"""Version of the installed code: the commit, where it is known, and who publishes it."""

import importlib.metadata
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from hf_medtl.version import __version__

PACKAGE = Path(__file__).parents[1]


@cache
def commit() -> str | None:
    """Return the commit of the code: of a clone, with "-dirty" if files differ, or of an installation from git."""
    git = shutil.which("git")
    if git and (PACKAGE.parent / ".git").exists():
        command = [git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            done = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() or None
    return _direct_url().get("vcs_info", {}).get("commit_id")


def citation() -> dict[str, str]:
    """Return what a reference to the code can say, as far as it is known: author, version, commit, url."""
    try:
        metadata: Any = importlib.metadata.metadata("hf_medtl")
    except importlib.metadata.PackageNotFoundError:
        metadata = {}
    pages = [value.partition(", ")[2] for name, value in metadata.items() if name == "Project-URL"]
    installed_from = str(_direct_url().get("url", ""))
    if not installed_from.startswith("https://") or "@" in installed_from:  # a folder of this machine, or a token
        installed_from = ""
    facts = {
        "author": metadata.get("Author") or re.sub(r"\s*<[^>]*>", "", metadata.get("Author-email") or ""),
        "version": __version__,
        "commit": commit(),
        "url": next(iter(pages), installed_from),
    }
    return {name: value for name, value in facts.items() if value}


def _direct_url() -> dict[str, Any]:
    """Return direct_url.json of the installation (PEP 610); empty if it came from an index, or is not installed."""
    try:
        text = importlib.metadata.distribution("hf_medtl").read_text("direct_url.json")
        return json.loads(text or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return {}
