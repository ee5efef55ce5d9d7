"""SHA-256 checksums of a finished run's files in checksums.json, which show files that are missing or have changed."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from hf_medtl.common.files import list_files, read_json, write_atomic
from hf_medtl.errors import MedtlError

CHECKSUMS = "checksums.json"
SUFFIXES = (".csv", ".json", ".md", ".py", ".safetensors", ".yaml")  # of files in the folder itself
FOLDERS = ("export", "figures", "lung_model")  # with all they hold
UNLISTED = (CHECKSUMS, "handler.py")  # each push writes the latter anew
EDITABLE = ("README.md",)  # its author may change it
SHOWN = (*EDITABLE, "figures/", "export/")  # what no other file is made from

Checksums = Mapping[str, str | list[str]]  # file -> its SHA-256, or several while it is being replaced


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def listed_files(folder: Path) -> dict[str, Path]:
    """Return the files of a run that its checksums cover, by their relative names."""
    files = {path.name: path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES and path.is_file()}
    for name in FOLDERS:
        files |= {f"{name}/{inner}": path for inner, path in list_files(folder / name).items()}
    return {name: path for name, path in files.items() if name not in UNLISTED and not name.startswith(".")}


def is_inside(path: Path, folder: Path) -> bool:
    """Return True if a path, with links followed, is below a folder: a list of files may be somebody else's."""
    return folder.resolve() in path.resolve().parents


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files of a run as they are now."""
    _write(folder, {name: sha256_of_file(path) for name, path in listed_files(folder).items()})


def read_checksums(folder: Path) -> Checksums | None:
    """Return file -> SHA-256; None for a run without checksums, such as one of version 0.1.0.

    Raises:
        MedtlError: The file is damaged.
    """
    if not (folder / CHECKSUMS).is_file():
        return None
    content = read_json(folder / CHECKSUMS)
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(isinstance(value, str | list) for value in files.values()):
        raise MedtlError(f"{folder / CHECKSUMS} is damaged (expected files with their SHA-256).")
    return files


def find_changed_files(folder: Path) -> list[str]:
    """Return a description of each file of a run that is missing or differs from its checksum; empty without these.

    A whole export may have been deleted; the others stay.
    """
    return [*_changes(folder).values()]


def _changes(folder: Path) -> dict[str, str]:
    try:
        expected = read_checksums(folder) or {}
    except MedtlError as error:
        return {CHECKSUMS: str(error)}
    changes = {}
    for name, digests in expected.items():
        path = folder / name
        if not is_inside(path, folder):
            changes[name] = f"{folder / CHECKSUMS} is damaged: {name!r} is not in the folder"
        elif name.startswith("export/") and not path.parent.exists():
            continue
        elif not path.is_file():
            changes[name] = f"{path} is missing"
        elif sha256_of_file(path) not in digests:  # one, or one of several
            changes[name] = f"{path} has changed since it was written (its SHA-256 differs)"
    return changes


def check_unchanged(folder: Path, then: str, ignored: tuple[str, ...] = EDITABLE) -> None:
    """Refuse a run of which a file is missing or has changed.

    Args:
        folder: The run folder.
        then: What was not done, such as "Nothing was uploaded."
        ignored: Beginnings of the names of files that do not matter for it.

    Raises:
        MedtlError: The first such file.
    """
    if changes := [change for name, change in _changes(folder).items() if not name.startswith(ignored)]:
        raise MedtlError(
            f"{changes[0]}. {then} Restore it from a copy (hf-medtl verify {folder} lists all such files); if you "
            f"changed it on purpose: hf-medtl verify {folder} --accept."
        )


@contextlib.contextmanager
def recording(folder: Path, name: str, content: bytes) -> Iterator[None]:
    """Update the checksum of a file that is replaced in this context, if the run has checksums.

    In between both contents are right, so that a killed process leaves a run that is.
    """
    files = read_checksums(folder) if name not in UNLISTED else None
    if files is None:
        yield
        return
    digest = hashlib.sha256(content).hexdigest()
    if name in files:
        old = files[name]
        _write(folder, {**files, name: [*([old] if isinstance(old, str) else old), digest]})
    yield
    if name in files or name in listed_files(folder):
        _write(folder, {**files, name: digest})


@contextlib.contextmanager
def recording_folder(folder: Path, inner: str) -> Iterator[None]:
    """Update the checksums of a folder in a run, such as export/onnx, that is replaced in this context."""
    files = read_checksums(folder)
    if files is None:
        yield
        return

    def others() -> dict[str, str | list[str]]:  # read each time: they may change meanwhile
        now = read_checksums(folder) or {}
        return {name: value for name, value in now.items() if not name.startswith(f"{inner}/")}

    _write(folder, others())
    try:
        yield
    except BaseException:
        old = {name: value for name, value in files.items() if name.startswith(f"{inner}/")}
        _write(folder, others() | old)
        raise
    new = {name: path for name, path in listed_files(folder).items() if name.startswith(f"{inner}/")}
    _write(folder, others() | {name: sha256_of_file(path) for name, path in new.items()})


def _write(folder: Path, files: Checksums) -> None:
    write_atomic(folder / CHECKSUMS, {"algorithm": "sha256", "files": dict(sorted(files.items()))})
