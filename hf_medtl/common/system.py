"""Cache folder, CPU count and disk-full detection."""

import errno
import os
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_dir() -> Path:
    """Where hf_medtl keeps what can be computed again: $HF_MEDTL_CACHE, else `hf_medtl` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HF_MEDTL_CACHE") or Path(base) / "hf_medtl")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def no_room(error: BaseException | None) -> bool:
    """Whether there was no room for a file, by an error or what is behind it: libraries hide the errno in messages."""
    while error is not None:
        words = ("No space left", "File too large", "quota exceeded")
        if getattr(error, "errno", None) in FULL or any(its in str(error) for its in words):
            return True
        error = error.__cause__ or error.__context__
    return False
