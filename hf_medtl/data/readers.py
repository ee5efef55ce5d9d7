"""A folder or table and a row of DATASETS -> one row a picture. Each reader knows one way in which data lie on disk."""

import logging
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from hf_medtl.common.text import some
from hf_medtl.data.images import EXTENSIONS
from hf_medtl.data.specs import DatasetSpec, labels_of
from hf_medtl.errors import MedtlError

logger = logging.getLogger(__name__)

SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
               "validation": "validation", "dev": "validation", "test": "test", "testing": "test"}  # fmt: skip
# Labels that say that nothing was found; of two labels the other one is the positive.
NEGATIVE = r"(?i)(no|non|not|without)([^a-z].*)?|normal.*|negative|healthy|benign|control|0+"
# Cells that say so where a picture can have several labels; NIH ChestX-ray14 has "No Finding".
NOTHING = r"(?i)no[ _-]?findings?|none"
FIELDS = ("file_name", "label", "patient", "source", "mask", "split")

Rows = list[dict[str, str]]


def read_paths(spec: DatasetSpec, root: Path) -> tuple[DatasetSpec, Rows]:
    """Files whose path fits `spec.pattern`, below the first of `spec.roots` that has the most labels."""
    every = files_below(spec, root)
    found: list[tuple[str, re.Match[str]]] = []
    for place in spec.roots:
        below = (re.fullmatch(spec.pattern, path.removeprefix(place)) for path in every if path.startswith(place))
        here = [(place, match) for match in below if match and is_picture(root, place + match[0])]
        if len({match["label"] for _, match in here}) > len({match["label"] for _, match in found}):
            found = here  # the first place with the most labels, and no other: archives hold copies
    if not found:
        raise MedtlError(
            f"{root} does not look like {spec.title}: expected files such as {spec.example}, found {inside(root)}. "
            "Point --data_dir to the unpacked download."
        )
    rows = []
    for place, match in found:
        groups, path = match.groupdict(), match[0]
        rows.append(
            {
                "image_id": path,
                "path": place + path,
                "label": spec.label(groups["label"]) or "",
                "patient": spec.patient_of(path),
                "official": groups.get("split", ""),
                "source": groups.get("source", ""),
                "mask": mask_of(spec, place + path, every),
            }
        )
    return spec, rows


def read_folders(spec: DatasetSpec, root: Path) -> tuple[DatasetSpec, Rows]:
    """Class folders, in split folders or not, below any wrapping folder; and what `metadata.csv` files add to them.

    A folder `masks` holds masks under the pictures' own paths or names, or lies beside the pictures' folder. A file
    `metadata.csv` follows the convention of `datasets`: a column `file_name`, relative to it, and any of label,
    patient, source, mask and split. With | in one of its labels a picture can have several, and folders say nothing
    about them.
    """
    every = files_below(spec, root)
    about = [path for path in every if posixpath.basename(path) == "metadata.csv"]
    if about:
        tables = [described(spec, root / path, posixpath.dirname(path)) for path in about]
        listed = pd.concat(tables, ignore_index=True).fillna("")
    else:
        listed = pd.DataFrame({"file_name": []})
    several = has_several(listed.get("label", []))
    masks = {mask for cell in listed.get("mask", []) for mask in cell.split("|")}
    pictures = [
        path
        for path in every
        if is_picture(root, path) and path not in masks and "masks" not in path.lower().split("/")[:-1]
    ]
    unlisted = sorted(set(pictures) - set(listed["file_name"]))
    if about and unlisted:
        raise MedtlError(
            f"{len(unlisted)} of {len(pictures)} pictures below {root} are not in {', '.join(about)}: "
            f"{some(unlisted)}. Add them, or take them away: patients and labels would be known for some only."
        )
    base, split_level = shape([path.split("/")[:-1] for path in pictures])
    facts = {row["file_name"]: row for row in records(listed)}
    rows, ignored = [], set()
    for path in pictures:
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
                "label": fact.get("label") or (folders[0] if folders and not several else ""),
                "patient": fact.get("patient") or spec.patient_of(path),
                "official": SPLIT_NAMES.get(fact.get("split", "").lower(), "") or official,
                "source": fact.get("source", ""),
                "mask": fact.get("mask") or mask_beside(path, base, every),
            }
        )
    if ignored:
        logger.warning("%s: not in train, validation or test, so left out: %s.", root, some(sorted(ignored)))
    if not rows:
        raise MedtlError(
            f"{root}: expected a folder of pictures for each label, such as {spec.example}, found {inside(root)}."
        )
    bare = sorted(row["path"] for row in rows if not (row["label"] or several or spec.of_masks))
    if bare:
        raise MedtlError(
            f"{root}: {len(bare)} pictures have no label: {some(bare)}. Put them in a folder named after the label, or "
            "add a metadata.csv with the columns file_name and label."
        )
    splits = {row["official"] for row in rows} - {""}
    spec = with_found_labels(spec, root, [row["label"] for row in rows], several)
    logger.info(
        "%s: found the labels %s%s%s.",
        root,
        ", ".join(dict.fromkeys(spec.labels if several else (row["label"] for row in rows))),
        ", any number of them a picture" if several else "",
        f" and the splits {', '.join(sorted(splits))}" if splits else "",
    )
    return spec, [row | {"label": spec.label(row["label"]) or ""} for row in rows]


