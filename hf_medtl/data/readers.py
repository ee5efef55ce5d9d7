"""Dataset readers: one row per image from a folder or table; each reader handles one file layout."""

import logging
import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from hf_medtl.common.text import abbreviate
from hf_medtl.data.images import EXTENSIONS
from hf_medtl.data.specs import DatasetSpec, split_labels
from hf_medtl.errors import MedtlError

logger = logging.getLogger(__name__)

SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
               "validation": "validation", "dev": "validation", "test": "test", "testing": "test"}  # fmt: skip
# Names of a negative class; of two labels the other one is then the positive.
NEGATIVE_LABELS = r"(?i)(no|non|not|without)([^a-z].*)?|normal.*|negative|healthy|benign|control|0+"
# Cells of multilabel data that mean "no label"; NIH ChestX-ray14 has "No Finding".
NO_FINDING = r"(?i)no[ _-]?findings?|none"
FIELDS = ("file_name", "label", "patient", "source", "mask", "split")
SAME_NAMES = {name: f"{{{name}}}" for name in FIELDS}  # columns called as ours, as `DatasetSpec.columns` has them

Rows = list[dict[str, str]]


def read_paths(spec: DatasetSpec, root: Path) -> tuple[DatasetSpec, Rows]:
    """Read files whose path matches `spec.pattern`, below the first of `spec.roots` that has the most labels.

    Raises:
        MedtlError: No file matches.
    """
    paths = _list_paths(spec, root)
    matches: list[tuple[str, re.Match[str]]] = []
    for prefix in spec.roots:
        below = (re.fullmatch(spec.pattern, path.removeprefix(prefix)) for path in paths if path.startswith(prefix))
        candidates = [(prefix, match) for match in below if match and is_image_file(root, prefix + match[0])]
        if len({match["label"] for _, match in candidates}) > len({match["label"] for _, match in matches}):
            matches = candidates  # only the first root with the most labels: archives contain copies
    if not matches:
        raise MedtlError(
            f"{root} does not look like {spec.title}: expected files such as {spec.example}, found "
            f"{_list_folder(root)}. Set --data_dir to the unpacked download."
        )
    rows = []
    for prefix, match in matches:
        groups, path = match.groupdict(), match[0]
        rows.append(
            {
                "image_id": path,
                "path": prefix + path,
                "label": spec.map_label(groups["label"]) or "",
                "patient": spec.parse_patient(path),
                "official": groups.get("split", ""),
                "source": groups.get("source", ""),
                "mask": _find_mask(spec, prefix + path, paths),
            }
        )
    return spec, rows


def read_folders(spec: DatasetSpec, root: Path) -> tuple[DatasetSpec, Rows]:
    """Read class folders, with or without split folders, below any wrapping folders, and `metadata.csv` files.

    A folder `masks` contains masks with the paths or names of the images, or is a sibling of the images' folder. A
    `metadata.csv` follows the convention of `datasets`: a column `file_name`, relative to it, and any of label,
    patient, source, mask and split. A | in one of its labels marks the data as multilabel, and folder names are then
    not used as labels.

    Raises:
        MedtlError: Images without label or metadata, no images, or fewer than two labels.
    """
    paths = _list_paths(spec, root)
    metadata_files = [path for path in paths if posixpath.basename(path) == "metadata.csv"]
    if metadata_files:
        tables = [_read_columns(spec, root / path, posixpath.dirname(path)) for path in metadata_files]
        metadata = pd.concat(tables, ignore_index=True).fillna("")
    else:
        metadata = pd.DataFrame({"file_name": []})
    multilabel = any("|" in cell for cell in metadata.get("label", []))
    masks = {mask for cell in metadata.get("mask", []) for mask in cell.split("|")}
    images = [
        path
        for path in paths
        if is_image_file(root, path) and path not in masks and "masks" not in path.lower().split("/")[:-1]
    ]
    unlisted = sorted(set(images) - set(metadata["file_name"]))
    if metadata_files and unlisted:
        raise MedtlError(
            f"{len(unlisted)} of {len(images)} images below {root} are not listed in {', '.join(metadata_files)}: "
            f"{abbreviate(unlisted)}. Add or remove them: patients and labels would be known for some images only."
        )
    base, split_level = _folder_levels([path.split("/")[:-1] for path in images])
    facts = {row["file_name"]: row for row in _to_records(metadata)}
    rows, ignored = [], set()
    for path in images:
        parts, fact = path.split("/")[base:-1], facts.get(path, {})
        official = SPLIT_NAMES.get(parts[0].lower(), "") if split_level and parts else ""
        if split_level and not official:
            ignored.add(parts[0] if parts else path)
            continue
        folders = parts[split_level:]
        rows.append(
            {
                "image_id": "/".join(path.split("/")[base:]),
                "path": path,
                "label": fact.get("label") or (folders[0] if folders and not multilabel else ""),
                "patient": fact.get("patient") or spec.parse_patient(path),
                "official": SPLIT_NAMES.get(fact.get("split", "").lower(), "") or official,
                "source": fact.get("source", ""),
                "mask": fact.get("mask") or _find_mask_folder(path, base, paths),
            }
        )
    if ignored:
        logger.warning("%s: not in train, validation or test, so excluded: %s.", root, abbreviate(sorted(ignored)))
    if not rows:
        raise MedtlError(
            f"{root}: expected a folder of images for each label, such as {spec.example}, found {_list_folder(root)}."
        )
    bare = sorted(row["path"] for row in rows if not (row["label"] or multilabel or spec.is_segmentation))
    if bare:
        raise MedtlError(
            f"{root}: {len(bare)} images have no label: {abbreviate(bare)}. Put them in a folder named after the "
            "label, or add a metadata.csv with the columns file_name and label."
        )
    splits = {row["official"] for row in rows} - {""}
    spec = _discover_labels(spec, root, [row["label"] for row in rows], multilabel)
    logger.info(
        "%s: found the labels %s%s%s.",
        root,
        ", ".join(dict.fromkeys(spec.labels if multilabel else (row["label"] for row in rows))),
        ", any number of them per image" if multilabel else "",
        f" and the splits {', '.join(sorted(splits))}" if splits else "",
    )
    return spec, [row | {"label": spec.map_label(row["label"]) or ""} for row in rows]


