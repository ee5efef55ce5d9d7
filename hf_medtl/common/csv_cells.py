"""CSV text whose cells a spreadsheet takes as text, not as formulas, and that is read back unchanged."""

import re
from collections.abc import Callable

import pandas as pd

# What a spreadsheet may evaluate (OWASP, "CSV Injection"), with spaces and apostrophes before it: one more is put
# before these, too, so that reading back is unambiguous.
_FORMULA = re.compile(r"'*(?:[\t\r\n]|\s*[=+\-@＝＋－＠])")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)
_HARMLESS = re.compile(f"'{_FORMULA.pattern}")


def to_csv(table: pd.DataFrame) -> str:
    """Return a table as CSV text without its index; see `harmless_cells`."""
    cells = harmless_cells(table)
    text = cells.to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # else a cell with a carriage return would not be quoted
        text = cells.to_csv(index=False, lineterminator="\r\n")
    return text


def harmless_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with an apostrophe before text, in cells and names of columns, that begins as a formula does.

    Names of files and labels come from others: opened in a spreadsheet, `=HYPERLINK(...)` would run. Numbers stay.
    """
    return _map_text(table, harmless_text)


def original_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table of which `harmless_cells` made this one."""
    return _map_text(table, original_text)


def harmless_text(text: str) -> str:
    """Return the text of one cell, with an apostrophe before it if it begins as a formula does and is no number."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def original_text(text: str) -> str:
    """Return the text of which `harmless_text` made this one."""
    return text[1:] if _HARMLESS.match(text) else text


def _map_text(table: pd.DataFrame, function: Callable[[str], str]) -> pd.DataFrame:
    def convert(value: object) -> object:
        return function(value) if isinstance(value, str) else value

    changed = table.rename(columns=convert)
    for position, dtype in enumerate(table.dtypes):
        if not pd.api.types.is_numeric_dtype(dtype):
            changed.isetitem(position, table.iloc[:, position].map(convert).astype(dtype).array)
    return changed