def read_table(spec: DatasetSpec, root: Path) -> tuple[DatasetSpec, Rows]:
    """A CSV or Parquet table; `spec.columns` says how its columns give ours, `spec.keep` which rows are meant.

    With | in one of the labels a picture can have several, or with an empty cell none.
    """
    file = root / spec.table if spec.table else root
    folder = file.parent
    if not file.is_file():
        found = inside(root) if root.is_dir() else "no such file"
        raise MedtlError(f"{spec.title}: expected the table {file}, found {found}. Give it with --data_dir.")
    frame = described(spec, file, "", {**{name: f"{{{name}}}" for name in FIELDS}, **spec.columns})
    pictures = frame["file_name"].tolist()
    every = files_below(spec, folder)
    missing = sorted(set(pictures) - every)
    if len(missing) == len(pictures):
        raise MedtlError(f"{file}: none of its {len(pictures)} files is in {folder}, such as {some(missing)}.")
    several = has_several(frame["label"])
    if "" in set(frame["label"]) and not (several or spec.of_masks):
        raise MedtlError(
            f"{file}: {(frame['label'] == '').sum()} rows have no label. Fill in the column label. (An empty cell "
            "means that there is none only where another has several, with | between them.)"
        )
    spec = with_found_labels(spec, file, frame["label"].tolist(), several)
    rows = [
        {
            "image_id": row["file_name"],
            "path": row["file_name"],
            "label": f"?{row['label']}" if (label := spec.label(row["label"])) is None else label,
            "patient": row["patient"],
            "official": SPLIT_NAMES.get(row["split"].lower(), row["split"]),
            "source": row["source"],
            "mask": row["mask"] or mask_of(spec, row["file_name"], every),
        }
        for row in records(frame)
    ]
    return spec, rows


READERS: dict[str, Callable[[DatasetSpec, Path], tuple[DatasetSpec, Rows]]] = {
    "paths": read_paths,
    "folders": read_folders,
    "table": read_table,
}


def described(spec: DatasetSpec, file: Path, folder: str, columns: dict[str, str] | None = None) -> pd.DataFrame:
    """The rows of a table with the columns FIELDS as text, "" where there is nothing; paths below the data folder.

    Args:
        file: CSV, TSV or Parquet.
        folder: where it lies below the data folder.
        columns: ours -> format string over the table's.
    """
    frame = meant(spec, file)
    columns = columns or {name: f"{{{name}}}" for name in FIELDS}
    rows: dict[str, list[str]] = {}
    for ours, rule in columns.items():
        needed = re.findall(r"{(\w+)}", rule)
        if set(needed) <= set(frame.columns):
            rows[ours] = [rule.format(**record).strip() for record in records(frame)]
        elif ours == "file_name":
            raise MedtlError(
                f"{file}: expected a column {needed[0]!r} with the pictures' paths relative to it, found the columns "
                f"{', '.join(map(str, frame.columns[:12]))}. Others that are used: {', '.join(FIELDS[1:])}."
            )
        elif ours == "label" and spec.table is None and spec.reader == "table" and not spec.of_masks:
            raise MedtlError(f"{file}: expected a column 'label', found {', '.join(map(str, frame.columns[:12]))}.")
        else:
            rows[ours] = [""] * len(frame)
    if "label" in rows:
        rows["label"] = [re.sub(r"\s*\|\s*", "|", cell) for cell in rows["label"]]
    for name in ("file_name", "mask"):
        rows[name] = ["|".join(posixpath.normpath(posixpath.join(folder, p)) for p in cell.split("|") if p)
                      for cell in rows[name]]  # fmt: skip
    outside = [path for path in rows["file_name"] if path.startswith(("..", "/"))]
    if outside:
        raise MedtlError(f"{file}: paths must lie below its own folder, found {some(outside)}.")
    return pd.DataFrame(rows)


def meant(spec: DatasetSpec, file: Path) -> pd.DataFrame:
    """The rows of a table that `spec.keep` means, all columns as text."""
    try:
        if file.suffix.lower() == ".parquet":
            frame = pd.read_parquet(file).astype("string").fillna("")
        else:
            frame = pd.read_csv(file, sep=None, engine="python", dtype=str, keep_default_na=False)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise MedtlError(f"{file} can't be read as a table ({type(error).__name__}). Give CSV or Parquet.") from error
    for column, wanted in spec.keep.items():
        if column in frame:
            frame = frame[frame[column].str.fullmatch(wanted)]
    return frame


