"""Tables of images: CSV, TSV or Parquet files with one row per image."""

import posixpath
import re
from pathlib import Path

import pandas as pd

from hf_medtl.common.text import abbreviate
from hf_medtl.data.labels import discover_labels
from hf_medtl.data.listing import find_mask, list_folder, list_paths
from hf_medtl.data.specs import DatasetSpec
from hf_medtl.data.split_names import parse_split
from hf_medtl.errors import MedtlError

FIELDS = ("file_name", "label", "patient", "source", "mask", "split")
SAME_NAMES = {name: f"{{{name}}}" for name in FIELDS}  # columns called as ours, as `DatasetSpec.columns` has them


Rows = list[dict[str, str]]


def read_table(spec: DatasetSpec, root: Path) -> tuple[DatasetSpec, Rows]:
    """Read a CSV or Parquet table, with `spec.columns` mapping its columns and `spec.keep` filtering its rows.

    A | in one of the labels marks the data as multilabel; an empty cell then means no label.

    Raises:
        MedtlError: The table or its images are missing, it lacks columns or labels, or has fewer than two labels.
    """
    file = root / spec.table if spec.table else root
    folder = file.parent
    if not file.is_file():
        content = list_folder(root) if root.is_dir() else "no such file"
        raise MedtlError(f"{spec.title}: expected the table {file}, found {content}. Specify it with --data_dir.")
    frame = read_columns(spec, file, "", SAME_NAMES | spec.columns)
    images = frame["file_name"].tolist()
    paths = list_paths(spec, folder)
    missing = sorted(set(images) - paths)
    if len(missing) == len(images):
        raise MedtlError(f"{file}: none of its {len(images)} files is in {folder}, such as {abbreviate(missing)}.")
    multilabel = any("|" in cell for cell in frame["label"])
    if "" in set(frame["label"]) and not (multilabel or spec.is_segmentation):
        raise MedtlError(
            f"{file}: {(frame['label'] == '').sum()} rows have no label. Fill in the column label. (An empty cell "
            "means that there is no label only if another cell has multiple labels separated by |.)"
        )
    spec = discover_labels(spec, file, frame["label"].tolist(), multilabel)
    rows = [
        {
            "image_id": row["file_name"],
            "path": row["file_name"],
            "label": f"?{row['label']}" if (label := spec.map_label(row["label"])) is None else label,
            "patient": row["patient"],
            "official": parse_split(row["split"]) or row["split"],
            "source": row["source"],
            "mask": row["mask"] or find_mask(spec, row["file_name"], paths),
        }
        for row in to_records(frame)
    ]
    return spec, rows


def read_metadata(spec: DatasetSpec, path: Path) -> pd.DataFrame:
    """Return all columns of a dataset's tables as text, indexed by image path below the data folder; may be empty.

    Args:
        spec: The dataset.
        path: Its data folder, or its table.

    Raises:
        MedtlError: A table can't be read.
    """
    columns = None
    files = sorted(path.rglob("metadata.csv")) if path.is_dir() else []
    if spec.reader == "table":
        files, columns = [path / spec.table if spec.table else path], {"file_name": "{file_name}", **spec.columns}
    elif spec.reader != "folders":
        files = []
    tables = [pd.DataFrame()]
    for file in files:
        folder = "" if columns else file.parent.relative_to(path).as_posix()
        names = read_columns(spec, file, folder, SAME_NAMES | (columns or {}))["file_name"]
        tables.append(read_rows(spec, file).set_axis(names, axis=0))
    table = pd.concat(tables)
    return table[~table.index.duplicated()].fillna("")


def read_columns(spec: DatasetSpec, file: Path, folder: str, columns: dict[str, str] | None = None) -> pd.DataFrame:
    """Read a table into the columns FIELDS as text ("" if missing), with paths relative to the data folder.

    Args:
        spec: The dataset.
        file: CSV, TSV or Parquet file.
        folder: Its folder, relative to the data folder.
        columns: Our column -> format string over the table's columns.

    Raises:
        MedtlError: A required column is missing, or a path leaves the folder.
    """
    frame = read_rows(spec, file)
    rows: dict[str, list[str]] = {}
    for name, rule in (columns or SAME_NAMES).items():
        needed = re.findall(r"{(\w+)}", rule)
        if set(needed) <= set(frame.columns):
            rows[name] = [rule.format(**record).strip() for record in to_records(frame)]
        elif name == "file_name":
            raise MedtlError(
                f"{file}: expected a column {needed[0]!r} with image paths relative to the file, found the columns "
                f"{', '.join(map(str, frame.columns[:12]))}. Optional columns: {', '.join(FIELDS[1:])}."
            )
        elif name == "label" and spec.table is None and spec.reader == "table" and not spec.is_segmentation:
            raise MedtlError(f"{file}: expected a column 'label', found {', '.join(map(str, frame.columns[:12]))}.")
        else:
            rows[name] = [""] * len(frame)
    if "label" in rows:
        rows["label"] = [re.sub(r"\s*\|\s*", "|", cell) for cell in rows["label"]]
    for name in ("file_name", "mask"):
        rows[name] = ["|".join(posixpath.normpath(posixpath.join(folder, p)) for p in cell.split("|") if p)
                      for cell in rows[name]]  # fmt: skip
    outside = [path for path in rows["file_name"] if path.startswith(("..", "/"))]
    if outside:
        raise MedtlError(f"{file}: paths must be inside the folder of the file, found {abbreviate(outside)}.")
    return pd.DataFrame(rows)


def read_rows(spec: DatasetSpec, file: Path) -> pd.DataFrame:
    """Read the rows of a table that `spec.keep` selects, all columns as text."""
    try:
        if file.suffix.lower() == ".parquet":
            frame = pd.read_parquet(file).astype("string").fillna("")
        else:
            frame = pd.read_csv(file, sep=None, engine="python", dtype=str, keep_default_na=False)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise MedtlError(f"{file} can't be read as a table ({type(error).__name__}). Use CSV or Parquet.") from error
    for column, pattern in spec.keep.items():
        if column in frame:
            frame = frame[frame[column].str.fullmatch(pattern)]
    return frame


def to_records(frame: pd.DataFrame) -> list[dict[str, str]]:
    """Return a table's rows, column -> cell."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
