"""Atomic writes, strict JSON and listings of files.

Whatever the package writes goes through this module: a file is written beside its name, flushed to the disk and then
renamed, so that a killed process or a full disk leaves the old file whole. What a killed process left half written is
removed by the next one that writes in the folder.
"""

import contextlib
import functools
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_medtl.common.processes import has_ended, process_mark
from hf_medtl.errors import MedtlError

PARTIAL = ".partial"  # suffix of files and folders that are being written
_PARTIAL_NAME = re.compile(rf"\.([0-9a-f]{{24}})[0-9a-f]{{8}}\{PARTIAL}")  # of the process, and random


def write_atomic(path: Path, content: str | bytes | dict[str, Any]) -> None:
    """Write text, bytes, or a dict as JSON, so that the file is either complete or as it was.

    Raises:
        ValueError: The dict holds NaN or infinity, which are not JSON.
    """
    with replacing(path) as partial:
        partial.write_bytes(encode(content))


def encode(content: str | bytes | dict[str, Any]) -> bytes:
    """Return what `write_atomic` writes: UTF-8, with the line ends as they are on every system.

    Raises:
        ValueError: A dict holds NaN or infinity, which are not JSON.
    """
    if isinstance(content, dict):
        content = json.dumps(content, indent=2, allow_nan=False) + "\n"
    return content if isinstance(content, bytes) else content.encode()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which then becomes `path`; after an error it is removed.

    It has another suffix than `path`: writers that choose their format by it must be given the format.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    partial = _partial_path(path.parent)
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def adding_files(folder: Path) -> Iterator[Path]:
    """Yield a folder to write files to, which then replace those of the same names in `folder`, one by one.

    After an error all files are as they were.
    """
    with scratch_folder(folder) as staging:
        yield staging
        files = list_files(staging)
        for path in files.values():
            _sync(path)
        for name, path in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            path.replace(folder / name)
        for parent in {(folder / name).parent for name in files}:
            _sync(parent)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write to, which then becomes `folder` as a whole; after an error the old one stays."""
    old = _partial_path(folder.parent)
    try:
        with scratch_folder(folder.parent) as staging:
            yield staging
            for path in list_files(staging).values():
                _sync(path)
            if folder.exists():
                folder.replace(old)
            try:
                staging.replace(folder)
            except OSError:
                if old.exists():
                    old.replace(folder)
                raise
            _sync(folder.parent)
    finally:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder in another one, which is made too, and remove it at the end, unless it was moved."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = _partial_path(parent)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_partial_files(folder: Path) -> None:
    """Remove what is half written in a folder, which no other process may write to, and the folders below it."""
    for path in [path for path in folder.rglob(f".*{PARTIAL}") if is_partial(path)]:
        _remove(path)


def is_partial(path: Path) -> bool:
    """Return True for the name of a file or folder that is being written, or that a killed process left."""
    return _PARTIAL_NAME.fullmatch(path.name) is not None


def _partial_path(folder: Path) -> Path:
    _remove_abandoned(folder)
    return folder / f".{process_mark()}{uuid.uuid4().hex[:8]}{PARTIAL}"


@functools.lru_cache(1024)  # once: a folder of a hundred thousand masks takes time to list
def _remove_abandoned(folder: Path) -> None:
    """Remove what processes of this machine that have ended left half written in a folder."""
    with contextlib.suppress(OSError):
        for path in [path for path in folder.iterdir() if is_partial(path)]:
            if has_ended(_PARTIAL_NAME.sub(r"\1", path.name)):
                _remove(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk: else a power cut may leave an empty file."""
    try:
        # Windows syncs only what is open for writing, and has no folders that can be opened.
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    except OSError:
        if os.name != "nt":
            raise
        return
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems do not sync folders
            raise
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """Read a JSON file, refusing NaN and infinity, which are not JSON.

    Raises:
        MedtlError: The file is missing or damaged.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a result")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (ValueError, OSError, RecursionError) as error:
        raise MedtlError(f"{path} is damaged ({error}).") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        MedtlError: The file is missing or damaged, or holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise MedtlError(f"{path} is damaged: expected an object, found {type(content).__name__}.")
    return content


def list_files(folder: Path) -> dict[str, Path]:
    """Return all files below a folder by their relative names, with / as separator; none that is being written."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(map(is_partial, map(Path, path.relative_to(folder).parts)))
    }
