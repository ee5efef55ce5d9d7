"""What can go wrong for a user: each message says what was expected, what was found, and what to do."""


class MedtlError(Exception):
    """An error that the user can mend. Recipes print its message without a traceback."""


class UnreadableImage(MedtlError):
    """A file that is not a readable image: empty, truncated, of another kind, or too large to open safely."""


class Interrupted(Exception):
    """A signal during training: a checkpoint was written, and the process should exit with code 128 + `signal`."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
