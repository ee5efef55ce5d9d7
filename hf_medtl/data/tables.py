"""Tables of images: files with one row per image, alone or beside folders of images as `metadata.csv`."""

import logging
import posixpath
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from hf_medtl.common.text import abbreviate
from hf_medtl.data.columns import (
    ALIASES,
    FIELDS,
    apply_rule,
    check_header,
    choose_columns,
    column_names,
    columns_of,
    plain_name,
    sample_cells,
)
from hf_medtl.data.images import EXTENSIONS
from hf_medtl.data.label_cells import clean_patients, indicator_columns, merge_rows, read_cells, read_indicators
from hf_medtl.data.labels import discover_labels
from hf_medtl.data.listing import list_folder, list_paths
from hf_medtl.data.masks import find_mask, group_by_stem, pair_masks
from hf_medtl.data.specs import DatasetSpec
from hf_medtl.data.split_names import parse_split
from hf_medtl.data.table_files import TABLE_SUFFIXES, read_table_file
from hf_medtl.data.table_layout import find_tables, read_split_lists
from hf_medtl.data.table_paths import TablePaths
from hf_medtl.errors import MedtlError

logger = logging.getLogger(__name__)

METADATA_NAMES = tuple(f"metadata{suffix}" for suffix in TABLE_SUFFIXES if suffix != ".txt")  # beside folders

Rows = list[dict[str, str]]


def read_table(spec: DatasetSpec, root: Path) -> tuple[DatasetSpec, Rows]:
    """Read a table, with `spec.columns` stating its columns and `spec.keep` filtering its rows.

    A | in one of the labels marks the data as multilabel; an empty cell then means no label.

    Raises:
        MedtlError: The table or its images are missing, it lacks columns or labels, or has fewer than two labels.
    """
    if spec.table:
        root = root.parent if root.is_file() else root
        paths = list_paths(root)
        files = find_tables(spec, root, paths)
    else:
        if not root.is_file():
            content = list_folder(root) if root.is_dir() else "no such file"
            raise MedtlError(f"{spec.title}: expected the table {root}, found {content}. Specify it with --data_dir.")
        root, files = root.parent, [root.name]
        paths = list_paths(root)
    file = root / files[0]
    official = read_split_lists(spec, root, paths)
    spec, frame = read_listing(spec, root, files, paths)
    multilabel = any("|" in cell for cell in frame["label"])
    if "" in set(frame["label"]) and not (multilabel or spec.is_segmentation):
        raise MedtlError(
            f"{file}: {(frame['label'] == '').sum()} rows have no label. Fill in the column label. (An empty cell "
            "means that there is no label only if another cell has multiple labels separated by |.)"
        )
    spec = discover_labels(spec, file, frame["label"].tolist(), multilabel)
    stems = group_by_stem(paths)
    named = {} if spec.masks or frame["mask"].any() else _masks_by_name(frame["file_name"].tolist(), paths)
    rows = [
        {
            "image_id": row["file_name"],
            "path": row["file_name"],
            "label": map_label(spec, row["label"]),
            "patient": row["patient"] or spec.parse_patient(row["file_name"]),
            "official": row["split"] or official.get(posixpath.basename(row["file_name"]), ""),
            "source": row["source"],
            "mask": row["mask"] or find_mask(spec, row["file_name"], stems) or named.get(row["file_name"], ""),
        }
        for row in to_records(frame)
    ]
    return spec, rows


def _masks_by_name(images: Sequence[str], paths: Sequence[str]) -> dict[str, str]:
    """Return image -> its masks, joined by |, for masks that are recognized by name and are no images of the table."""
    listed = {*images}
    pairs, _ = pair_masks(sorted({path for path in paths if path.lower().endswith(EXTENSIONS)} | listed))
    return {image: cell for image, cell in pairs.items() if image in listed and listed.isdisjoint(cell.split("|"))}


