"""Dataset readers: one row per image from a folder or table; each reader handles one file layout."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

from hf_medtl.common.text import abbreviate
from hf_medtl.data.labels import discover_labels
from hf_medtl.data.listing import is_image_file, list_folder, list_paths
from hf_medtl.data.masks import find_mask, group_by_stem
from hf_medtl.data.specs import DatasetSpec
from hf_medtl.data.split_names import parse_split
from hf_medtl.data.tables import Rows, find_metadata, read_listing, read_table, to_records
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
            f"{list_folder(root)}. Set --data_dir to the unpacked download."
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
                "mask": find_mask(spec, prefix + path, stems),
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
    paths = list_paths(root)
    metadata_files = find_metadata(paths)
    spec, metadata = read_listing(spec, root, metadata_files, paths)
    multilabel = any("|" in cell for cell in metadata["label"])
    masks = {mask for cell in metadata["mask"] for mask in cell.split("|")}
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
    existing = set(paths)
    base, split_level = _folder_levels([path.split("/")[:-1] for path in images])
    facts = {row["file_name"]: row for row in to_records(metadata)}
    rows, ignored = [], set()
    for path in images:
        parts, fact = path.split("/")[base:-1], facts.get(path, {})
        official = (parse_split(parts[0]) or "") if split_level and parts else ""
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
                "official": fact.get("split") or official,
                "source": fact.get("source", ""),
                "mask": fact.get("mask") or _find_mask_folder(path, base, existing),
            }
        )
    if ignored:
        logger.warning("%s: not in train, validation or test, so excluded: %s.", root, abbreviate(sorted(ignored)))
    if not rows:
        raise MedtlError(
            f"{root}: expected a folder of images for each label, such as {spec.example}, found {list_folder(root)}."
        )
    bare = sorted(row["path"] for row in rows if not (row["label"] or multilabel or spec.is_segmentation))
    if bare:
        raise MedtlError(
            f"{root}: {len(bare)} images have no label: {abbreviate(bare)}. Put them in a folder named after the "
            "label, or add a metadata.csv with the columns file_name and label."
        )
    splits = {row["official"] for row in rows} - {""}
    spec = discover_labels(spec, root, [row["label"] for row in rows], multilabel)
    logger.info(
        "%s: found the labels %s%s%s.",
        root,
        ", ".join(dict.fromkeys(spec.labels if multilabel else (row["label"] for row in rows))),
        ", any number of them per image" if multilabel else "",
        f" and the splits {', '.join(sorted(splits))}" if splits else "",
    )
    return spec, [row | {"label": spec.map_label(row["label"]) or ""} for row in rows]


READERS: dict[str, Callable[[DatasetSpec, Path], tuple[DatasetSpec, Rows]]] = {
    "paths": read_paths,
    "folders": read_folders,
    "table": read_table,
}


def files_below(spec: DatasetSpec, root: Path) -> list[str]:
    """Return `list_paths(root)`; the name of earlier releases."""
    return list_paths(root)


is_picture = is_image_file  # the name of earlier releases


def _folder_levels(folders: list[list[str]]) -> tuple[int, int]:
    """Return the number of wrapping folders, and 1 if the next level are splits, else 0."""
    base = 0
    while True:
        level = {parts[base] for parts in folders if len(parts) > base}
        deeper = any(len(parts) > base + 1 for parts in folders)
        if len(level) != 1 or not deeper:
            break
        base += 1
    return base, int("train" in set(map(parse_split, level)))


def _find_mask_folder(path: str, base: int, paths: set[str]) -> str:
    """Return `masks/` + the image's path below the wrapping folders, or its name, there or in a sibling; else ""."""
    parts = path.split("/")
    for above, below in ((parts[:base], parts[base:]), (parts[:base], parts[-1:]), (parts[:-2], parts[-1:])):
        mask = "/".join([*above, "masks", *below])
        if mask in paths:
            return mask
    return ""
