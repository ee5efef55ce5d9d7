"""What can go wrong for a user: each message says what was expected, what was found, and what to do."""

import re

# What a terminal obeys or what forges lines (C0, C1, separators, directions of text), and halves of surrogate pairs.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


LONGEST = 4_000  # characters of a message, which may quote names that others chose


def escape_controls(text: str) -> str:
    r"""Return text with control characters, save line breaks and tabs, as escapes such as `\x1b`.

    File names, labels and damaged files are not ours: printed as they are, they could rewrite what a terminal shows.
    """
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


class _Explained(Exception):
    """An error whose message says all that a user needs: notebooks show it without a traceback, too."""

    def __str__(self) -> str:
        """Return the message as one line without control characters, shortened in the middle if it is very long."""
        text = escape_controls(re.sub(r"\s*[\r\n]\s*", " ", super().__str__()))
        return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows."""
        return [f"{type(self).__name__}: {self}"]


class MedtlError(_Explained):
    """An error that the user can mend. Recipes print its message without a traceback."""


class Unavailable(MedtlError):
    """Files or disk space that a command needs are not there; the same command works as soon as they are."""


class UnreadableImage(MedtlError):
    """A file that is not a readable image: empty, truncated, of another kind, or too large to open safely."""


class Interrupted(_Explained):
    """A signal during training: a checkpoint was written, and the process should exit with code 128 + `signal`."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