def find_metadata(paths: Sequence[str]) -> list[str]:
    """Return the tables beside folders of images: `metadata.csv`, or another format that `read_table_file` knows."""
    return [path for path in paths if posixpath.basename(path).lower() in METADATA_NAMES]


def read_listing(
    spec: DatasetSpec, root: Path, files: Sequence[str], paths: Sequence[str]
) -> tuple[DatasetSpec, pd.DataFrame]:
    """Read tables into one row per image, and add to `spec.notes` how they were read.

    Args:
        spec: The dataset.
        root: The data folder.
        files: The tables, relative to it. Paths in a table are relative to its folder.
        paths: All files of the data folder.

    Returns:
        The dataset, and the columns FIELDS as text ("" if missing), with paths relative to the data folder and splits
        as ours.

    Raises:
        MedtlError: A table can't be read, lacks a column, or contradicts itself; its files are missing or outside.
    """
    index, notes, warnings, frames = TablePaths(root, paths), list[str](), list[str](), list[pd.DataFrame]()
    for file in files:
        frame, more, doubts = _read_images(spec, index, file)
        frames, notes, warnings = [*frames, frame], [*notes, *more], [*warnings, *doubts]
    for file, frame in zip(files, frames, strict=True):
        if len(files) > 1 and not frame["split"].any():  # train.csv and valid.csv
            frame["split"] = parse_split(posixpath.basename(file).partition(".")[0]) or ""
    frame = pd.concat([pd.DataFrame(columns=list(FIELDS), dtype=str), *frames], ignore_index=True).fillna("")
    multilabel = spec.multilabel or any("|" in cell for cell in frame["label"])
    frame, merged = merge_rows(frame, ", ".join(files), multilabel)
    missing = sorted(set(frame["file_name"]) - index.paths)
    if missing and len(missing) == len(frame):
        raise MedtlError(
            f"{root / files[0]}: none of its {len(frame)} files is in {root}, such as {abbreviate(missing, 5)}. Move "
            "the table to the folder that its paths are relative to."
        )
    if missing:
        number = f"{len(missing)} of {len(frame)} files are missing"
        warnings.append(f"{', '.join(files)}: {number}: {abbreviate(missing, 5)}.")
        if spec.table:  # a part of a large public dataset was downloaded
            frame = frame[frame["file_name"].isin(index.paths)].reset_index(drop=True)
    notes += merged
    for text in notes:
        logger.info("%s", text)
    for text in warnings:
        logger.warning("%s", text)
    return replace(spec, notes=(*spec.notes, *notes, *warnings)), frame


def read_metadata(spec: DatasetSpec, path: Path) -> pd.DataFrame:
    """Return all columns of a dataset's tables as text, indexed by image path below the data folder; may be empty.

    Args:
        spec: The dataset.
        path: Its data folder, or its table.

    Raises:
        MedtlError: A table can't be read.
    """
    root = path if path.is_dir() else path.parent
    if spec.reader == "paths":
        return pd.DataFrame()
    paths = list_paths(root)
    if spec.reader == "folders":
        files = find_metadata(paths)
    else:
        files = find_tables(spec, root, paths) if spec.table else [path.name]
    index, tables = TablePaths(root, paths), [pd.DataFrame()]
    for file in files:
        names = _read_images(spec, index, file)[0]["file_name"]
        tables.append(_read_rows(spec, root / file).set_axis(names, axis=0))
    table = pd.concat(tables)
    return table[~table.index.duplicated()].fillna("")


