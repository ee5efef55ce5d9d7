"""Labels in the cells of tables: lists, numbers, columns of 0 and 1, and rows that repeat an image."""

import ast
import json
import re
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pandas as pd

from hf_medtl.common.text import abbreviate
from hf_medtl.data.columns import column_names
from hf_medtl.data.specs import split_labels
from hf_medtl.errors import MedtlError

NUMBERS = {"1": 1, "1.0": 1, "true": 1, "yes": 1, "0": 0, "0.0": 0, "false": 0, "no": 0, "": 0, "-1": -1, "-1.0": -1}
# Spellings of an empty cell, and those that may also be the name of a label
MISSING = r"(?i)nan|null|n/a|n\.a\.?|#n/a|#nv|<na>|nat|-+|\?+|\.+|missing|not (available|known|given)"
DOUBTFUL = r"(?i)na|none|unknown|unk|undefined|unlabell?ed|no label"
NO_PATIENT = rf"{MISSING}|{DOUBTFUL[4:]}|anon|anonymous|anonymi[sz]ed|no id|none given|k\.a\.|x{{3,}}|-1"
UNCERTAIN = "?uncertain: "  # begins a label that can't be used; a ? excludes the image
POLICIES = ("exclude", "negative", "positive")


def read_cells(cells: Sequence[str], table: str) -> tuple[list[str], list[str]]:
    """Return labels joined by |, as the rest of the package has them, and notes on how the cells were read.

    JSON and Python lists are lists of labels. A cell with commas or semicolons is one only if each of its parts is the
    label of another image. Numbers lose a decimal point with zeros. A cell such as `nan` is empty.

    Args:
        cells: (n,) what the table says.
        table: The table, for notes.
    """
    labels = ["" if re.fullmatch(MISSING, cell) else _parse_list(cell) for cell in cells]
    if all(re.fullmatch(r"(-?\d+(\.0+)?)?", label) for label in labels):
        labels = [label.partition(".")[0] for label in labels]
    labels = [re.sub(r"\s*\|\s*", "|", label) for label in labels]
    doubtful = sorted({label for label in labels if re.fullmatch(DOUBTFUL, label)})
    notes = [
        f"{table}: {labels.count(name)} of {len(labels)} images have the label {name!r}. If it is not known what they "
        "show, remove their rows."
        for name in doubtful
    ]
    for sign in ",;":
        joined = sorted({label for label in labels if sign in label})
        if not joined:
            continue
        alone = {part for label in labels if sign not in label for part in split_labels(label)}
        parts = {cell: [part.strip() for part in cell.split(sign) if part.strip()] for cell in joined}
        if alone and all(set(own) <= alone for own in parts.values()):
            labels = ["|".join([*parts[label], ""]) if label in parts else label for label in labels]
            notes.append(f"{table}: cells such as {joined[0]!r} are read as {len(parts[joined[0]])} labels.")
        else:
            notes.append(
                f"{table}: labels such as {joined[0]!r} are read as one label. Separate multiple labels by |, as in "
                f"{'|'.join(parts[joined[0]])!r}."
            )
    return labels, notes


def read_indicators(frame: pd.DataFrame, columns: Sequence[str], uncertain: str, table: str) -> tuple[list[str], str]:
    """Return the labels that columns of 0 and 1 state, and a note on how they were read.

    If each row has a single 1, images have one label each, else any number of them. Blank means 0.

    Args:
        frame: The table as text.
        columns: The columns, whose names are the labels.
        uncertain: What -1 (uncertain, as in CheXpert) means: one of POLICIES. With "exclude" the image is excluded.
        table: The table, for messages.

    Raises:
        MedtlError: Another value than 0, 1, -1 or blank, or a column whose name has a | or means missing.
    """
    values = np.zeros((len(frame), len(columns)), int)
    for number, column in enumerate(columns):
        cells = frame[column].str.lower()
        unknown = sorted(set(cells) - NUMBERS.keys())
        if unknown or "|" in column:
            raise MedtlError(
                f"{table}: expected 0, 1 or blank (or -1 for uncertain) in the column {column!r}, which is one of "
                f"several for the labels, found {abbreviate(list(map(repr, unknown)), 5)}."
            )
        if re.fullmatch(MISSING, column):
            raise MedtlError(f"{table}: the column {column!r} states a label, but has no name. Name it.")
        values[:, number] = cells.map(NUMBERS)
    is_uncertain = values == -1
    values[is_uncertain] = uncertain == "positive"
    single = bool((values.sum(axis=1) == 1).all() and not (is_uncertain.any() and uncertain == "exclude"))
    labels = ["|".join(np.asarray(columns, dtype=object)[row.astype(bool)].tolist()) for row in values]
    if not single:
        labels = [f"{label}|" for label in labels]
    note = f"{table}: the columns {abbreviate(list(columns), 20)} are read as "
    note += "labels, one for each image." if single else "labels, any number of them per image; blank means 0."
    if is_uncertain.any():
        rows = is_uncertain.any(axis=1)
        note += f" {rows.sum()} images have an uncertain label (-1), "
        note += "and are excluded." if uncertain == "exclude" else f"which is read as {uncertain}."
        if uncertain == "exclude":
            names = [UNCERTAIN + ", ".join(np.asarray(columns, dtype=object)[row]) for row in is_uncertain]
            labels = [name if unsure else label for name, unsure, label in zip(names, rows, labels, strict=True)]
    return labels, note


