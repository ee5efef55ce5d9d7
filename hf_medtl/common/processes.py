"""Identity of processes: whether the one that wrote something, perhaps on another machine, still runs."""

import functools
import hashlib
import os
import socket
from pathlib import Path

SAME_START = 60.0  # seconds: the start of a process is computed from a clock that may be set


def is_running(process: int, started: float | None) -> bool:
    """Return True if a process of this machine has not ended.

    Args:
        process: Its number, which may be used again.
        started: When it was started, in seconds since 1970; None if that is unknown.
    """
    import psutil  # accelerate needs it

    try:
        other = psutil.Process(process)
        if other.status() == psutil.STATUS_ZOMBIE:
            return False
        return started is None or abs(other.create_time() - started) < SAME_START
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # it may not be looked at, so there is one
        return True


def process_start() -> float:
    """Return when this process was started, in seconds since 1970."""
    import psutil

    return float(psutil.Process().create_time())


def process_mark() -> str:
    """Return 24 hexadecimal digits that stand for this process: machine, number and start."""
    return _mark(os.getpid())


def has_ended(mark: str) -> bool:
    """Return True if the process of a `process_mark` was one of this machine and has ended."""
    machine, process, started = (mark[start : start + 8] for start in (0, 8, 16))
    return machine == _machine() and not is_running(int(process, 16), int(started, 16))


@functools.lru_cache(1)
def _mark(process: int) -> str:  # a forked process has its own
    return f"{_machine()}{process & 0xFFFFFFFF:08x}{int(process_start()) & 0xFFFFFFFF:08x}"


@functools.cache
def _machine() -> str:
    """Return eight digits for what numbers its processes: the machine, or a container."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]
