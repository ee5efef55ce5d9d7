"""Cache folder, CPU cores and threads, and disk-full detection."""

import errno
import os
import shutil
from pathlib import Path

from hf_medtl.errors import MedtlError

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK_FULL_MESSAGES = ("No space left", "File too large", "quota exceeded")


def cache_dir() -> Path:
    """Return the folder for what can be computed again: $HF_MEDTL_CACHE, or `hf_medtl` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HF_MEDTL_CACHE") or Path(base) / "hf_medtl")


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wait_passively() -> None:
    """Let threads of OpenMP sleep while they wait for each other, unless the user chose otherwise.

    By default they spin, which takes the cores from other processes: on a busy machine training is several times
    slower. Libraries read this when they are loaded, so it has no effect once torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ and "KMP_BLOCKTIME" not in os.environ:
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}  # of GNU, and of Intel and LLVM


def threads_are_chosen() -> bool:
    """Return True if the user of `accelerate launch` set OMP_NUM_THREADS, which it otherwise sets itself."""
    import psutil  # accelerate needs it

    try:
        return "OMP_NUM_THREADS" in psutil.Process(os.getppid()).environ()  # of the launcher
    except (psutil.Error, OSError):
        return False


def is_disk_full(error: BaseException | None, folder: Path | None = None) -> bool:
    """Return True if `error`, or an exception in its cause chain, means that the disk is full.

    Libraries hide the errno in messages, so messages are searched, too.

    Args:
        error: The exception; a `MedtlError` explains its cause already and never counts.
        folder: If given, True as well if less than 1 MB is free on its disk.
    """
    if folder is not None and folder.exists() and shutil.disk_usage(folder).free < 1_000_000:
        return True
    if isinstance(error, MedtlError):
        return False
    while error is not None:
        if getattr(error, "errno", None) in DISK_FULL_ERRNOS or any(text in str(error) for text in DISK_FULL_MESSAGES):
            return True
        error = error.__cause__ or error.__context__
    return False
