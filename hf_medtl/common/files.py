"""Atomic writes, strict JSON and listings of files."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_medtl.errors import MedtlError


def write_atomic(path: Path, content: str | dict[str, Any]) -> None:
    """Write text, or a dict as JSON, so that the file is either complete or absent.

    Raises:
        ValueError: The dict holds NaN or infinity, which are not JSON.
    """
    text = content if isinstance(content, str) else json.dumps(content, indent=2, allow_nan=False) + "\n"
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")  # else Windows changes what hashes are made from


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which then becomes `path`; after an error it is removed."""
    # The process id alone would not do: processes on other machines, or in other containers, may share the folder.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read a JSON file, refusing NaN and infinity, which are not JSON.

    Raises:
        MedtlError: The file is missing or damaged.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a result")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (ValueError, OSError) as error:
        raise MedtlError(f"{path} is damaged ({error}).") from error


def list_files(folder: Path) -> dict[str, Path]:
    """Return all files below a folder by their relative names, with / as separator."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
