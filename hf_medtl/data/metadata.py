"""The parts of a data set that metadata tell apart: hospitals, views, sexes, bands of age."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from hf_medtl.common.text import some
from hf_medtl.data.loading import Survey, locate
from hf_medtl.data.readers import tables
from hf_medtl.errors import MedtlError

AGES = (0, 18, 40, 65, 200)
MISSING = "(missing)"
MOST = 20  # slices of a column
FEW = 8  # different numbers that are taken as they are


def slices(found: Survey, data_dir: str | Path | None, columns: Sequence[str] = ()) -> dict[str, pd.Series]:
    """Which slice each picture is in, by column.

    Numbers of more than FEW different values are cut: ages at those of AGES, others at their quartiles.

    Args:
        found: the pictures.
        data_dir: where the data set was read from, as for `load`.
        columns: "source", or columns of the data set's own table or metadata.csv; by default the source, if there are
            several.

    Returns:
        column -> (n,) categories in their order, MISSING the last.

    Raises:
        MedtlError: no such column, or one of too many values.
    """
    if not columns:
        columns = ["source"] if found.table["source"].nunique() > 1 else []
    if set(columns) <= {"source"}:
        return {name: banded(name, found.table["source"]) for name in columns}
    name = found.spec.name
    table = tables(found.spec, locate(name, data_dir)[1]).reindex(found.table["path"]).fillna("").reset_index(drop=True)
    table = table.assign(source=found.table["source"].to_numpy())
    if unknown := [column for column in columns if column not in table]:
        raise MedtlError(
            f"--by {unknown[0]}: {name} says nothing of the kind about its pictures. It has {', '.join(table.columns)}."
            " Others can be columns of a metadata.csv, or of a table that is given with --dataset table."
        )
    return {column: banded(column, table[column]) for column in columns}


def banded(name: str, column: pd.Series) -> pd.Series:
    """A column of text as categories."""
    text = column.str.strip()
    numbers = pd.to_numeric(text.replace("", None), errors="coerce").astype(float)
    values = text.replace("", MISSING)
    order = sorted({*values} - {MISSING})
    if numbers.notna().sum() == (text != "").sum() and numbers.nunique() > FEW:
        named = re.search(r"(^|[^a-z])age([^a-z]|$)", name.lower())
        of_age = bool(named) and numbers.dropna().between(0, AGES[-1] - 1).all()
        edges = list(AGES) if of_age else sorted({*numbers.quantile([0, 0.25, 0.5, 0.75, 1])})
        if of_age:
            names = [f"{low} to {high - 1}" for low, high in pairwise(AGES[:-1])]
            names.append(f"{AGES[-2]} or more")
        else:
            names = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
            edges[-1] = np.inf
        values = pd.cut(numbers, edges, right=False, labels=names).astype(object).fillna(MISSING)
        order = [name for name in names if (values == name).any()]
    if len(order) > MOST:
        raise MedtlError(
            f"--by {name}: {len(order)} different values, such as {some(order, 3)}, are too many slices to say "
            f"anything about. Merge them into {MOST} or fewer in a column of the table."
        )
    return pd.Series(pd.Categorical(values, [*order, *([MISSING] if (values == MISSING).any() else [])]))
