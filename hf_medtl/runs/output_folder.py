"""Folders that a command fills: a killed command leaves nothing there that keeps it from being given again."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from hf_medtl.common.files import adding_files, list_files, remove_partial_files, write_atomic
from hf_medtl.common.run_folder import UNFINISHED
from hf_medtl.errors import MedtlError
from hf_medtl.runs.folder import NOT_WRITABLE, is_unused, list_begun
from hf_medtl.runs.lock import RUN_LOCK, lock_folder

NOTE = "These files are not complete. Give the same command again: it replaces them."


def check_new(folder: Path, option: str = "--out", earlier: str = "") -> None:
    """Refuse a folder that holds something else than what a killed command left.

    Args:
        folder: To write to; it need not exist.
        option: What names it on the command line.
        earlier: A file by which an earlier result is known, which may be replaced.

    Raises:
        MedtlError: It holds other files, is a file, or can't be read.
    """
    try:
        taken = folder.exists() and not is_unused(folder) and not (earlier and (folder / earlier).is_file())
    except PermissionError as error:
        raise MedtlError(NOT_WRITABLE.format(option, folder)) from error
    if taken:
        other = f" and holds no {Path(earlier).stem}" if earlier else ""
        raise MedtlError(
            f"{option} {folder} is not empty{other}. Give a folder that is new or empty, or move that one away."
        )


@contextlib.contextmanager
def filling(folder: Path, does: str, option: str = "--out", earlier: str = "") -> Iterator[Path]:
    """Yield a folder to write to, whose files then become those of `folder`; other processes are kept from it.

    After an error `folder` is as it was. A killed process leaves hidden files, which `check_new` knows; if it was
    killed while files got their places, `UNFINISHED` lists them, and the next process replaces them.

    Args:
        folder: New, empty, or with an earlier result; made if it does not exist.
        does: What the process does in it, such as "writes a comparison".
        option: As for `check_new`.
        earlier: As for `check_new`.

    Raises:
        MedtlError: As `check_new` and `lock_folder`.
    """
    check_new(folder, option, earlier)
    with lock_folder(folder, RUN_LOCK, does, option):
        check_new(folder, option, earlier)  # another process may have ended in between
        remove_partial_files(folder)
        begun = list_begun(folder)
        with adding_files(folder) as staging:
            yield staging
            files = sorted(list_files(staging))
            write_atomic(folder / UNFINISHED, {"note": NOTE, "files": files})
        for name in begun.difference(files) & list_files(folder).keys():
            (folder / name).unlink(missing_ok=True)
        (folder / UNFINISHED).unlink(missing_ok=True)
