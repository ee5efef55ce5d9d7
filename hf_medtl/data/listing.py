"""Files of a data folder: one walk for training, prediction, audit and demo, and which files are images."""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from hf_medtl.common.text import abbreviate, printable
from hf_medtl.data.images import EXTENSIONS
from hf_medtl.errors import MedtlError

logger = logging.getLogger(__name__)

# What operating systems, network drives and viewers add to folders and archives; hidden files are left out, too.
SYSTEM_FILES = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "$recycle.bin",
                "recycler", "#recycle", "@recycle", "#snapshot", "@recently-snapshot", "__pycache__",
                "system volume information", "lost+found", "dicomdir"}  # fmt: skip


def is_system_file(name: str) -> bool:
    """True for the name of a hidden file or folder, or of one that systems add, such as `._a.png` or `Thumbs.db`."""
    is_hidden = name.startswith((".", "~$")) and name.strip(".") != ""  # ~$ is a lock of Office
    return is_hidden or name.lower() in SYSTEM_FILES


def is_image_file(root: Path, path: str) -> bool:
    """True for an image's file name, or for a bare or numeric name (common for DICOM) with DICOM content."""
    if path.lower().endswith(EXTENSIONS):
        return True
    if not re.fullmatch(r"(\.\d+)?", Path(path).suffix):
        return False
    try:
        with (root / path).open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:  # counted as an image, so that reading it says what is wrong
        return True


def list_paths(root: Path) -> list[str]:
    """Return the POSIX paths of all files below a folder, sorted; linked folders are followed, system files left out.

    Args:
        root: The folder; the paths are relative to it, and `printable`.

    Raises:
        MedtlError: The folder is none, can't be read, or has a path that is not UTF-8.
    """
    return list(map(printable, _list(root)))


def list_images(root: Path) -> list[Path]:
    """Return all images below a folder, sorted; as `list_paths`, but also those whose names are not UTF-8."""
    return [root / path for path in _list(root) if is_image_file(root, path)]


def list_folder(root: Path) -> str:
    """Return the first names in a folder, for error messages."""
    names = sorted(p.name + "/" * p.is_dir() for p in root.iterdir() if not is_system_file(p.name))
    return abbreviate([printable(name) for name in names]) or "an empty folder"


def _list(root: Path) -> list[str]:
    """Return the sorted paths of the files below a folder as the system spells them; see `list_paths`."""
    if not root.is_dir():
        raise MedtlError(f"{printable(root)} is not a folder: {_describe(root)}")
    if printable(root) != str(root):
        raise MedtlError(f"{printable(root)}: the name of the folder is not UTF-8. Rename or move it.")
    return sorted(_walk(root, "", (os.path.realpath(root),)), key=lambda path: path.split("/"))


def _walk(root: Path, below: str, above: tuple[str, ...]) -> Iterator[str]:
    """Yield the files in the folder `below` the root; `above` are the real paths of it and of the folders above it.

    `Path.rglob` follows links or not depending on the version of Python, and `os.walk` has no end where a link points
    to a folder above itself.
    """
    try:
        entries = [entry for entry in os.scandir(root / below) if not is_system_file(entry.name)]
    except OSError as error:
        if not below:
            raise MedtlError(f"{root} can't be read ({error.strerror}). Give a folder that you may read.") from error
        logger.warning("%s can't be read (%s), so its files are left out.", printable(root / below), error.strerror)
        return
    for entry in entries:
        path = f"{below}/{entry.name}" if below else entry.name
        if entry.is_dir():
            real = os.path.realpath(entry.path)
            if real not in above:
                yield from _walk(root, path, (*above, real))
        elif entry.is_file() or entry.is_symlink():  # a link to nothing is an unreadable file; a pipe is no file
            yield path


def _describe(path: Path) -> str:
    """Say what a path is that is not a folder."""
    suffix = path.suffix.lower()
    if not path.exists():
        return "it does not exist. Give the folder that has the images."
    if suffix in {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"}:
        return "it is an archive. Unpack it and give the folder."
    if suffix in {".csv", ".tsv", ".xlsx", ".parquet"}:
        return "it is a table. Read it with --dataset table, or give the folder that has the images."
    return "it is a file. Give the folder that has the images."
