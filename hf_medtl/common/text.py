"""Small text helpers: comma-separated lists, suggestions for misspelt names."""

import difflib

from hf_medtl.errors import MedtlError


def words(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def label_pairs(text: str | None, option: str) -> dict[str, str]:
    """`a=b,c=d` as a dict.

    Raises:
        MedtlError: no such pairs.
    """
    pairs = [pair.split("=") for pair in (text or "").split(",") if pair]
    if any(len(pair) != 2 for pair in pairs):
        raise MedtlError(f"{option} are pairs such as a=b,c=d, found {text!r}.")
    return {theirs.strip(): ours.strip() for theirs, ours in pairs}


def nearest(word: str, names: list[str]) -> str:
    """What may have been meant, for an error."""
    match = difflib.get_close_matches(word, names, n=1)
    return f"Did you mean {match[0]!r}? See --help." if match else "See --help for all."


def some(names: list[str], number: int = 10) -> str:
    """The first names of many, for error messages."""
    return ", ".join(names[:number]) + " ..." * (len(names) > number)
