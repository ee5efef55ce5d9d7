"""Uploaded files on disk: stored under neutral names, for a limited time, original names only in memory."""

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from starlette.datastructures import UploadFile

from hf_medtl.data.images import EXTENSIONS

MAX_PATH = 4096  # PATH_MAX of Linux
MAX_NAMES = 10_000
ORIGINAL_NAMES: dict[str, str] = {}  # path -> name, never on disk


def upload_folder(folder: Path) -> Path:
    """Return the folder inside Gradio's one where uploads are stored. Files in it are not served."""
    return folder.resolve() / "incoming"


def is_inside(path: str, folder: Path) -> bool:
    """Return True if an absolute path is below a folder, with links followed.

    Paths longer than `MAX_PATH` never are: resolving one takes minutes.
    """
    if not path.startswith("/") or "\0" in path or len(path) > MAX_PATH:
        return False
    return folder in Path(os.path.realpath(path)).parents


def store_upload(file: UploadFile, folder: Path) -> Path:
    """Write a file into a new folder under a neutral name with its original extension, and remember its name."""
    name = file.filename or ""
    longest_first = sorted((*EXTENSIONS, ".zip"), key=len)[::-1]
    extension = next((extension for extension in longest_first if name.lower().endswith(extension)), "")
    path = folder / secrets.token_hex(16) / f"upload{extension}"
    path.parent.mkdir(parents=True, mode=0o700)
    with path.open("wb") as stream:
        shutil.copyfileobj(file.file, stream)
    ORIGINAL_NAMES[str(path)] = name
    while len(ORIGINAL_NAMES) > MAX_NAMES:
        ORIGINAL_NAMES.pop(next(iter(ORIGINAL_NAMES)), None)
    return path


def pop_name(path: str | Path) -> str:
    """Return the name that the user gave an uploaded file and forget it; a second call returns the neutral name."""
    return ORIGINAL_NAMES.pop(str(path), Path(path).name)


@contextlib.contextmanager
def deleting(paths: Iterable[str]) -> Iterator[None]:
    """Delete uploaded files, their folders and their remembered names at the end, whatever happens."""
    try:
        yield
    finally:
        for path in paths:
            pop_name(path)
            with contextlib.suppress(OSError):  # most were deleted when they were read
                Path(path).unlink(missing_ok=True)
                Path(path).parent.rmdir()


def list_below(folder: Path) -> list[Path]:
    """Return files and folders below a folder. Unlike `Path.rglob` it tolerates removal of some meanwhile."""
    return [Path(parent, name) for parent, folders, files in os.walk(folder) for name in (*folders, *files)]


def remove_old_files(folder: Path, seconds: float, keep: Collection[Path] = ()) -> None:
    """Remove files that were put below a folder more than `seconds` ago, and folders left empty.

    Args:
        folder: folder to clean.
        seconds: maximum age.
        keep: files and folders that stay.
    """
    oldest = time.time() - seconds
    for path in set(list_below(folder)).difference(keep):
        with contextlib.suppress(OSError):  # removed meanwhile, or not empty
            if path.lstat().st_ctime < oldest:  # not st_mtime: Gradio's copies have that of the original
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
                ORIGINAL_NAMES.pop(str(path), None)