def read_table(spec: DatasetSpec, root: Path) -> tuple[DatasetSpec, Rows]:
    """Read a CSV or Parquet table, with `spec.columns` mapping its columns and `spec.keep` filtering its rows.

    A | in one of the labels marks the data as multilabel; an empty cell then means no label.

    Raises:
        MedtlError: The table or its images are missing, it lacks columns or labels, or has fewer than two labels.
    """
    file = root / spec.table if spec.table else root
    folder = file.parent
    if not file.is_file():
        content = _list_folder(root) if root.is_dir() else "no such file"
        raise MedtlError(f"{spec.title}: expected the table {file}, found {content}. Specify it with --data_dir.")
    frame = _read_columns(spec, file, "", SAME_NAMES | spec.columns)
    images = frame["file_name"].tolist()
    paths = _list_paths(spec, folder)
    missing = sorted(set(images) - paths)
    if len(missing) == len(images):
        raise MedtlError(f"{file}: none of its {len(images)} files is in {folder}, such as {abbreviate(missing)}.")
    multilabel = any("|" in cell for cell in frame["label"])
    if "" in set(frame["label"]) and not (multilabel or spec.is_segmentation):
        raise MedtlError(
            f"{file}: {(frame['label'] == '').sum()} rows have no label. Fill in the column label. (An empty cell "
            "means that there is no label only if another cell has multiple labels separated by |.)"
        )
    spec = _discover_labels(spec, file, frame["label"].tolist(), multilabel)
    rows = [
        {
            "image_id": row["file_name"],
            "path": row["file_name"],
            "label": f"?{row['label']}" if (label := spec.map_label(row["label"])) is None else label,
            "patient": row["patient"],
            "official": SPLIT_NAMES.get(row["split"].lower(), row["split"]),
            "source": row["source"],
            "mask": row["mask"] or _find_mask(spec, row["file_name"], paths),
        }
        for row in _to_records(frame)
    ]
    return spec, rows


READERS: dict[str, Callable[[DatasetSpec, Path], tuple[DatasetSpec, Rows]]] = {
    "paths": read_paths,
    "folders": read_folders,
    "table": read_table,
}


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
        names = _read_columns(spec, file, folder, SAME_NAMES | (columns or {}))["file_name"]
        tables.append(_read_rows(spec, file).set_axis(names, axis=0))
    table = pd.concat(tables)
    return table[~table.index.duplicated()].fillna("")


def is_image_file(root: Path, path: str) -> bool:
    """True for an image's file name, or for a bare or numeric name (common for DICOM) with DICOM content."""
    if path.lower().endswith(EXTENSIONS):
        return True
    if not re.fullmatch(r"(\.\d+)?", Path(path).suffix) or not (root / path).is_file():
        return False
    with (root / path).open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _read_columns(spec: DatasetSpec, file: Path, folder: str, columns: dict[str, str] | None = None) -> pd.DataFrame:
    """Read a table into the columns FIELDS as text ("" if missing), with paths relative to the data folder.

    Args:
        spec: The dataset.
        file: CSV, TSV or Parquet file.
        folder: Its folder, relative to the data folder.
        columns: Our column -> format string over the table's columns.

    Raises:
        MedtlError: A required column is missing, or a path leaves the folder.
    """
    frame = _read_rows(spec, file)
    rows: dict[str, list[str]] = {}
    for name, rule in (columns or SAME_NAMES).items():
        needed = re.findall(r"{(\w+)}", rule)
        if set(needed) <= set(frame.columns):
            rows[name] = [rule.format(**record).strip() for record in _to_records(frame)]
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


