"""Locks of run folders: one process writes to a folder at a time.

The system's lock ends with its process, however that ends. Beside it a file tells who has it: for the message, and
because file systems that several machines share may lock on one machine only, or not at all.
"""

import contextlib
import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hf_medtl.common.files import read_json, write_atomic
from hf_medtl.common.processes import is_running, process_start
from hf_medtl.errors import MedtlError
from hf_medtl.runs.folder import NOT_WRITABLE

logger = logging.getLogger("hf_medtl")

RUN_LOCK = ".run.lock"
TRAINS = "trains"  # what a process does that has RUN_LOCK
BEAT = 10.0  # seconds after which a process shows again that it is alive


@contextlib.contextmanager
def lock_folder(folder: Path, name: str, does: str, option: str = "--output_dir") -> Iterator[None]:
    """Make a folder, and keep other processes from it until the context ends; folders that stay empty are removed.

    Args:
        folder: to lock; made if it does not exist.
        name: of the lock's file in it, which is removed at the end.
        does: what the process does in it, such as "trains".
        option: what names the folder on the command line.

    Raises:
        MedtlError: another process has the lock, or the folder can't be written to.
    """
    lock, owner_file = FileLock(folder / name, timeout=0), _owner_file(folder, name)
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise MedtlError(_refusal(folder, name, does, option)) from error
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise MedtlError(NOT_WRITABLE.format(option, folder)) from error
        if not folder.is_dir():
            raise MedtlError(f"{option} {folder} is no possible folder ({error}). Give another.") from error
        logger.warning("%s cannot be locked (%s): do not start a second run in it.", folder, error)
    try:
        if _is_alive(owner_file, locked=lock.is_locked):
            raise MedtlError(_refusal(folder, name, does, option))
        with _owner(owner_file):
            yield
    finally:
        # On Windows an open file cannot be removed; elsewhere a later removal could be that of another process's lock.
        if os.name != "nt" and lock.is_locked:
            (folder / name).unlink(missing_ok=True)
        lock.release()
        with contextlib.suppress(OSError):
            if os.name == "nt":
                (folder / name).unlink(missing_ok=True)
            for each in made:
                each.rmdir()  # if it is empty


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
        raise MedtlError(_refusal(folder, RUN_LOCK, TRAINS)) from error
    except (OSError, NotImplementedError):  # `lock_folder` tells
        return
    lock.release()


def _owner_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _refusal(folder: Path, name: str, does: str, option: str = "--output_dir") -> str:
    owner = _read_owner(_owner_file(folder, name))
    who = f" (process {owner['process']} on {owner['host']}, since {owner['since']})" if owner else ""
    return f"Another process {does} in {folder}{who}. Wait for it, or give another {option}."


def _read_owner(path: Path) -> dict[str, Any] | None:
    """Return host, process, its start, since and beat of the process that has, or had, a lock; None if unknown."""
    try:
        owner = read_json(path)
    except MedtlError:
        return None
    return (
        owner if isinstance(owner, dict) and {"host", "process", "started", "since", "beat"} <= owner.keys() else None
    )


@contextlib.contextmanager
def _owner(path: Path) -> Iterator[None]:
    """Say in a file who has the lock, and renew it, so that another machine sees that this process is alive."""
    process, ended = os.getpid(), threading.Event()
    owner = {
        "host": socket.gethostname(),
        "process": process,
        "started": process_start(),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
    }

    def renew() -> None:
        beat = 0
        while not ended.wait(BEAT):
            beat += 1
            with contextlib.suppress(OSError):  # a full disk: training tells
                write_atomic(path, owner | {"beat": beat})

    write_atomic(path, owner | {"beat": 0})
    thread = threading.Thread(target=renew, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _is_alive(path: Path, locked: bool) -> bool:
    """Return True if the process that a file names as the owner of a lock has not ended.

    Args:
        path: the file.
        locked: True if this process got the system's lock: then no other of this machine has it.
    """
    owner = _read_owner(path)
    if owner is None:
        return False
    if owner["host"] == socket.gethostname():
        alive = not locked and is_running(int(owner["process"]), owner["started"])
    else:
        logger.info("%s was in use on %s. Seeing for %.0f s whether it still is.", path.parent, owner["host"], 3 * BEAT)
        alive = _beats(path, owner)
    if not alive:
        logger.info("Process %s on %s has ended without removing its lock.", owner["process"], owner["host"])
    return alive


def _beats(path: Path, owner: dict[str, Any]) -> bool:
    """Return True if a process on another machine renews its file. No clocks are compared: theirs may differ."""
    until = time.monotonic() + 3 * BEAT
    while time.monotonic() < until:
        time.sleep(BEAT / 10)
        now = _read_owner(path)
        if now is None:
            return False
        if now != owner:
            return True
    return False
