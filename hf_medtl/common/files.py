"""Atomic writes and listings of files."""

import json
import os
from pathlib import Path
from typing import Any


def write(path: Path, content: str | dict[str, Any]) -> None:
    """Write text, or a dict as JSON, so that the file is either whole or not there."""
    text = content if isinstance(content, str) else json.dumps(content, indent=2, allow_nan=False) + "\n"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def files_of(folder: Path) -> dict[str, Path]:
    """Name below a folder, with / between its parts -> file."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