def to_records(frame: pd.DataFrame) -> list[dict[str, str]]:
    """Return a table's rows, column -> cell."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def map_label(spec: DatasetSpec, cell: str) -> str:
    """Return the label of a cell; one that begins with ? excludes the image."""
    label = None if cell.startswith("?") else spec.map_label(cell)
    return f"?{cell.removeprefix('?')}" if label is None else label


def _read_rows(spec: DatasetSpec, file: Path) -> pd.DataFrame:
    """Read the rows of a table that `spec.keep` selects, all columns as text."""
    frame = read_table_file(file)
    for column, pattern in spec.keep.items():
        if column in frame:
            frame = frame[frame[column].str.fullmatch(pattern)]
    return frame.reset_index(drop=True)


def _read_images(spec: DatasetSpec, index: TablePaths, file: str) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Return the rows of one table as in `read_listing`, not merged, notes on how they were read, and warnings."""
    table, folder = str(index.root / file), posixpath.dirname(file)
    frame = _read_rows(spec, index.root / file)

    def has_file(cell: str) -> bool:
        return any(index.find(part, folder, mask) for part in cell.split("|") for mask in (False, True))

    guess = [] if spec.table else [name for name in FIELDS if name != "label" or spec.reader == "table"]
    check_header(column_names(frame), has_file, table)
    columns = choose_columns(frame, spec.columns, has_file, file, guess)
    rules = columns.rules
    if "file_name" not in rules:
        fitting = (column for column in column_names(frame) if any(map(has_file, sample_cells(frame[column]))))
        raise MedtlError(
            f"{table}: expected a column 'file_name' with image paths relative to the file, found the columns "
            f"{abbreviate(column_names(frame), 12)}. Name it, such as --columns "
            f"file_name={next(fitting, frame.columns[0])}. Optional columns: {', '.join(FIELDS[1:])}."
        )
    if "label" not in rules and spec.reader == "table" and not spec.is_segmentation:
        labels = {
            "label": _guess_indicators(frame, table, {column for rule in rules.values() for column in columns_of(rule)})
        }
        columns = choose_columns(frame, spec.columns | labels, has_file, file, guess)
        rules = columns.rules
    rows = {name: apply_rule(frame, rules[name]) if name in rules else [""] * len(frame) for name in FIELDS}
    sentences, warnings = [*columns.notes], [*columns.warnings]
    if len(names := columns_of(rules.get("label", ""))) > 1 and "{" not in rules["label"]:
        rows["label"], note = read_indicators(frame, names, spec.uncertain, file)
        sentences.append(note)
    elif not spec.labels:
        rows["label"], doubts = read_cells(rows["label"], file)
        warnings += doubts
    rows["patient"] = clean_patients(rows["patient"])
    if any(rows["patient"]) and (unknown := rows["patient"].count("")) and not spec.table:
        warnings.append(
            f"{file}: {unknown} of {len(frame)} rows have no patient; each is taken for a patient of its own."
        )
    if common := _patient_of_most(rows["patient"]):
        warnings.append(
            f"{file}: {rows['patient'].count(common)} of {len(frame)} rows have the patient {common!r}. If that stands "
            "for unknown patients, leave the cells empty: else their images all stay in one split."
        )
    rows["split"] = _parse_splits(spec, rows["split"], table)
    rows["file_name"], more = _find_images(rows["file_name"], index, file)
    rows["mask"] = _find_masks(rows["mask"], index, file)
    pairs = zip(rows["file_name"], rows["mask"], strict=True)
    if own := sorted({name for name, mask in pairs if name in mask.split("|")}):
        raise MedtlError(f"{table}: {len(own)} images are their own masks: {abbreviate(own, 3)}. Correct the paths.")
    return pd.DataFrame(rows), [*sentences, *more], warnings


def _patient_of_most(patients: Sequence[str]) -> str:
    """Return the patient of more than half of the rows, if there are at least two others; "" for none."""
    counts = Counter(filter(None, patients)).most_common(1)
    return counts[0][0] if len({*patients} - {""}) > 2 and counts[0][1] > len(patients) / 2 else ""


