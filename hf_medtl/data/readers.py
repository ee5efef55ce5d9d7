"""Dataset readers: one row per image from a folder or table; each reader handles one file layout."""

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hf_medtl.common.text import abbreviate
from hf_medtl.data.folder_layout import FolderLayout, check_labels, read_layout
from hf_medtl.data.labels import discover_labels
from hf_medtl.data.listing import is_image_file, list_folder, list_paths
from hf_medtl.data.masks import find_mask, group_by_stem, pair_masks
from hf_medtl.data.specs import DatasetSpec
from hf_medtl.data.tables import Rows, find_metadata, map_label, read_listing, read_table, to_records
from hf_medtl.errors import MedtlError

logger = logging.getLogger(__name__)


def read_paths(spec: DatasetSpec, root: Path) -> tuple[DatasetSpec, Rows]:
    """Read files whose path matches `spec.pattern`, below the first of `spec.roots` that has the most labels.

    Raises:
        MedtlError: No file matches.
    """
    paths = list_paths(root)
    stems = group_by_stem(paths)
    matches: list[tuple[str, re.Match[str]]] = []
    for prefix in spec.roots:
        below = (re.fullmatch(spec.pattern, path.removeprefix(prefix)) for path in paths if path.startswith(prefix))
        candidates = [(prefix, match) for match in below if match and is_image_file(root, prefix + match[0])]
        if len({match["label"] for _, match in candidates}) > len({match["label"] for _, match in matches}):
            matches = candidates  # only the first root with the most labels: archives contain copies
    if not matches:
        raise MedtlError(
            f"{root} does not look like {spec.title}: expected files such as {spec.example}, found "
            f"{list_folder(root)}. Set --data_dir to the unpacked download; for images of your own the dataset is "
            "imagefolder."
        )
    pairs, masks = pair_masks([prefix + match[0] for prefix, match in matches])
    _report_masks(root, masks, spec.is_segmentation)
    rows = []
    for prefix, match in matches:
        groups, path = match.groupdict(), match[0]
        if prefix + path in masks:
            continue
        rows.append(
            {
                "image_id": path,
                "path": prefix + path,
                "label": spec.map_label(groups["label"]) or "",
                "patient": spec.parse_patient(path),
                "official": groups.get("split", ""),
                "source": groups.get("source", ""),
                "mask": find_mask(spec, prefix + path, stems) or pairs.get(prefix + path, ""),
            }
        )
    return spec, rows


def read_folders(spec: DatasetSpec, root: Path) -> tuple[DatasetSpec, Rows]:
    """Read class folders, with or without split folders, below any wrapping folders, and `metadata.csv` files.

    Masks are recognized by their names, see `pair_masks`. A `metadata.csv` follows the convention of `datasets`: a
    column `file_name`, relative to it, and any of label, patient, source, mask and split. A | in one of its labels
    marks the data as multilabel, and folder names are then not used as labels.

    Raises:
        MedtlError: Images without label or metadata, no images, or fewer than two labels.
    """
    paths = list_paths(root)
    metadata_files = find_metadata(paths)
    spec, metadata = read_listing(spec, root, metadata_files, paths)
    multilabel = any("|" in cell for cell in metadata["label"])
    files = [path for path in paths if is_image_file(root, path)]
    pairs, masks = pair_masks(files)
    masks.update(mask for cell in metadata["mask"] for mask in cell.split("|"))
    images = sorted({*files} - masks | {*files} & {*metadata["file_name"]})
    unlisted = sorted(set(images) - set(metadata["file_name"]))
    if metadata_files and unlisted:
        raise MedtlError(
            f"{len(unlisted)} of {len(images)} images below {root} are not listed in {', '.join(metadata_files)}: "
            f"{abbreviate(unlisted)}. Add or remove them: patients and labels would be known for some images only."
        )
    stems = group_by_stem(paths) if spec.masks else {}
    layout = read_layout(images)
    facts = {row["file_name"]: row for row in to_records(metadata)}
    rows, ignored = [], set()
    for path in images:
        folders, fact = layout.labels[path], facts.get(path, {})
        if layout.has_splits and not layout.splits[path]:
            ignored.add(path.split("/")[layout.base])
            continue
        rows.append(
            {
                "image_id": "/".join(path.split("/")[layout.base :]),
                "path": path,
                "label": fact.get("label") or (folders[0] if folders and not multilabel else ""),
                "patient": fact.get("patient") or spec.parse_patient(path),
                "official": fact.get("split") or layout.splits[path],
                "source": fact.get("source", ""),
                "mask": fact.get("mask") or find_mask(spec, path, stems) or pairs.get(path, ""),
            }
        )
    notes = []
    if spec.is_segmentation and _are_patients({row["label"] for row in rows}):
        names = abbreviate(sorted({row["label"] for row in rows}), 3)
        notes.append(f"The folders {names} are taken for patients: their images stay in one split.")
        rows = [row | {"label": "", "patient": row["patient"] or row["label"]} for row in rows]
    elif note := _describe_unused_folders(layout, rows):
        notes.append(note)
    if not (multilabel or spec.is_segmentation):
        rows = _leave_out_unlabelled_splits(root, rows)
        check_labels(root, {path: layout.labels[path] for path in _labelled_by_folder(rows, facts)})
    if ignored:
        logger.warning("%s: not in train, validation or test, so excluded: %s.", root, abbreviate(sorted(ignored)))
    if not rows:
        raise MedtlError(
            f"{root}: expected a folder of images for each label, such as {spec.example}, found {list_folder(root)}."
        )
    bare = sorted(row["path"] for row in rows if not (row["label"] or multilabel or spec.is_segmentation))
    other_tables = sorted(
        {path for path in paths if path.lower().endswith((".csv", ".tsv", ".xlsx"))} - {*metadata_files}
    )
    if bare:
        hint = "add a metadata.csv with the columns file_name and label"
        if other_tables:
            hint = f"read the table with the labels: --dataset table --data_dir {root / other_tables[0]}"
        raise MedtlError(
            f"{root}: {len(bare)} images have no label: {abbreviate(bare)}. Put them in a folder named after the "
            f"label, or {hint}."
        )
    _report_masks(root, masks & {*files}, spec.is_segmentation)
    splits = {row["official"] for row in rows} - {""}
    spec = discover_labels(spec, root, [row["label"] for row in rows], multilabel)
    present = list(dict.fromkeys(spec.labels if multilabel else filter(None, (row["label"] for row in rows))))
    if present:
        logger.info(
            "%s: found the labels %s%s%s.",
            root,
            ", ".join(present),
            ", any number of them per image" if multilabel else "",
            f" and the splits {', '.join(sorted(splits))}" if splits else "",
        )
    if other_tables:
        notes.append(
            f"Not read: {abbreviate(other_tables, 5)}. Only a metadata.csv is, or a table with --dataset table."
        )
    spec = replace(spec, notes=(*spec.notes, *notes))
    return spec, [row | {"label": map_label(spec, row["label"])} for row in rows]


