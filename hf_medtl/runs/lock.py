"""Locks of run folders: one process writes to a folder at a time."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from hf_medtl.errors import MedtlError
from hf_medtl.runs.folder import NOT_WRITABLE

logger = logging.getLogger("hf_medtl")

RUN_LOCK = ".run.lock"
BUSY = "Another process trains in {}. Wait for it, or give another --output_dir."


@contextlib.contextmanager
def lock_folder(folder: Path, name: str, busy: str) -> Iterator[None]:
    """Make a folder, and keep other processes from it until the context ends.

    The system releases the lock if this process is killed.

    Args:
        folder: to lock; made if it does not exist.
        name: of the lock's file in it, which is removed at the end.
        busy: error message if another process has the lock.

    Raises:
        MedtlError: another process has the lock, or the folder can't be written to.
    """
    lock = FileLock(folder / name, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise MedtlError(busy) from error
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise MedtlError(NOT_WRITABLE.format(folder)) from error
        if not folder.is_dir():
            raise MedtlError(f"--output_dir {folder} is no possible folder ({error}). Give another.") from error
        logger.warning("%s cannot be locked (%s): do not start a second run in it.", folder, error)
    try:
        yield
    finally:
        # On Windows an open file cannot be removed; elsewhere a later removal could be that of another process's lock.
        if os.name != "nt":
            (folder / name).unlink(missing_ok=True)
        lock.release()
        if os.name == "nt":
            with contextlib.suppress(OSError):
                (folder / name).unlink(missing_ok=True)


def check_unlocked(folder: Path) -> None:
    """Refuse a folder that another process trains in.

    Raises:
        MedtlError: another process has its lock.
    """
    lock = FileLock(folder / RUN_LOCK, timeout=0)
    if not (folder / RUN_LOCK).exists():
        return
    try:
        lock.acquire()
    except Timeout as error:
        raise MedtlError(BUSY.format(folder)) from error
    except (OSError, NotImplementedError):  # `lock_folder` tells
        return
    lock.release()