def _guess_indicators(frame: pd.DataFrame, table: str, taken: Container[str] = ()) -> str:
    """Return the rule for labels in columns of 0 and 1 with a single 1 in each row; `taken` are other fields' columns.

    Raises:
        MedtlError: There are no such columns, so there is no label.
    """
    names = indicator_columns(frame)
    ones = frame[names].apply(lambda cells: cells.str.lower().isin(("1", "1.0", "true", "yes"))).sum(axis=1)
    if len(names) > 1 and bool((ones == 1).all()):
        return "+".join(names)
    free = [column for column in column_names(frame) if column not in taken]
    empty = [column for column in free if plain_name(column) in ALIASES["label"] and not frame[column].any()]
    repeated = [column for column in free if 1 < frame[column].nunique() <= max(2, len(frame) // 2)]
    hint = f"Choose one, such as --columns label={(repeated or ['NAME'])[0]}."
    if empty:
        hint = f"The column {empty[0]} is empty: fill it, or choose another one with --columns label=NAME."
    if len(names) > 1:
        hint = f"If columns of 0 and 1 are the labels, join them by +: --columns label={'+'.join(names)}"
    raise MedtlError(f"{table}: expected a column 'label', found {abbreviate(column_names(frame), 12)}. {hint}")


def _parse_splits(spec: DatasetSpec, cells: list[str], table: str) -> list[str]:
    """Return our names of splits, or those that `spec.official` knows.

    Raises:
        MedtlError: A split of an unknown name.
    """
    names = {cell: cell if cell in spec.official else parse_split(cell) or "" for cell in set(cells)}
    if "train" not in names.values():  # beside a test or hold-out set, development is training
        names |= {cell: "train" for cell in names if cell.lower().startswith("development")}
    unknown = sorted(cell for cell, name in names.items() if cell and not name)
    if unknown:
        raise MedtlError(
            f"{table}: expected splits such as train, validation and test, found {abbreviate(unknown, 6)} in the "
            "column of the split. Rename them, or, to ignore it, the column."
        )
    return [names[cell] for cell in cells]


def _find_images(cells: list[str], index: TablePaths, file: str) -> tuple[list[str], list[str]]:
    """Return the path of each image (as stated if it is missing), and notes.

    Raises:
        MedtlError: Paths lead out of the data folder; different cells mean the same file.
    """
    folder = posixpath.dirname(file)
    if "" in cells:
        raise MedtlError(f"{index.root / file}: {cells.count('')} rows name no file. Fill in or remove them.")
    stated = {cell: index.join(cell, folder) for cell in dict.fromkeys(cells)}
    files = {cell: index.find(cell, folder) or path for cell, path in stated.items()}
    outside = [cell for cell, path in stated.items() if index.is_outside(path)]
    if outside:
        raise MedtlError(
            f"{index.root / file}: paths must be inside the folder of the file, found {abbreviate(outside, 5)}. Move "
            "the table to a folder that contains the images, and give it there."
        )
    guessed = [cell for cell, path in files.items() if path != stated[cell]]
    owners: dict[str, set[str]] = {}
    for cell, path in files.items():
        owners.setdefault(path, set()).add(stated[cell])
    shared = next((path for path, names in owners.items() if len(names) > 1), None)
    if shared is not None:
        raise MedtlError(
            f"{index.root / file}: {abbreviate(sorted(owners[shared]), 3)} would all be the file {shared}. Correct the "
            "paths in the table."
        )
    notes = []
    if guessed:
        notes.append(f"{file}: {len(guessed)} files are found by name, such as {files[guessed[0]]} for {guessed[0]}.")
    return [files[cell] for cell in cells], notes


def _find_masks(cells: list[str], index: TablePaths, file: str) -> list[str]:
    """Return the paths of each image's masks, joined by |.

    Raises:
        MedtlError: A mask is missing.
    """
    folder = posixpath.dirname(file)
    parts = {part for cell in cells for part in cell.split("|") if part}
    files = {part: index.find(part, folder, mask=True) for part in parts}
    missing = sorted(part for part, path in files.items() if not path)
    if missing:
        raise MedtlError(
            f"{index.root / file}: {len(missing)} of {len(parts)} masks are missing: {abbreviate(missing, 5)}. Correct "
            "the paths, which are relative to the table, or leave the cells empty."
        )
    return ["|".join(files[part] for part in cell.split("|") if part) for cell in cells]
