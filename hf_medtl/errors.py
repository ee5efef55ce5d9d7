"""What can go wrong for a user: each message says what was expected, what was found, and what to do."""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class MedtlError(Exception):
    """An error that the user can mend. Recipes print its message without a traceback."""


class UnreadableImage(MedtlError):
    """A file that gives no picture: empty, truncated, of another kind, or too large to open safely."""


def no_room(error: BaseException | None) -> bool:
    """Whether there was no room for a file, by an error or what is behind it: libraries hide the errno in messages."""
    while error is not None:
        words = ("No space left", "File too large", "quota exceeded")
        if getattr(error, "errno", None) in FULL or any(its in str(error) for its in words):
            return True
        error = error.__cause__ or error.__context__
    return False
