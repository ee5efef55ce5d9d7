"""Subgroups from metadata: hospitals, views, sexes, age bands."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from hf_medtl.common.text import abbreviate
from hf_medtl.data.columns import column_names, find_column
from hf_medtl.data.dataset import Survey
from hf_medtl.data.loading import locate_dataset
from hf_medtl.data.tables import read_metadata
from hf_medtl.errors import MedtlError

AGES = (0, 18, 40, 65, 200)
MISSING = "(missing)"
MAX_SUBGROUPS = 20  # of a column
MAX_DISTINCT = 8  # distinct numbers that are used as they are


def subgroup_columns(survey: Survey, data_dir: str | Path | None, columns: Sequence[str] = ()) -> dict[str, pd.Series]:
    """Return the subgroup of each image, for each metadata column.

    Columns with more than MAX_DISTINCT different numbers are cut into bands: ages at AGES, others at their quartiles.

    Args:
        survey: The images.
        data_dir: Where the dataset was read from, as for `load`.
        columns: "source", or columns of the dataset's own table or metadata.csv. By default the source, if there is
            more than one.

    Returns:
        Column -> (n,) ordered categories, MISSING last.

    Raises:
        MedtlError: An unknown column, or one with too many different values.
    """
    if not columns:
        columns = ["source"] if survey.table["source"].nunique() > 1 else []
    if set(columns) <= {"source"}:
        return {name: to_categories(name, survey.table["source"]) for name in columns}
    name = survey.spec.name
    root = survey.root if survey.spec.reader == "folders" else locate_dataset(name, data_dir)[1]
    metadata = read_metadata(survey.spec, root)
    table = metadata.reindex(survey.table["path"]).fillna("").reset_index(drop=True)
    table = table.assign(source=survey.table["source"].to_numpy())
    columns = [find_column(column, column_names(table)) or column for column in columns]
    if unknown := [column for column in columns if column not in table]:
        raise MedtlError(
            f"--by {unknown[0]}: {name} has no such metadata column. It has {', '.join(table.columns)}. Add others as "
            "columns of a metadata.csv, or of a table given with --dataset table."
        )
    return {column: to_categories(column, table[column]) for column in columns}


def to_categories(name: str, column: pd.Series) -> pd.Series:
    """Convert a text column to ordered categories, cutting numbers into bands; see `subgroup_columns`."""
    text = column.str.strip()
    numbers = pd.to_numeric(text.replace("", None), errors="coerce").astype(float)
    values = text.replace("", MISSING)
    order = sorted({*values} - {MISSING})
    if numbers.notna().sum() == (text != "").sum() and numbers.nunique() > MAX_DISTINCT:
        is_age = bool(re.search(r"(^|[^a-z])age([^a-z]|$)", name.lower()))
        if is_age and numbers.dropna().between(0, AGES[-1] - 1).all():
            edges = list(map(float, AGES))
            names = [*(f"{low} to {high - 1}" for low, high in pairwise(AGES[:-1])), f"{AGES[-2]} or more"]
        else:
            edges = sorted({*numbers.quantile([0, 0.25, 0.5, 0.75, 1])})
            names = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
            edges[-1] = np.inf
        values = pd.cut(numbers, edges, right=False, labels=names).astype(object).fillna(MISSING)
        order = [name for name in names if (values == name).any()]
    if len(order) > MAX_SUBGROUPS:
        raise MedtlError(
            f"--by {name}: {len(order)} different values, such as {abbreviate(order, 3)}, are too many subgroups for "
            f"meaningful results. Merge them into at most {MAX_SUBGROUPS} in a column of the table."
        )
    return pd.Series(pd.Categorical(values, [*order, *([MISSING] if (values == MISSING).any() else [])]))