def tables(spec: DatasetSpec, place: Path) -> pd.DataFrame:
    """All that a data set's tables say of its pictures, as text, by their paths below the data folder; may be empty."""
    columns = None
    files = sorted(place.rglob("metadata.csv")) if place.is_dir() else []
    if spec.reader == "table":
        files, columns = [place / spec.table if spec.table else place], {"file_name": "{file_name}", **spec.columns}
    elif spec.reader != "folders":
        files = []
    found = [pd.DataFrame()]
    for file in files:
        folder = "" if columns else file.parent.relative_to(place).as_posix()
        listed = described(spec, file, folder, {**{name: f"{{{name}}}" for name in FIELDS}, **(columns or {})})
        found.append(meant(spec, file).set_axis(listed["file_name"], axis=0))
    whole = pd.concat(found)
    return whole[~whole.index.duplicated()].fillna("")


def records(frame: pd.DataFrame) -> list[dict[str, str]]:
    """The rows of a table of text."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def has_several(cells: Iterable[str]) -> bool:
    """Whether a picture can have several labels: one cell with | says so for all."""
    return any("|" in cell for cell in cells)


def with_found_labels(spec: DatasetSpec, place: Path, found: Sequence[str], several: bool = False) -> DatasetSpec:
    """The spec with the labels that were found, where it does not name its own.

    Raises:
        MedtlError: fewer than two, others than a spec with labels of its own can tell apart, or with several a picture
            one that says that there is none.
    """
    if several and not spec.labels:
        spec = replace(spec, several=True)
        both = [cell for cell in found if "|" in cell and any(re.fullmatch(NOTHING, name) for name in labels_of(cell))]
        if both:
            raise MedtlError(f"{place}: {len(both)} pictures have a label and none: {some(both, 3)}. Mend the table.")
        found = [name for cell in found for name in labels_of(cell) if not re.fullmatch(NOTHING, name)]
    names = sorted({*found} - {""}, key=lambda name: (not re.fullmatch(NEGATIVE, name), name))
    if spec.labels:
        told = [spec.label(name) for name in names]
        if spec.reader == "folders" and sorted(filter(None, told)) != sorted(spec.labels):
            raise MedtlError(
                f"{place}: expected a folder for each of {', '.join(spec.labels)} ({spec.example}), found "
                f"{', '.join(names)}, of which {spec.title} can't tell which is which. Rename the folders, or use "
                "--dataset imagefolder, which takes the labels as they are named."
            )
        return spec
    if any("|" in name for name in names):
        raise MedtlError(f"{place}: a folder's name can't have a |, found {some(names)}. Tell several labels a picture "
                         "in a metadata.csv with the columns file_name and label.")  # fmt: skip
    if len(names) < 2 and not spec.of_masks:
        raise MedtlError(f"{place}: a classifier needs at least two labels, found {', '.join(names) or 'none'}.")
    positive = names[1] if len(names) == 2 and not spec.several else None
    return replace(spec, labels=tuple(names), values={re.escape(name): name for name in names}, positive=positive)


def shape(folders: list[list[str]]) -> tuple[int, int]:
    """(number of wrapping folders, 1 if the next level are splits else 0) of pictures in these folders."""
    base = 0
    while True:
        level = {parts[base] for parts in folders if len(parts) > base}
        deeper = any(len(parts) > base + 1 for parts in folders)
        if len(level) != 1 or not deeper:
            break
        base += 1
    return base, int("train" in {SPLIT_NAMES.get(name.lower()) for name in level})


def mask_of(spec: DatasetSpec, path: str, every: set[str]) -> str:
    """The first of the spec's mask rules whose files are all there: their paths, with | between them; else ""."""
    name = Path(path)
    for rule in spec.masks:
        parts = rule.format(folder=name.parent.as_posix(), name=name.name, stem=name.stem).split("|")
        parts = [posixpath.normpath(part) for part in parts]
        if all(part in every for part in parts):
            return "|".join(parts)
    return ""


def mask_beside(path: str, base: int, every: set[str]) -> str:
    """`masks/` + the picture's path below the wrapping folders, or its name, there or beside its folder; else ""."""
    parts = path.split("/")
    for place, below in ((parts[:base], parts[base:]), (parts[:base], parts[-1:]), (parts[:-2], parts[-1:])):
        mask = "/".join([*place, "masks", *below])
        if mask in every:
            return mask
    return ""


def files_below(spec: DatasetSpec, root: Path) -> set[str]:
    """Every path below the data folder, with /, hidden files and macOS' `__MACOSX` left out."""
    if not root.is_dir():
        raise MedtlError(f"{root} is not a folder. Give the folder of {spec.title} with --data_dir.")
    paths = (path.relative_to(root) for path in root.rglob("*"))
    return {p.as_posix() for p in paths if not any(part.startswith((".", "__MACOSX")) for part in p.parts)}


def is_picture(root: Path, path: str) -> bool:
    """Whether a file's name is a picture's, or, as DICOM files are often named, a number or bare, and DICOM inside."""
    if path.lower().endswith(EXTENSIONS):
        return True
    if not re.fullmatch(r"(\.\d+)?", Path(path).suffix) or not (root / path).is_file():
        return False
    with (root / path).open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def inside(root: Path) -> str:
    """The first names in a folder, for error messages."""
    return some(sorted(p.name + "/" * p.is_dir() for p in root.iterdir())) or "an empty folder"
