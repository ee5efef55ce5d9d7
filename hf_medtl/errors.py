"""What can go wrong for a user: each message says what was expected, what was found, and what to do."""


class _Explained(Exception):
    """An error whose message says all that a user needs: notebooks show it without a traceback, too."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows."""
        return [f"{type(self).__name__}: {self}"]


class MedtlError(_Explained):
    """An error that the user can mend. Recipes print its message without a traceback."""


class UnreadableImage(MedtlError):
    """A file that is not a readable image: empty, truncated, of another kind, or too large to open safely."""


class Interrupted(_Explained):
    """A signal during training: a checkpoint was written, and the process should exit with code 128 + `signal`."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
