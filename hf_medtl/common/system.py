"""Cache folder, CPU cores and threads, and disk-full detection."""

import contextlib
import errno
import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from hf_medtl.errors import MedtlError

logger = logging.getLogger(__name__)

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MEMORY_MESSAGES = (
    *("out of memory", "can't allocate memory", "Cannot allocate memory", "can't start new thread", "bad_alloc"),
)
DISK_FULL_MESSAGES = (
    *("No space left", "File too large", "quota exceeded", "disk I/O error", "disk is full"),
    "unexpected pos",  # of torch.save, when fewer bytes are written than it gave
)
REFUSED_ERRNOS = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, getattr(errno, "ESTALE", errno.EIO))
REFUSED_MESSAGES = (
    "Read-only file system",
    "Input/output error",
    "Stale file handle",
    "readonly database",
    "unable to open database file",
)
# Of Gloo, of NCCL and of the store through which processes find each other.
LOST_MESSAGES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "failed to recv, got 0 bytes")
LATE_MESSAGES = (
    *("Timed out waiting", "Timed out after", "socket has timed out", "wait timeout after", "Watchdog caught"),
)


def cache_dir() -> Path:
    """Return the folder for what can be computed again.

    It is $HF_MEDTL_CACHE, else `hf_medtl` in the user's cache folder, else, where that can't be written to or there is
    no home, a temporary folder of the user.
    """
    if chosen := os.environ.get("HF_MEDTL_CACHE"):
        return Path(chosen).expanduser()
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user id without an entry in /etc/passwd, and no $HOME
        return _temporary_cache("There is no home folder for the cache")
    folder = Path(base) / "hf_medtl"
    reason = _why_unwritable(folder)
    return _temporary_cache(f"The cache folder {folder} can't be written to ({reason})") if reason else folder


@contextlib.contextmanager
def writing_cache(folder: Path) -> Iterator[None]:
    """Create a folder of the cache, and turn errors of writing to it into one sentence.

    Raises:
        MedtlError: The folder can't be written to, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except FileNotFoundError:  # a file of the data
        raise
    except OSError as error:
        raise MedtlError(
            f"The cache folder {folder} can't be written to ({error.strerror or error}). Set HF_MEDTL_CACHE to a "
            "folder that can be written to and has space."
        ) from error


@functools.cache
def _why_unwritable(folder: Path) -> str:
    """Create a folder and return "", or why it can't be written to. Access rights alone don't tell."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or type(error).__name__


@functools.cache
def _temporary_cache(reason: str) -> Path:
    """Return a private temporary folder, the same for all processes of a user, and warn once."""
    user = os.getuid() if hasattr(os, "getuid") else "user"  # Windows: the temporary folder is the user's own
    folder = Path(tempfile.gettempdir()) / f"hf_medtl-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if hasattr(os, "getuid") and (folder.is_symlink() or folder.stat().st_uid != os.getuid()):
            raise PermissionError("a folder of another user")
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="hf_medtl-"))
    logger.warning("%s: using %s. Set HF_MEDTL_CACHE to a folder that is kept.", reason, folder)
    return folder


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
    import psutil

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
    return not isinstance(error, MedtlError) and _has_cause(error, DISK_FULL_ERRNOS, DISK_FULL_MESSAGES)


def _has_cause(error: BaseException | None, numbers: Sequence[int], messages: Sequence[str]) -> bool:
    """Return True if an exception, or one in its cause chain, has one of the errnos, or of the messages in its own."""
    while error is not None:
        if getattr(error, "errno", None) in numbers or any(text in str(error) for text in messages):
            return True
        error = error.__cause__ or error.__context__
    return False


def explain_shortage(error: BaseException) -> str | None:
    """Return what to do about an error for lack of disk, memory or a process of the job; None for other errors."""
    if isinstance(error, MedtlError):
        return None
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if is_disk_full(error):
        return f"The disk is full, or files may not be so large ({first}). Make room, then give the same command again."
    if _has_cause(error, REFUSED_ERRNOS, REFUSED_MESSAGES):
        return (
            f"The system refuses to read or write a file ({first}). Check that its folder may be written to and that "
            "the disk is sound, then give the same command again."
        )
    if isinstance(error, MemoryError) or any(text in first for text in MEMORY_MESSAGES):
        return (
            f"There is too little memory ({first}). Take smaller batches or images, or end other programs, and give "
            "the same command again."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if any(text in str(error) for text in LOST_MESSAGES):
            return "Another process of this job has ended; its own error says why."
        if any(text in str(error) for text in LATE_MESSAGES):
            return (
                f"Another process of this job has stopped, or is too slow ({first}). Look at its machine, or wait "
                "longer (--ddp_timeout SECONDS), and give the same command with --resume_from_checkpoint auto."
            )
    return None