READERS: dict[str, Callable[[DatasetSpec, Path], tuple[DatasetSpec, Rows]]] = {
    "paths": read_paths,
    "folders": read_folders,
    "table": read_table,
}


def files_below(spec: DatasetSpec, root: Path) -> list[str]:
    """Return `list_paths(root)`; the name of earlier releases."""
    return list_paths(root)


is_picture = is_image_file  # the name of earlier releases


def _report_masks(root: Path, masks: set[str], is_segmentation: bool) -> None:
    """Log which files are masks and so no images."""
    if masks:
        advice = "" if is_segmentation else " To learn them, use --task image-segmentation."
        names = abbreviate(sorted(masks), 3)
        logger.info("%s: %d files are masks, not images to train on: %s.%s", root, len(masks), names, advice)


def _are_patients(folders: set[str]) -> bool:
    """True for folders of images with masks that are patients or series by their names: many, and all with a number."""
    return len(folders) >= 5 and all(any(map(str.isdigit, name)) for name in folders)


def _describe_unused_folders(layout: FolderLayout, rows: Rows) -> str:
    """Return a sentence about folders inside those of the labels, which may be patients; "" if there are none."""
    unused = sorted({"/".join(layout.labels[row["path"]][:2]) for row in rows if len(layout.labels[row["path"]]) > 1})
    if all(row["patient"] for row in rows) or len(unused) <= len({name.split("/")[0] for name in unused}):
        return ""
    return (
        f"Folders inside those of the labels are not used, such as {abbreviate(unused, 3)}. If they are patients, add "
        "a metadata.csv with the columns file_name, label and patient."
    )


def _labelled_by_folder(rows: Rows, facts: dict[str, dict[str, str]]) -> list[str]:
    """Return the images that have a label, but not from a table."""
    return [row["path"] for row in rows if row["label"] and not facts.get(row["path"], {}).get("label")]


def _leave_out_unlabelled_splits(root: Path, rows: Rows) -> Rows:
    """Return the rows without those of splits in which no image has a label, as the test splits of competitions."""
    labelled = {row["official"] for row in rows if row["label"]}
    bare = [row for row in rows if row["official"] and row["official"] not in labelled]
    if not labelled or not bare:
        return rows
    names = sorted({row["official"] for row in bare})
    logger.warning(
        "%s: no image of the split %s has a label, so %d images are excluded.", root, " and ".join(names), len(bare)
    )
    return [row for row in rows if row["official"] in labelled or not row["official"]]
