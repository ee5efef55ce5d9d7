"""Text helpers: comma-separated lists, label maps, suggestions for misspelt names, text in Markdown."""

import difflib
import os
import re
from collections.abc import Iterable
from typing import Any

from hf_medtl.errors import MedtlError


def split_commas(text: str) -> tuple[str, ...]:
    """Split a comma-separated string into its non-empty parts."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_label_map(text: str | None, option: str) -> dict[str, str]:
    """Parse `a=b,c=d` into a dict.

    Args:
        text: Comma-separated pairs; None and "" give an empty dict.
        option: Name of the option, for the error.

    Raises:
        MedtlError: The text is not made of such pairs.
    """
    pairs = [pair.split("=") for pair in (text or "").split(",") if pair]
    if any(len(pair) != 2 for pair in pairs):
        raise MedtlError(f"{option} takes pairs such as a=b,c=d, found {text!r}.")
    return {key.strip(): value.strip() for key, value in pairs}


def nearest(word: str, names: Iterable[str]) -> str:
    """Return " Did you mean 'NAME'?" with the name most similar to `word`, or "" if none is, for an error message."""
    match = difflib.get_close_matches(word, [*names], n=1)
    return f" Did you mean {match[0]!r}?" if match else ""


def suggest(word: str, names: Iterable[str]) -> str:
    """Return a hint at the name most similar to `word` and at --help, for an error message."""
    hint = nearest(word, names)
    return f"{hint[1:]} See --help." if hint else "See --help for the full list."


def abbreviate(names: list[str], number: int = 10) -> str:
    """Join the first `number` names, followed by "..." if there are more, for an error message."""
    return ", ".join(names[:number]) + " ..." * (len(names) > number)


def printable(name: str | os.PathLike[str]) -> str:
    r"""Return a file name as text that can be printed and written: bytes that are not UTF-8 become `\xfc`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def escape_cell(value: Any) -> str:
    """Escape text of a user's data, such as labels and file names, for a cell of a table or a line of Markdown.

    Pipes, code, HTML, links and emphasis become plain text. Brackets of intervals and underscores in words stay.
    """
    line = " ".join(str(value).split())
    return re.sub(r"[\\\\|`<*~]|(?<=\])\(|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)


def first_line(error: Exception) -> str:
    """Return the first line of a library's error message, up to 200 characters."""
    return str(error).strip().split("\n")[0][:200]