def indicator_columns(frame: pd.DataFrame) -> list[str]:
    """Return the columns that have only 0, 1, -1 and blank, and both 0 or blank and 1."""
    meanings = {column: {NUMBERS.get(cell.lower()) for cell in set(frame[column])} for column in column_names(frame)}
    return [column for column, values in meanings.items() if None not in values and 1 in values and len(values) > 1]


def clean_patients(cells: Sequence[str]) -> list[str]:
    """Return patients without a decimal point, "" for spellings of an unknown one such as `nan`, `unknown` or `-`."""
    cells = ["" if re.fullmatch(NO_PATIENT, cell, re.IGNORECASE) else cell for cell in cells]
    return [cell.partition(".")[0] if re.fullmatch(r"\d+\.0+", cell) else cell for cell in cells]


def merge_rows(frame: pd.DataFrame, table: str, multilabel: bool) -> tuple[pd.DataFrame, list[str]]:
    """Return one row for each file, and a note if rows were merged.

    Rows of one file, as in tables with a row for each box or reader, are merged if they agree; an empty cell agrees
    with anything. Masks are united, and so are the labels of multilabel data.

    Args:
        frame: Rows with the columns FIELDS.
        table: The table, for messages.
        multilabel: True if images have any number of labels.

    Raises:
        MedtlError: Rows of one file contradict each other.
    """
    repeated = frame["file_name"].duplicated(keep=False)
    if not repeated.any():
        return frame, []
    united = {"mask", "label"} if multilabel else {"mask"}
    merged = frame[~repeated.to_numpy()]
    rows = []
    conflicts: dict[str, list[str]] = {}
    for name, group in frame[repeated].groupby("file_name", sort=False):
        row = {"file_name": name}
        for column in frame.columns.drop("file_name"):
            values = list(dict.fromkeys(filter(None, group[column])))
            if column in united:
                marked = any("|" in value for value in values) and column == "label"
                values = ["|".join([*dict.fromkeys(chain.from_iterable(map(split_labels, values))), *[""] * marked])]
            if len(values) > 1:
                shown = f" ({', '.join(values[:3])})" if column != "patient" else ""
                conflicts.setdefault(column, []).append(f"{name}{shown}")
            row[column] = values[0] if values else ""
        rows.append(row)
    if conflicts:
        column, names = max(conflicts.items(), key=lambda item: (item[0] == "label", len(item[1])))
        hint = "Keep one row for each image"
        if column == "label":
            hint += ", or, if an image can have more than one label, separate the labels by | in one row"
        raise MedtlError(
            f"{table}: {len(names)} images have rows with a different {column}: {abbreviate(names, 3)}. {hint}."
        )
    note = f"{table}: {int(repeated.sum())} rows of {len(rows)} images are merged, because they agree"
    note += f"; their {' and '.join(sorted(united))}s are united." if multilabel else "."
    return pd.concat([merged, pd.DataFrame(rows)], ignore_index=True), [note]


def _parse_list(cell: str) -> str:
    """Return a JSON or Python list joined by |, with one at the end; other cells as they are."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return cell
    for parse in (json.loads, ast.literal_eval):
        try:
            parts = parse(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two of brackets in brackets
            continue
        if not isinstance(parts, list):
            continue
        return "|".join([*(str(part).strip() for part in parts), ""]) or "|"
    return cell