def _read_rows(spec: DatasetSpec, file: Path) -> pd.DataFrame:
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


def _to_records(frame: pd.DataFrame) -> list[dict[str, str]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _discover_labels(spec: DatasetSpec, path: Path, values: Sequence[str], multilabel: bool = False) -> DatasetSpec:
    """Return the spec with the labels found in the data, unless it defines its own.

    Args:
        spec: The dataset.
        path: File or folder with the labels, for errors.
        values: Labels of the images as the data spell them.
        multilabel: True if the values can hold any number of labels, separated by |.

    Raises:
        MedtlError: Fewer than two labels, folders that don't match the labels of the spec, or (multilabel) images with
            both a label and "no finding".
    """
    if multilabel and not spec.labels:
        spec = replace(spec, several=True)
        both = [cell for cell in values if "|" in cell and any(re.fullmatch(NO_FINDING, n) for n in split_labels(cell))]
        if both:
            raise MedtlError(
                f"{path}: {len(both)} images have a label and no finding: {abbreviate(both, 3)}. Correct the table."
            )
        values = [name for cell in values for name in split_labels(cell) if not re.fullmatch(NO_FINDING, name)]
    names = sorted({*values} - {""}, key=lambda name: (not re.fullmatch(NEGATIVE_LABELS, name), name))
    if spec.labels:
        if spec.reader == "folders" and sorted(filter(None, map(spec.map_label, names))) != sorted(spec.labels):
            raise MedtlError(
                f"{path}: expected a folder for each of {', '.join(spec.labels)} ({spec.example}), found "
                f"{', '.join(names)}, which can't be matched to the labels of {spec.title}. Rename the folders, or use "
                "--dataset imagefolder, which takes folder names as labels."
            )
        return spec
    if any("|" in name for name in names):
        raise MedtlError(
            f"{path}: folder names can't contain a |, found {abbreviate(names)}. Put multiple labels per image into a "
            "metadata.csv with the columns file_name and label."
        )
    if len(names) < 2 and not spec.is_segmentation:
        raise MedtlError(f"{path}: a classifier needs at least two labels, found {', '.join(names) or 'none'}.")
    positive = names[1] if len(names) == 2 and not spec.multilabel else None
    return replace(spec, labels=tuple(names), values={re.escape(name): name for name in names}, positive=positive)


def _folder_levels(folders: list[list[str]]) -> tuple[int, int]:
    """Return the number of wrapping folders, and 1 if the next level are splits, else 0."""
    base = 0
    while True:
        level = {parts[base] for parts in folders if len(parts) > base}
        deeper = any(len(parts) > base + 1 for parts in folders)
        if len(level) != 1 or not deeper:
            break
        base += 1
    return base, int("train" in {SPLIT_NAMES.get(name.lower()) for name in level})


def _find_mask(spec: DatasetSpec, path: str, paths: set[str]) -> str:
    """Return the paths, joined by |, of the first mask rule of the spec whose files all exist; else ""."""
    image = Path(path)
    for rule in spec.masks:
        parts = rule.format(folder=image.parent.as_posix(), name=image.name, stem=image.stem).split("|")
        parts = [posixpath.normpath(part) for part in parts]
        if all(part in paths for part in parts):
            return "|".join(parts)
    return ""


def _find_mask_folder(path: str, base: int, paths: set[str]) -> str:
    """Return `masks/` + the image's path below the wrapping folders, or its name, there or in a sibling; else ""."""
    parts = path.split("/")
    for above, below in ((parts[:base], parts[base:]), (parts[:base], parts[-1:]), (parts[:-2], parts[-1:])):
        mask = "/".join([*above, "masks", *below])
        if mask in paths:
            return mask
    return ""


def _list_paths(spec: DatasetSpec, root: Path) -> set[str]:
    """Return all POSIX paths below the data folder, without hidden files and macOS' `__MACOSX`."""
    if not root.is_dir():
        raise MedtlError(f"{root} is not a folder. Specify the folder of {spec.title} with --data_dir.")
    paths = (path.relative_to(root) for path in root.rglob("*"))
    return {p.as_posix() for p in paths if not any(part.startswith((".", "__MACOSX")) for part in p.parts)}


def _list_folder(root: Path) -> str:
    """Return the first names in a folder, for error messages."""
    return abbreviate(sorted(p.name + "/" * p.is_dir() for p in root.iterdir())) or "an empty folder"
